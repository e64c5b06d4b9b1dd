"""`ldm codec fit`, `ldm compress` and `ldm decompress`: from a run to files to pictures; mistakes are one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.compression.codec import Codec
from ldm.compression.files import target_names
from ldm.errors import ConfigError
from ldm.shapes import to_uint8
from tests.export.test_autoencoder import refusal
from tests.support.codecs import pixel_codec
from tests.support.mutations import sealed
from tests.support.scripts import Outcome, ran


def codec(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "codec", *arguments)


def compress(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "compress", *arguments)


def decompress(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "decompress", *arguments)


@pytest.fixture(scope="module")
def fitted(finished_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codecs") / "codec"
    outcome = codec("fit", finished_vae, "--out", out, "--steps", 20)
    assert outcome.code == 0 and "bits per pixel" in outcome.out and f"{out}: codec " in outcome.out, outcome
    return out


@pytest.fixture
def pictures(shapes_folder: Path, tmp_path: Path) -> Path:
    """Three of one size, and one of another, in folders."""
    folder = tmp_path / "pictures"
    shutil.copytree(shapes_folder / "disc", folder / "disc")
    for file in sorted((folder / "disc").iterdir())[3:]:
        file.unlink()
    Image.effect_mandelbrot((21, 19), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "odd.bmp")
    return folder


def test_a_folder_becomes_files_and_pictures_of_the_same_names_and_sizes(
    fitted: Path, pictures: Path, tmp_path: Path
) -> None:
    files, out = tmp_path / "files", tmp_path / "out"
    outcome = compress(fitted, pictures, "--out", files, "--step", 0.2, "--verify")
    assert outcome.code == 0 and "4 files" in outcome.out and "dB on average" in outcome.out, outcome
    found = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
    assert found == ["disc/00.ldmc", "disc/01.ldmc", "disc/02.ldmc", "odd.ldmc"]
    size = sum(path.stat().st_size for path in files.rglob("*.ldmc"))
    rate = 8 * size / (3 * 256 + 21 * 19)
    assert f"{rate:.4g} bits per pixel" in outcome.out
    assert decompress(fitted, files / "disc", files / "odd.ldmc", "--out", out).code == 0
    for source, name in (("disc/00", "00.png"), ("odd", "odd.png")):
        (expected,) = Codec.load(fitted).decompress([(files / f"{source}.ldmc").read_bytes()])
        with Image.open(out / name) as picture:
            drawn = np.asarray(picture).transpose(2, 0, 1)
        assert (drawn == to_uint8(expected).numpy()).all()
    assert drawn.shape == (3, 19, 21)

    limited = compress(fitted, pictures / "odd.bmp", "--out", tmp_path / "small", "--rate", 0.9)
    assert limited.code == 0 and 8 * (tmp_path / "small" / "odd.ldmc").stat().st_size <= 0.9 * 21 * 19


def test_a_codec_is_fitted_to_other_images_than_the_run_had(
    finished_vae: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    flags = ("--data", shapes_folder / "square", "--model", "factorized", "--steps", 1, "--equal-steps")
    assert codec("fit", finished_vae, *flags, "--out", tmp_path / "codec").code == 0
    outcome = codec("fit", finished_vae / "vae", *flags, "--out", tmp_path / "again")
    refusal(outcome, 2, "--size is missing")
    refusal(codec("fit", finished_vae / "vae", "--out", tmp_path / "again"), 2, "--data is missing")


def test_nothing_is_overwritten_and_what_cannot_be_is_one_line(fitted: Path, pictures: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    (there / "disc").mkdir(parents=True)
    (there / "disc" / "01.ldmc").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    flags = ("--step", 0.5)
    refusal(codec("fit", fitted, "--out", there), 2, "exists")
    refusal(codec("fti", fitted, "--out", out), 2, "ldm codec fit")
    refusal(compress(fitted, pictures, "--out", there, *flags), 2, "01.ldmc already")
    refusal(compress(fitted, pictures, "--out", tmp_path / "file", *flags), 2, "is a file")
    refusal(compress(fitted, pictures, "--out", out), 2, "--rate, --psnr and --step", "none of them")
    refusal(compress(fitted, pictures, "--out", out, *flags, "--rate", 1), 2, "--rate and --step")
    refusal(compress(fitted, pictures, "--out", out, "--step", 0), 2, "--step 0 must be")
    refusal(compress(fitted, pictures / "no.png", "--out", out, *flags), 2, "does not exist")
    refusal(compress(fitted, there / "disc", "--out", out, *flags), 2, "holds no image")
    refusal(compress(pictures, pictures, "--out", out, *flags), 4, "holds no codec")
    refusal(compress(fitted, pictures / "odd.bmp", "--out", out, "--rate", 0.001), 2, "--rate 0.001", "from", "odd.bmp")
    refusal(compress(fitted, pictures / "odd.bmp", "--out", out, "--psnr", 90), 2, "--psnr 90", "dB", "odd.bmp")
    (pictures / "odd.bmp").write_bytes(b"no picture")
    refusal(compress(fitted, pictures / "odd.bmp", "--out", out, *flags), 3, "odd.bmp cannot be read")
    assert (there / "disc" / "01.ldmc").read_bytes() == b"mine" and not out.exists()


def test_one_image_out_of_reach_does_not_keep_the_others_from_their_files(
    fitted: Path, pictures: Path, tmp_path: Path
) -> None:
    """Four pixels do not even pay for a header."""
    Image.new("RGB", (2, 2)).save(pictures / "disc" / "dot.png")
    outcome = compress(fitted, pictures, "--out", tmp_path / "out", "--rate", 6)
    refusal(outcome, 2, "--rate 6 is out of reach", "dot.png", ": 1 of 5 images, and the others are written")
    names = {path.stem for path in (tmp_path / "out").rglob("*.ldmc")}
    assert len(names) == 4 and "dot" not in names


def test_one_unreadable_image_kept_those_behind_it_from_their_files(
    fitted: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "a-first.png").write_bytes(b"no picture")
    outcome = compress(fitted, pictures, "--out", tmp_path / "out", "--step", 0.5)
    refusal(outcome, 3, "a-first.png cannot be read", ": 1 of 5 images have no file")
    assert len(list((tmp_path / "out").rglob("*.ldmc"))) == 4


def test_a_file_that_is_not_of_the_codec_is_one_line(fitted: Path, pictures: Path, tmp_path: Path) -> None:
    files, out = tmp_path / "files", tmp_path / "out"
    assert compress(fitted, pictures / "odd.bmp", "--out", files, "--step", 1).code == 0
    file = files / "odd.ldmc"
    whole = file.read_bytes()
    for content, words in (
        (whole[:-3], "cut short or damaged"),
        (sealed(whole[:4] + bytes([9]) + whole[5:]), "version 9"),
        (sealed(whole[:5] + b"else" + whole[9:]), "another codec (656c7365)"),
        (b"no file of ours at all", "not a file of ldm compress"),
    ):
        file.write_bytes(content)
        refusal(decompress(fitted, files, "--out", out), 3, "odd.ldmc", words)
    refusal(decompress(fitted, pictures, "--out", out), 2, "holds no .ldmc file")
    file.write_bytes(whole)
    assert decompress(fitted, file, "--out", out).code == 0
    refusal(decompress(fitted, file, "--out", out), 2, "odd.png already")


def test_color_is_not_dropped_for_a_codec_of_gray(pictures: Path, tmp_path: Path) -> None:
    gray = pixel_codec("factorized")
    gray.save(tmp_path / "gray")
    Image.new("L", (12, 12), 99).save(tmp_path / "gray.png")
    flags = ("--out", tmp_path / "out", "--step", 0.1)
    refusal(compress(tmp_path / "gray", pictures / "disc" / "00.png", *flags), 3, "00.png is in color", "takes 1")
    assert compress(tmp_path / "gray", tmp_path / "gray.png", *flags).code == 0
    assert decompress(tmp_path / "gray", tmp_path / "out", "--out", tmp_path / "back").code == 0
    assert abs(np.asarray(Image.open(tmp_path / "back" / "gray.png")).astype(int) - 99).max() <= 7


def test_names_that_would_become_one_keep_their_endings() -> None:
    names = [Path("a/x.png"), Path("a/x.jpg"), Path("b/x.png"), Path("y.tar.png")]
    assert target_names(names, ".ldmc") == ["a/x.png.ldmc", "a/x.jpg.ldmc", "b/x.ldmc", "y.tar.ldmc"]
    with pytest.raises(ConfigError, match=r"both become x\.png\.ldmc"):
        target_names([Path("x.png"), Path("x.png")], ".ldmc")


def test_a_solid_file_gives_the_pictures_of_single_ones_in_a_folder_of_its_name(
    fitted: Path, pictures: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "all.ldmc", tmp_path / "out"
    outcome = compress(fitted, pictures, "--solid", "--step", 0.2, "--verify", "--out", file)
    assert outcome.code == 0 and "4 images in one file" in outcome.out and "dB on average" in outcome.out, outcome
    assert f"{file.stat().st_size:,} bytes" in outcome.out
    assert decompress(fitted, file, "--out", out).code == 0
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["all/disc/00.png", "all/disc/01.png", "all/disc/02.png", "all/odd.png"]
    refusal(decompress(fitted, file, "--out", out), 2, "holds all already")
    refusal(compress(fitted, pictures, "--solid", "--step", 1, "--out", file), 2, "all.ldmc exists")
    refusal(compress(fitted, pictures, "--solid", "--step", 1, "--out", tmp_path / "all"), 2, "must end in .ldmc")


def test_samples_of_a_codec_are_pictures_of_its_size(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    outcome = decompress(fitted, "--sample", 3, "--step", 1, "--size", "8x12", "--out", out)
    assert outcome.code == 0 and "3 images" in outcome.out, outcome
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    with Image.open(out / "2.png") as picture:
        assert picture.size == (12, 8)
    other = tmp_path / "other"
    refusal(decompress(fitted, "--sample", 3, "--step", 1, "--out", out), 2, "exists")
    refusal(decompress(fitted, "--out", other), 2, "FILES", "--sample")
    refusal(decompress(fitted, tmp_path, "--step", 1, "--out", other), 2, "--step is for --sample")
    refusal(decompress(fitted, "--sample", 1, "--step", 99, "--out", other), 2, "--step 99 must be")


def test_rate_distortion_of_a_codec_is_measured_beside_classical_ones(
    fitted: Path, finished_vae: Path, tmp_path: Path
) -> None:
    files = {"--out": tmp_path / "curves.json", "--panel": tmp_path / "curves.png"}
    flags = [each for pair in files.items() for each in pair]
    outcome = ran("ldm.cli.main", "evaluate", finished_vae, "--codec", fitted, "--images", 2, *flags)
    assert outcome.code == 0 and "BD-rate of ldm against JPEG" in outcome.out, outcome
    found = json.loads(files["--out"].read_text())
    assert {"ldm", "JPEG", "WebP", "WebP lossless", "JPEG 2000"} <= found["curves"].keys()
    for points in found["curves"].values():
        assert all(0 < each["payload_bits_per_pixel"] < each["bits_per_pixel"] for each in points)
    assert found["curves"]["WebP lossless"][0]["metrics"]["psnr"] == 100
    with Image.open(files["--panel"]) as picture:
        assert picture.size[0] > 500
    refusal(ran("ldm.cli.main", "evaluate", finished_vae, "--codec", fitted, "--probe", "mean"), 2, "--probe")
