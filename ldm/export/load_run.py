"""Reopen a run: the autoencoder of a run of train_vae.py, finished or not, or of any other source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldm import checkpoint
from ldm.autoencoder.model import Autoencoder, create
from ldm.data.datasets import Subset, open_dataset
from ldm.errors import CheckpointError, ConfigError
from ldm.evaluation.held_out import MOST_MEASURED, latent_statistics
from ldm.script_configs import TrainVAEConfig, vae_config_of
from ldm.shapes import Images
from ldm.training.devices import choose_device
from ldm.training.run_folder import RunFolder

COMPARED_IMAGES = 2  # images to compare reconstructions of


@dataclass(frozen=True)
class LoadedAutoencoder:
    """An autoencoder on the CPU, and what is known of it."""

    autoencoder: Autoencoder
    run: Path | None = None  # the folder of the run that it comes from
    config: TrainVAEConfig | None = None  # of that run
    step: int | None = None  # of the checkpoint that it was read from; None: from `vae/`
    ema: str = "none"  # which average of the weights it is

    @property
    def is_own_average(self) -> bool:
        """Whether it is the average of the weights that the run draws its panels with."""
        return self.config is not None and self.ema == self.config.run.ema

    @property
    def is_final(self) -> bool:
        """Whether the metrics in the run's report.json are about these weights."""
        return self.is_own_average and self.config is not None and self.step in (None, self.config.run.steps)

    def measure(self) -> Images:
        """Standardize the latents over the run's training images, as the end of a run does; gives a few of these.

        Raises DataError if the data are not there any more, or are others.
        """
        assert self.run is not None and self.config is not None
        dataset = open_dataset(self.config.data, progress=True)
        RunFolder(self.run).check_same_data(dataset.fingerprint, "export with --latent-scale source")
        training, _ = dataset.split()
        device = choose_device(None)
        statistics = latent_statistics(self.autoencoder.to(device), training.evenly_spaced(MOST_MEASURED), device)
        self.autoencoder.to("cpu").standardize(statistics.mean, statistics.std)
        return Subset(dataset, training.indices[:COMPARED_IMAGES]).images()


def load_run(
    source: str, *, step: int | None, ema: str | None, raw_latents: bool, warn: Callable[[str], None] = print
) -> LoadedAutoencoder:
    """The autoencoder in `source`, its latents standardized unless a checkpoint had to be read.

    That is so for a run that is not finished, for another `step` or average (`ema`, or "none" for the weights in
    training) than the run's own, and for `raw_latents`, untouched by what the end of the run measured. Raises
    ConfigError for a step that is not there or a config.yaml that cannot be read, CheckpointError if there is no
    autoencoder.
    """
    folder, config = Path(source), vae_config_of(source)
    if config is None:
        if step is not None or ema is not None:
            raise ConfigError(f"--checkpoint and --ema are for runs of train_vae.py, and {source} is not one")
        return LoadedAutoencoder(Autoencoder.load(source).requires_grad_(False))
    average = ema or config.run.ema
    finished = RunFolder(folder).is_finished(config.run.steps)
    if finished and step is None and average == config.run.ema and not raw_latents:
        return LoadedAutoencoder(Autoencoder.load(source).requires_grad_(False), folder, config, None, average)
    found = checkpoint_of(folder, step, warn)
    classes = len(found.tensors.get("model", {}).get("head.weight", ()))
    autoencoder = create(config.autoencoder, image=config.data.shape, classes=classes)
    try:
        weights = found.tensors["model"] | ({} if average == "none" else found.tensors[f"ema-{average}"])
        autoencoder.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{found.path} does not fit the config.yaml of {source}: {error}") from error
    return LoadedAutoencoder(autoencoder.eval().requires_grad_(False), folder, config, found.step, average)


def checkpoint_of(run: Path, step: int | None, warn: Callable[[str], None]) -> checkpoint.Checkpoint:
    """The checkpoint of a step, or the newest whole one."""
    folder = run / "checkpoints"
    steps = checkpoint.steps(folder)
    if not steps:
        raise CheckpointError(f"{run} has no checkpoint yet: let train_vae.py run until it has saved one")
    if step is not None:
        if step not in steps:
            raise ConfigError(f"--checkpoint {step} is not there; {run} has {', '.join(map(str, steps))}")
        return checkpoint.load(folder / f"step-{step:08d}")
    newest = checkpoint.newest(folder, warn)
    assert newest is not None
    return newest
