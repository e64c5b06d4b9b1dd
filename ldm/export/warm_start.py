"""Warm start of stage two: a new run that begins with the denoiser of a finished one (fine-tuning)."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.batch import Attribute, ConditionSchema, NumberAttribute, TextAttribute
from ldm.config import reader
from ldm.data.config import DataSourceConfig
from ldm.data.datasets import Dataset, Subset
from ldm.diffusion.config import DenoiserConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.losses.config import ObjectiveConfig
from ldm.diffusion.model import DiffusionModelConfig, check_latent_shape, create_denoiser, load_denoiser
from ldm.errors import CheckpointError, ConfigError
from ldm.evaluation.held_out import MOST_MEASURED
from ldm.latents import LatentCache, open_autoencoder, open_latents
from ldm.nn.pretrained_weights import sha256_of
from ldm.shapes import Latents
from ldm.training.run import Run

MAY_DIFFER = {"network.dropout"}  # of the settings of a denoiser: it has no weights
COMPARED_IMAGES = 16
SAME_LATENTS = 1e-3  # of their standard deviation: what rounding may make of the same ones
EMBEDDING = "embedding."  # in a denoiser's state
CROSS_ATTENTION = re.compile(r"\.(cross_attention|cross|norm_cross|place)\.")  # there, of any network
TABLE = "embedding.tables.{}.weight"  # of an attribute


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
        knows_texts = self.knows_texts(schema)
        for name in sorted(own.keys() | theirs.keys()):
            if name.startswith(EMBEDDING) or (CROSS_ATTENTION.search(name) and not knows_texts):
                continue
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
        if schema.text is not None and self.config.schema.text is not None and not knows_texts:
            say(f"the attention to texts starts without an effect, as it knows those of {self.run} alone")
        for attribute in schema.attributes:
            if attribute.kind == "class":
                place = TABLE.format(attribute.name)
                own[place] = self.table(attribute.name, attribute.classes, own[place], say)
            else:
                own |= self.embedding(attribute, schema, denoiser.embedding.state_dict(), say)
        for gone in {each.name for each in self.config.schema.attributes} - {each.name for each in schema.attributes}:
            say(f"{gone}: the embedding of {self.run} is left out, as the data have no such attribute")
        denoiser.load_state_dict(own)

    def guide(self, model: DiffusionModelConfig) -> Denoiser:
        """The same denoiser once more, for the classes of a model that starts with it; it stays as it is."""
        guide = create_denoiser(replace(model, sampling=self.config.sampling))
        self.initialize(guide, model.schema, lambda _: None)
        return guide.eval().requires_grad_(False)

    def schema_of(self, schema: ConditionSchema) -> ConditionSchema:
        """The same schema, with numbers standardized as this run did, as its embedding of them asks."""
        before = {each.name: each for each in self.config.schema.attributes if each.kind == "number"}
        return ConditionSchema(
            tuple(
                replace(each, mean=before[each.name].mean, std=before[each.name].std)
                if each.kind == "number" and each.name in before
                else each
                for each in schema.attributes
            )
        )

    def knows_texts(self, schema: ConditionSchema) -> bool:
        """Whether there are texts, and this run had all of them: cross-attention to the tokens of others is of no use.

        It starts at zero then, as the embeddings of new conditions do.
        """
        texts = [each for each in schema.attributes if each.kind == "text"]
        return bool(texts) and all(self.has_same(each, schema) for each in texts)

    def has_same(self, attribute: Attribute, schema: ConditionSchema) -> bool:
        """Whether the embedding of an attribute of this run can be that of one of another schema."""
        known = next((each for each in self.config.schema.attributes if each.name == attribute.name), None)
        return known is not None and replaceable(known, self.config.schema) == replaceable(attribute, schema)

    def embedding(
        self,
        attribute: NumberAttribute | TextAttribute,
        schema: ConditionSchema,
        own: dict[str, Tensor],
        say: Callable[[str], None],
    ) -> dict[str, Tensor]:
        """The weights of the embedding of a number or a text, of this run where that had the same; new ones else.

        Those start without an effect.
        """
        parts = {f"embedding.{name}" for name in own if name.split(".")[1] == attribute.name}
        theirs = self.denoiser.state_dict()
        if self.has_same(attribute, schema):
            say(f"{attribute.name}: the embedding is taken over")
            return {name: theirs[name] for name in parts}
        is_known = attribute.name in [each.name for each in self.config.schema.attributes]
        reason = "is another than there" if is_known else "is new"
        say(f"{attribute.name}: this {attribute.kind} {reason}, and starts without an effect")
        return {}

    def table(self, name: str, classes: tuple[str, ...], new: Tensor, say: Callable[[str], None]) -> Tensor:
        """The embeddings of an attribute's classes and null label: those of the same name, others as the null label.

        So every class is denoised at first as it was, or as none. Of a run without the attribute all are zero.
        """
        attributes = self.config.schema.attributes
        known = next((each.classes for each in attributes if each.kind == "class" and each.name == name), None)
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


def replaceable(attribute: Attribute, schema: ConditionSchema) -> tuple[object, ...]:
    """What of a number or a text must be the same for an embedding of one to be that of the other.

    Texts beside one another in a schema become tokens of one width.
    """
    if attribute.kind == "number":
        return attribute.kind, attribute.period
    if attribute.kind == "text":
        return attribute.kind, attribute.sha256, attribute.length, attribute.layers, schema.token_channels
    return (attribute.kind,)


def open_warm_start(run: str | None, wanted: DenoiserConfig) -> WarmStart | None:
    """The denoiser that `--from` names, if it does."""
    return None if run is None else WarmStart.read(run, wanted)


def start_fingerprint(objective: ObjectiveConfig, schema: ConditionSchema, warm: WarmStart | None) -> str:
    """A hash of what every step depends on of the run to start from: how numbers are standardized, and the guide.

    Rounded, as another machine adds the numbers of the data in another order.
    """
    numbers = [f"{each.name} {each.mean:.4g} {each.std:.4g}" for each in schema.attributes if each.kind == "number"]
    is_guided = warm is not None and objective.kind == "consistency" and objective.needs_guide
    return sha256_of(warm.denoiser.state_dict() if warm is not None and is_guided else {}, "\n".join(numbers))


def check_objective(objective: ObjectiveConfig, schema: ConditionSchema, warm: WarmStart | None) -> None:
    """Raise ConfigError for an objective that needs another start than it has."""
    if objective.kind != "consistency":
        return
    if warm is None:
        raise ConfigError("objective.kind consistency tunes a finished denoiser: name its run with --from RUN")
    if objective.guidance == 1:
        return
    given = f"objective.guidance {objective.guidance:g} needs"
    if not schema.attributes:
        raise ConfigError(f"{given} data with classes, and these have none: leave it out")
    if not warm.config.trained_with_condition_dropout:
        raise ConfigError(
            f"{given} a denoiser trained with objective.condition_dropout, and that of --from {warm.run} was not: leave"
            " it out, or start from another"
        )


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
