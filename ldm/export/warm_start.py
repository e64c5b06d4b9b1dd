"""Warm start of stage two: a new run that begins with the denoiser of a finished one (fine-tuning)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.batch import ConditionSchema
from ldm.config import reader
from ldm.data.config import DataSourceConfig
from ldm.data.datasets import Dataset, Subset
from ldm.diffusion.config import DenoiserConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import CheckpointError, ConfigError
from ldm.evaluation.held_out import MOST_MEASURED
from ldm.latents import LatentCache, open_autoencoder, open_latents
from ldm.pipeline import DiffusionModelConfig, check_latent_shape, load_denoiser
from ldm.shapes import Latents
from ldm.training.run import Run

MAY_DIFFER = {"network.dropout"}  # of the settings of a denoiser: it has no weights
COMPARED_IMAGES = 16
SAME_LATENTS = 1e-3  # of their standard deviation: what rounding may make of the same ones
TABLE = "embedding.tables.{}.weight"  # of an attribute, in a denoiser's state


@dataclass(frozen=True)
class WarmStart:
    """The exported denoiser of a finished run, and the latents that it knows."""

    run: str
    denoiser: Denoiser
    config: DiffusionModelConfig

    @classmethod
    def read(cls, run: str, wanted: DenoiserConfig) -> "WarmStart":
        """CheckpointError if `run` is none, ConfigError if its denoiser is another than the one that is wanted."""
        denoiser, config = load_denoiser(Path(run) / "unet")
        had, asked = reader.to_dict(config.denoiser), reader.to_dict(wanted)
        changed = [name for name in reader.differences(had, asked) if name not in MAY_DIFFER]
        if changed:
            before, now = (setting(settings, changed[0]) for settings in (had, asked))
            raise ConfigError(
                f"denoiser.{changed[0]} is {now}, and --from {run} has {before}: the weights of one are none of the"
                " other; leave the section denoiser out of the config, or give what it had (config.yaml in it)"
            )
        return cls(run, denoiser, config)

    @torch.no_grad()
    def align(self, autoencoder: Autoencoder, source: str, training: Subset) -> None:
        """Give an autoencoder from another place than this run the latent statistics of this run's.

        Raises CheckpointError if its latents are others: if no scale and shift per channel makes them these.
        """
        images = training.evenly_spaced(COMPARED_IMAGES).images()
        device = next(iter(autoencoder.state_dict().values())).device
        other, fit = Autoencoder.load(self.run).requires_grad_(False), None
        if other.network.image_channels == autoencoder.network.image_channels:
            fit = scale_and_shift(autoencoder.encode(images.to(device)).mean.cpu(), other.encode(images).mean)
        if fit is None:
            raise CheckpointError(
                f"--autoencoder {source} makes other latents than the autoencoder of --from {self.run}, whose denoiser"
                " knows no others: leave --autoencoder out, or train without --from"
            )
        scale, shift = fit
        if max((scale - 1).abs().max(), shift.abs().max()) > SAME_LATENTS:
            autoencoder.standardize(-shift / scale, 1 / scale)

    def initialize(self, denoiser: Denoiser, schema: ConditionSchema, say: Callable[[str], None]) -> None:
        """Copy into a new denoiser what it has in common with this one, and say what starts anew."""
        own, theirs = denoiser.state_dict(), self.denoiser.state_dict()
        tables = {TABLE.format(each.name) for each in (*schema.attributes, *self.config.schema.attributes)}
        for name in sorted((own.keys() | theirs.keys()) - tables):
            if name not in own or name not in theirs or own[name].shape != theirs[name].shape:
                known = " x ".join(map(str, self.config.latent_shape))
                is_skip = name.startswith("gaussian.")
                reason = "its Gaussian skip knows no other" if is_skip else f"{name} has another shape there"
                raise ConfigError(
                    f"--from {self.run} was trained on latents of {known}, and {reason}: give data.size as it was, or"
                    " train without --from"
                )
            own[name] = theirs[name]
        say(
            f"starting from {self.run}: its network{' and Gaussian skip' * (denoiser.gaussian is not None)}; the"
            " optimizer and the EMA start anew"
        )
        for attribute in schema.attributes:
            place = TABLE.format(attribute.name)
            own[place] = self.table(attribute.name, attribute.classes, own[place], say)
        for gone in {each.name for each in self.config.schema.attributes} - {each.name for each in schema.attributes}:
            say(f"{gone}: the embedding of {self.run} is left out, as the data have no such attribute")
        denoiser.load_state_dict(own)

    def table(self, name: str, classes: tuple[str, ...], new: Tensor, say: Callable[[str], None]) -> Tensor:
        """The embeddings of an attribute's classes and null label: those of the same name, others as the null label.

        So every class is denoised at first as it was, or as none. Of a run without the attribute all are zero.
        """
        known = next((each.classes for each in self.config.schema.attributes if each.name == name), None)
        if known is None:
            say(f"{name}: all {len(classes)} classes are new, and start without an effect")
            return torch.zeros_like(new)
        before = self.denoiser.state_dict()[TABLE.format(name)]
        rows = [known.index(each) if each in known else -1 for each in classes]
        added, dropped = (
            [each for each in classes if each not in known],
            [each for each in known if each not in classes],
        )
        say(
            f"{name}: {len(classes) - len(added)} of {len(classes)} classes are taken over by name"
            + (f"; new, and at first as the null label: {shown(added)}" if added else "")
            + (f"; not in these data any more: {shown(dropped)}" if dropped else "")
        )
        return before[[*rows, -1]]


def open_warm_start(run: str | None, wanted: DenoiserConfig) -> WarmStart | None:
    """The denoiser that `--from` names, if it does."""
    return None if run is None else WarmStart.read(run, wanted)


def open_latent_space(
    run: Run,
    cache: Path,
    data: DataSourceConfig,
    dataset: Dataset,
    *,
    source: str | None,
    warm: WarmStart | None,
) -> tuple[Autoencoder, LatentCache]:
    """The autoencoder and the latents of all images, standardized over the training images.

    With a warm start their statistics stay those that its denoiser was trained with, and the autoencoder is that of its
    run if no other is named.
    """
    training, _ = dataset.split()
    place = source if warm is None else source or warm.run
    autoencoder, standardized = open_autoencoder(place, data, dataset.fingerprint)
    if warm is not None and source is not None:
        warm.align(autoencoder, source, training)
    check_latent_shape(run.config.denoiser, autoencoder.latent_shape(data.sides))
    latents = open_latents(run, cache, autoencoder.to(run.device), dataset)
    if warm is None and not standardized:
        latents = latents.standardize(autoencoder, training.evenly_spaced(MOST_MEASURED).indices)
    return autoencoder, latents


def scale_and_shift(ours: Latents, theirs: Latents) -> tuple[Tensor, Tensor] | None:
    """Per channel those that make latents into others, by least squares; None if nothing does."""
    if ours.shape != theirs.shape:
        return None
    x, y = (latents.transpose(0, 1).flatten(1).double() for latents in (ours, theirs))
    centered, means = x - x.mean(1, keepdim=True), (x.mean(1), y.mean(1))
    variance = centered.square().sum(1)
    scale = torch.where(variance > 0, (centered * y).sum(1) / variance, 1.0)
    shift = means[1] - scale * means[0]
    left = (scale[:, None] * x + shift[:, None] - y).square().mean(1).sqrt()
    fits = (left <= SAME_LATENTS * y.std(1).clamp_min(SAME_LATENTS)) & (scale > 0)
    return (scale, shift) if bool(fits.all()) else None


def setting(settings: dict[str, Any], name: str) -> Any:
    """A setting by its dotted name; none where the kind of its section has no such."""
    found: Any = settings
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def shown(names: list[str], most: int = 8) -> str:
    """The first of them."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
