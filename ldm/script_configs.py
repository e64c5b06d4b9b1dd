"""The whole configs of the two training scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ldm.autoencoder.config import AutoencoderConfig, ReconstructionObjectiveConfig
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.data.config import DataSourceConfig
from ldm.diffusion.config import PARAMETRIZATIONS, SAMPLERS, DenoiserConfig, SamplingConfig
from ldm.diffusion.losses.config import DenoisingObjectiveConfig, ObjectiveConfig
from ldm.errors import CheckpointError, ConfigError
from ldm.training.config import AdamWConfig, OptimConfig, RunConfig, check_run_format

Options: TypeAlias = Mapping[str, str | bool | None]  # of a script, by name


@dataclass(frozen=True)
class TrainVAEConfig:
    """train_vae.py: an autoencoder on images."""

    data: DataSourceConfig
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    objective: ReconstructionObjectiveConfig = field(default_factory=ReconstructionObjectiveConfig)
    optim: OptimConfig = field(default_factory=AdamWConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.run.keep == "best":
            raise ValueError(
                "run.keep best is for train_diffusion.py, which compares models by their held-out loss: use last"
            )
        if self.run.snapshots:
            raise ValueError("run.snapshots is for train_diffusion.py, whose models --ema reads: use 0")


@dataclass(frozen=True)
class TrainDiffusionConfig:
    """train_diffusion.py: a denoiser on the latents of an autoencoder, or on the pixels."""

    data: DataSourceConfig | None = None  # left out: the data of the autoencoder's run, with its held-out split
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    objective: ObjectiveConfig = field(default_factory=DenoisingObjectiveConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optim: OptimConfig = field(default_factory=AdamWConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(snapshots=8))

    def __post_init__(self) -> None:
        is_consistency, sampler = self.objective.kind == "consistency", self.sampling.sampler
        if is_consistency != SAMPLERS[sampler].consistency:
            wanted = "consistency" if is_consistency else "another"
            raise ValueError(
                f"sampling.sampler {sampler} draws no samples from a model with objective.kind {self.objective.kind}:"
                f" choose {wanted}"
            )
        if SAMPLERS[sampler].gaussian and self.denoiser.skip.kind != "gaussian":
            raise ValueError(f"sampling.sampler {sampler} needs denoiser.skip.kind gaussian")
        if is_consistency and self.run.keep == "best":
            raise ValueError(
                "run.keep best compares models by how well they denoise, and one with objective.kind consistency does"
                " not: use last"
            )
        noise, highest = self.objective.noise_distribution, self.sampling.sigma_max
        if is_consistency and noise.kind == "log-uniform" and noise.high < highest:
            raise ValueError(
                f"sampling.sigma_max {highest:g} is where samples begin, and objective.noise_distribution.high"
                f" {noise.high:g} leaves it untrained: give at least {highest:g}"
            )
        if is_consistency and not PARAMETRIZATIONS[self.denoiser.parametrization].keeps_clean_input:
            raise ValueError(
                "objective.kind consistency needs a denoiser that leaves a latent without noise as it is, and one of"
                f" denoiser.parametrization {self.denoiser.parametrization} does not: train another first"
            )


def data_of_source(options: Options, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The data section of the run of train_vae.py that the option `autoencoder` names, or of the one to start `from`.

    None if they name none, or if the file has one.
    """
    if given.get("data") is not None:
        return None
    if not options["autoencoder"]:
        return section_of_start(options, "data")
    file = Path(str(options["autoencoder"])) / "config.yaml"
    if not file.is_file():
        return None
    check_run_format(file.parent, f"give --autoencoder {file.parent / 'vae'} and a data section in the config")
    return reader.to_dict(reader.load(TrainVAEConfig, file, {}).data)


def denoiser_of_start(options: Options, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The denoiser section of the run of train_diffusion.py that the option `from` names, unless the file has one."""
    return None if given.get("denoiser") is not None else section_of_start(options, "denoiser")


def sampling_of_start(options: Options, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sampling section of a run that is tuned for few steps; what it does not say is as in the run to start `from`.

    None, which leaves all as the file has it, for another objective and without such a run.
    """
    objective, own = given.get("objective"), given.get("sampling") or {}
    if not isinstance(objective, dict) or objective.get("kind") != "consistency" or not isinstance(own, dict):
        return None
    grid = section_of_start(options, "sampling")
    return None if grid is None else grid | own


def section_of_start(options: Options, name: str) -> dict[str, Any] | None:
    """A section of the config of the run of train_diffusion.py that the option `from` names; None if it names none."""
    file = Path(str(options["from"] or "")) / "config.yaml"
    if not options["from"] or not file.is_file():
        return None
    check_run_format(file.parent, "train anew, without --from")
    section = reader.to_dict(reader.load(TrainDiffusionConfig, file, {})).get(name)
    return section if isinstance(section, dict) else None


def data_of(config: TrainDiffusionConfig, source: str | None, start: str | None = None) -> DataSourceConfig:
    """The data of the config: its own, or those of the run in `source`, or else in `start`, as flags changed them."""
    if config.data is not None:
        return config.data
    flag, given, script = ("--from", start, "diffusion") if source is None else ("--autoencoder", source, "vae")
    if given is None:
        raise ConfigError(
            "the config has no data section, and there is no --autoencoder or --from whose data could be taken: give"
            " one of them"
        )
    found = f"is not a run of train_{script}.py" if Path(given).exists() else "does not exist here"
    meant = " (or name a run that does)" if found.startswith("does") else ""
    raise ConfigError(f"{flag} {given} {found}, so the config must have a data section{meant}")


def vae_config_of(source: str) -> TrainVAEConfig | None:
    """The config of the run of train_vae.py in `source`; None if that is an autoencoder and not a run.

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
    exported = file.parent / "vae"
    advice = f"give {exported}, which is still read" if exported.is_dir() else "train it again, under another --out"
    check_run_format(file.parent, advice)
    return reader.load(TrainVAEConfig, file, {})


def vae_data_of(source: str) -> DataSourceConfig | None:
    """The config of the images that a run of train_vae.py was trained on; None if that is an autoencoder and not a run.

    Raises what `vae_config_of` does.
    """
    config = vae_config_of(source)
    return None if config is None else config.data


def data_of_run(run: str) -> DataSourceConfig | None:
    """The config of the images that a run was trained on; None if it is no run, but for instance an export."""
    file = Path(run) / "config.yaml"
    given = read_yaml(file) if file.is_file() else None
    if isinstance(given, dict) and "denoiser" in given:
        check_run_format(file.parent, "train again, under another --out")
        return reader.load(TrainDiffusionConfig, file, {}).data
    return vae_data_of(run)
