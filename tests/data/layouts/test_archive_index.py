"""Large data sets open without being read: the index of a tar is kept, and sizes can stand for contents."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ldm.data.config import FolderConfig
from ldm.data.layouts import archive_index, archives
from ldm.data.sources import fingerprint_of
from tests.data.layouts.test_layouts import opened
from tests.support.image_files import gray, tarred, write_files, zipped


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices are kept: of every tar, however small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(archive_index, "LARGE", 0)
    return tmp_path / "home" / "ldm" / "archives"


def test_the_index_of_a_tar_is_built_once_and_kept_beside_nobody_s_images(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tarred(
        write_files(tmp_path / "data", {"ä.pgm": gray(1), "a.pgm": gray(2), os.fsdecode(b"\xff.pgm"): gray(3)})
    )
    before = {path.name for path in tmp_path.iterdir()}
    first = opened(archive)
    monkeypatch.setattr(archives, "_in_tar", None)  # the tar is not looked through any more
    again = opened(archive)
    assert again.names == first.names and again.fingerprint == first.fingerprint and len(again) == 3
    assert len(list(kept.iterdir())) == 1 and {path.name for path in tmp_path.iterdir()} == before | {"home"}


def test_a_large_tar_needed_a_home_folder(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number alone."""

    def nobody(user: int) -> None:
        raise KeyError(user)

    archive = tarred(write_files(tmp_path / "data", {"a.pgm": gray(1)}))
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert len(opened(archive)) == 1 and not kept.exists()


@pytest.mark.parametrize("damage", [b"", b"no index", None])
def test_a_damaged_index_or_one_of_another_content_is_built_anew(
    tmp_path: Path, kept: Path, damage: bytes | None
) -> None:
    archive = tarred(write_files(tmp_path / "data", {"a.pgm": gray(1)}))
    opened(archive)
    if damage is None:
        archive = tarred(write_files(tmp_path / "data", {"a.pgm": gray(1), "b.pgm": gray(1)}))
        assert len(opened(archive)) == 2
        return
    (index,) = kept.iterdir()
    whole = index.read_bytes()
    index.write_bytes(damage or whole[: len(whole) // 2])
    assert len(opened(archive)) == 1 and index.read_bytes()[:2] == b"PK"


def test_where_no_index_can_be_kept_the_tar_is_read_all_the_same(tmp_path: Path, kept: Path) -> None:
    kept.parent.parent.write_text("a file where the cache folder would be")
    assert len(opened(tarred(write_files(tmp_path / "data", {"a.pgm": gray(1)})))) == 1


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped, tarred])
def test_by_sizes_another_content_of_the_same_size_is_the_same_data_and_another_size_is_not(
    tmp_path: Path, pack: Any
) -> None:
    def fingerprint(place: str, content: bytes, **more: Any) -> str:
        return opened(
            pack(write_files(tmp_path / place / "data", {"a.pgm": content, "b.pgm": gray(3)})), **more
        ).fingerprint

    contents = [fingerprint(f"contents {n}", gray(n)) for n in (1, 2)]
    sizes = [fingerprint(f"sizes {n}", gray(n), checksums="sizes") for n in (1, 2)]
    longer = fingerprint("longer", gray(1) + b"x", checksums="sizes")
    assert contents[0] != contents[1] and sizes[0] == sizes[1] and len({*contents, *sizes, longer}) == 4


def test_a_fingerprint_is_that_of_one_list_of_everything() -> None:
    config, contents = FolderConfig(path="x"), [["a.png", None, "a", 5, 7], ["ü.png", "cat", "g", 1]]
    shaping = [config.shape, config.depth, config.value_range, config.crop, config.resize, config.background]
    assert (
        fingerprint_of(config, iter(contents)) == hashlib.sha256(json.dumps([shaping, *contents]).encode()).hexdigest()
    )
