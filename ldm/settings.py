"""The two configs: all that a person can say about stage one, and about stage two."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ldm import config
from ldm.autoencoder.settings import Autoencoder
from ldm.autoencoder.settings import Objective as ReconstructionSettings
from ldm.data.settings import DataSettings
from ldm.diffusion.settings import Denoiser, Sampling
from ldm.diffusion.settings import Objective as DenoisingSettings
from ldm.errors import CheckpointError, ConfigError
from ldm.plain_yaml import read_yaml
from ldm.training.settings import Optim, Run


@dataclass(frozen=True)
class StageOne:
    """train_vae.py: an autoencoder on images."""

    data: DataSettings
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    objective: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class StageTwo:
    """train_diffusion.py: a denoiser on the latents of an autoencoder, or on the pixels."""

    data: DataSettings | None = None  # left out: the data of the autoencoder's run, with its held-out split
    denoiser: Denoiser = field(default_factory=Denoiser)
    objective: DenoisingSettings = field(default_factory=DenoisingSettings)
    sampling: Sampling = field(default_factory=Sampling)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)


def with_data_of(source: str | None, settings: StageTwo) -> tuple[StageTwo, DataSettings]:
    """The settings and their data; if they name none of their own, those of the stage-one run in `source`."""
    if settings.data is not None:
        return settings, settings.data
    if source is None:
        raise ConfigError(
            "the config has no data section, and there is no --autoencoder whose data could be taken: give one of them"
        )
    file = Path(source) / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"--autoencoder {source} is not a run of train_vae.py, so the config must have a data section"
        )
    data = config.load(StageOne, file, {}).data
    return replace(settings, data=data), data


def stage_one_of(source: str) -> StageOne | None:
    """The settings of the run of train_vae.py in `source`; None if that is an autoencoder and no run.

    Raises CheckpointError for a run of train_diffusion.py, ConfigError for a config.yaml that cannot be read.
    """
    file = Path(source) / "config.yaml"
    if not file.is_file() or (file.parent / "config.json").is_file():
        return None
    given = read_yaml(file)
    if isinstance(given, dict) and "denoiser" in given:
        raise CheckpointError(
            f"{source} is not a run of train_vae.py but of train_diffusion.py: give {file.parent}/vae"
        )
    return config.load(StageOne, file, {})
