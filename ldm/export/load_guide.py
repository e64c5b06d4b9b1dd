"""Reopen a weaker denoiser for autoguidance: that of another run, or of an earlier checkpoint of one."""

from pathlib import Path

from ldm import checkpoint
from ldm.batch import Condition
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ConditionalDenoise
from ldm.errors import CheckpointError, RequestError
from ldm.nn.pretrained_weights import sha256_of
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Latents, NoiseLevels
from ldm.training.config import RunConfig

EARLY = "early"


def load_guide(source: str, model: LatentDiffusion) -> ConditionalDenoise:
    """The denoiser of `RUN`, or of its checkpoint `RUN@STEP`, as a guide of a model, on its device.

    `RUN@early` is the first checkpoint that the run has kept, of a sixteenth of its steps. Raises RequestError for one
    of another latent space or of other conditions, for a step that is not there, and where one of the two was tuned
    for few steps.
    """
    run, step = split_step(source)
    weaker = LatentDiffusion.load(run)
    for name, each in (("this model", model), (source, weaker)):
        if SAMPLERS[each.config.sampling.sampler].consistency:
            raise RequestError(
                "guide", f"guides a denoiser by another, and {name} is none: it was tuned for few steps; leave it out"
            )
    if weaker.config.latent_shape != model.config.latent_shape or not same_space(weaker, model):
        theirs, ours = (" x ".join(map(str, each.config.latent_shape)) for each in (weaker, model))
        raise RequestError(
            "guide",
            f"{source} is a denoiser of another latent space ({theirs}, and here {ours}): it must be trained on the"
            " same autoencoder, with the same statistics of its latents",
        )
    schema = weaker.config.schema
    if schema.attributes and schema != model.config.schema:
        raise RequestError("guide", f"{source} knows other conditions than this model: it must know the same, or none")
    if step is not None:
        load_step(weaker.denoiser, run, step, source)
    guide = weaker.denoiser.to(next(model.denoiser.parameters()))
    if schema.attributes:
        return guide

    def without_condition(noisy: Latents, sigma: NoiseLevels, _: Condition | None) -> Latents:
        denoised: Latents = guide(noisy, sigma)
        return denoised

    return without_condition


def split_step(source: str) -> tuple[Path, int | None]:
    """The folder of a run and the step behind its last @; a folder that has one in its name is that folder."""
    folder, separator, step = source.rpartition("@")
    if Path(source).exists() or not separator:
        return Path(source), None
    if step == EARLY:
        return Path(folder), early_step(Path(folder))
    if not step.isdecimal():
        raise RequestError("guide", f"{source}: behind the @ stands the step of a checkpoint, a number, or {EARLY}")
    return Path(folder), int(step)


def early_step(run: Path) -> int:
    """The first checkpoint that a run has kept for its own guidance, or RequestError where there is only a late one."""
    steps = checkpoint.steps(run / "checkpoints")
    if not steps or 8 * steps[0] > steps[-1]:
        there = f"those that are there are of steps {', '.join(map(str, steps))}" if steps else "it has none at all"
        raise RequestError("guide", f"{run} has no early checkpoint: {there}")
    return steps[0]


def same_space(one: LatentDiffusion, other: LatentDiffusion) -> bool:
    """Whether two models have the same autoencoder, statistics of the latents included."""
    return sha256_of(one.autoencoder.state_dict()) == sha256_of(other.autoencoder.state_dict())


def load_step(denoiser: Denoiser, run: Path, step: int, source: str) -> None:
    """Give a denoiser the averaged weights that it had at a step of its run."""
    from ldm.config.reader import load
    from ldm.script_configs import TrainDiffusionConfig

    folder = run / "checkpoints"
    if step not in (steps := checkpoint.steps(folder)):
        there = ", ".join(map(str, steps)) or "none"
        raise RequestError("guide", f"{source} is not there; the checkpoints of {run} are those of steps {there}")
    found = checkpoint.load(folder / f"step-{step:08d}")
    config: RunConfig = load(TrainDiffusionConfig, run / "config.yaml", {}).run
    try:
        denoiser.load_state_dict(found.tensors["model"] | found.tensors[f"ema-{config.ema}"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{found.path} does not fit the denoiser of {run}: {error}") from error
