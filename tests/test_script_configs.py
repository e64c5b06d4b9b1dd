"""The configs of the scripts: which data stage two uses, and what its flags change."""

from pathlib import Path

import pytest

from ldm.config import reader
from ldm.data.config import FolderConfig, MNIST5kConfig
from ldm.errors import ConfigError
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig, data_of
from tests.support.scripts import ROOT, Stage
from train_diffusion import read

CONFIG = ROOT / "configs/diffusion/folder.yaml"
DATA = FolderConfig(path="images", size=16, flip=True, held_out=0.2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As much of a run of train_vae.py as its data need."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(reader.dump(TrainVAEConfig(data=DATA)))
    return tmp_path / "run"


def data(run: Path | None, *flags: str, file: Path = CONFIG) -> object:
    """The data of stage two."""
    source = ["--autoencoder", str(run)] if run else []
    return read([str(file), *source, "--out", "out", *flags]).config.data


def test_a_flag_of_the_data_makes_stage_two_forget_those_of_the_autoencoder(run: Path) -> None:
    assert data(run) == DATA
    assert data(run, "--data.path", "new") == FolderConfig(path="new", size=16, flip=True, held_out=0.2)
    assert data(run, "--data.flip", "false") == FolderConfig(path="images", size=16, held_out=0.2)
    assert data(run, "--data.kind", "folder", "--data.path=new") == data(run, "--data.path", "new")
    assert data(run, "--data.kind", "mnist5k") == MNIST5kConfig(size=16, channels=3, flip=True, held_out=0.2)


def test_a_config_with_data_of_its_own_is_mixed_with_the_data_of_the_run(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("data: {kind: folder, path: own}")
    assert data(run, file=own) == FolderConfig(path="own")
    assert data(run, "--data.size", "8", file=own) == FolderConfig(path="own", size=8)
    (run / "config.yaml").write_text("neither: read")
    assert data(run, file=own) == FolderConfig(path="own")


def test_a_section_of_comments_alone_was_taken_for_one_of_its_own(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("data:\n  # size: 32\nrun: {steps: 2}")
    assert data(run, file=own) == DATA
    assert data(run, "--data.size", "8", file=own) == FolderConfig(path="images", size=8, flip=True, held_out=0.2)


def test_without_a_run_a_flag_is_said_to_lack_a_kind_only_where_that_is_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.kind is missing; expected mnist5k\|folder\|mvtec\|torchvision"):
        data(None, "--data.path", "new")
    assert data(None, "--data.kind", "folder", "--data.path", "new") == FolderConfig(path="new")
    assert data(tmp_path) is None
    with pytest.raises(ConfigError, match=r"is not a run of train_vae\.py, so the config must have a data section"):
        data_of(TrainDiffusionConfig(), str(tmp_path))
    with pytest.raises(ConfigError, match=r"no data section, and there is no --autoencoder"):
        data_of(TrainDiffusionConfig(), None)


def test_a_run_to_start_from_that_does_not_exist_was_said_to_be_not_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--from \S+missing does not exist here"):
        data_of(TrainDiffusionConfig(), None, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"--from \S+ is not a run of train_diffusion\.py"):
        data_of(TrainDiffusionConfig(), None, str(tmp_path))


def test_moved_data_train_another_stage_two(stage_two: Stage, shapes_folder: Path, tmp_path: Path) -> None:
    """The same images elsewhere: the same latents, and what was found is said by the dry run."""
    moved = tmp_path / "moved"
    moved.symlink_to(shapes_folder)
    outcome = stage_two.run(tmp_path / "run", "--data.path", moved, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "60 images in 2 classes (disc 30, square 30), 6 held out\n" in outcome.out
    assert f"path: {moved}" in outcome.out and "size: 16" in outcome.out and "flip: true" in outcome.out
