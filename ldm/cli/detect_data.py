"""Images of `ldm detect`: normal ones, those to score, and labeled ones, all read alike."""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.options import nearest, size_of
from ldm.config.reader import sections_of
from ldm.data.config import SOURCES, DataConfig, DataSourceConfig, FolderConfig, MVTecConfig
from ldm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ldm.data.datasets import Dataset

BUNDLED = tuple(kind for kind, facts in SOURCES.items() if not facts.needs)
DATA = f"a folder or file of images, as data.path takes it, MVTec's layout, or {', '.join(BUNDLED)}"


def data_config(path: str, reading: dict[str, Any], **of_folders: Any) -> DataSourceConfig:
    """The config of the images that a path, or the name of a bundled data set, stands for; ConfigError if it cannot be.

    `reading` are settings of a DataConfig; None leaves one out. `of_folders` are those of a FolderConfig.
    """
    from ldm.data.mvtec import is_mvtec

    given = {name: value for name, value in reading.items() if value is not None}
    try:
        if path in BUNDLED and not Path(path).exists():
            found: DataSourceConfig = next(cls for cls in sections_of(DataSourceConfig) if cls.kind == path)(**given)
            return found
        if "size" not in given:
            raise ConfigError(f"--size is missing: the model is not a run, to take it from, and {path} has none")
        if is_mvtec(path):
            return MVTecConfig(path=path, **given)
        return FolderConfig(path=path, **given, **of_folders)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def normal_config(
    path: str, run_data: DataSourceConfig | None, *, size: str | None, channels: int | None, labeled: bool
) -> DataSourceConfig:
    """The config of normal images: the run's own, if these are named, or others, read as those.

    `channels` of None are those of the run.
    """
    sides = size_of(size)
    if run_data is not None and is_same(path, run_data):
        return replace(run_data, size=sides or run_data.size, channels=channels or run_data.channels)
    shared = {} if run_data is None else {each.name: getattr(run_data, each.name) for each in fields(DataConfig)}
    reading = {**shared, "size": sides or shared.get("size"), "channels": channels or shared.get("channels")}
    return data_config(path, reading, labels="auto" if labeled else "none")


def is_same(path: str, run_data: DataSourceConfig) -> bool:
    """Whether a path, or the name of a bundled data set, stands for the data of a run."""
    own = getattr(run_data, "path", None)
    if own is None:
        return path == run_data.kind and not Path(path).exists()
    return own == path or Path(own).expanduser().resolve() == Path(path).expanduser().resolve()


def class_index(dataset: "Dataset", name: str, path: str) -> int:
    """The class called so; an error names the nearest, or says that there are no classes."""
    if not dataset.classes:
        raise DataError(f"--normal-class {name}: {path} has no classes, as sub-folders or metadata name them")
    if name not in dataset.classes:
        raise ConfigError(f"--normal-class {name} is no class of {path}; {nearest(name, dataset.classes)}")
    return dataset.classes.index(name)
