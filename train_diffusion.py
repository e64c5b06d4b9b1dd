"""Trains the denoiser that a config describes, in the latent space of an autoencoder or on pixels, and exports both."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.config.command_line import Command, Option, parse
from ldm.script_configs import TrainDiffusionConfig, data_of, data_of_source, denoiser_of_start, sampling_of_start
from ldm.terminal import exit_code_of
from ldm.training.config import AdamWConfig

if TYPE_CHECKING:
    from torch import nn

    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import Dataset
    from ldm.diffusion.denoiser import Denoiser
    from ldm.diffusion.model import DiffusionModelConfig
    from ldm.export.warm_start import WarmStart
    from ldm.latents import LatentCache
    from ldm.training.run import Run
    from ldm.training.step import TrainingStep

OPTIONS = {
    "autoencoder": Option(
        "a finished run of train_vae.py, a diffusers folder, TAESD's files, or a hub id; left out: pixels", "X"
    ),
    "from": Option("a finished run of this script, whose denoiser this one starts with; left out: from scratch", "RUN"),
    "out": Option("the run folder: checkpoints, log, samples and the finished model", "DIR", required=True),
    "cache": Option("where the encoded images are kept, to share them between runs; left out: DIR/latents", "DIR"),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = read(arguments)
    options = command.options
    out, cache, source, start = Path(str(options["out"])), options["cache"], options["autoencoder"], options["from"]
    train(
        command.config,
        out,
        source=str(source) if source else None,
        start=str(start) if start else None,
        cache=Path(str(cache)) if cache else out / "latents",
        dry=bool(options["dry-run"]),
    )


def read(arguments: list[str]) -> Command[TrainDiffusionConfig]:
    return parse(
        TrainDiffusionConfig,
        arguments,
        prog="train_diffusion.py",
        description=__doc__,
        options=OPTIONS,
        inherited={"data": data_of_source, "denoiser": denoiser_of_start, "sampling": sampling_of_start},
    )


def train(
    config: TrainDiffusionConfig, out: Path, *, source: str | None, cache: Path, start: str | None, dry: bool = False
) -> None:
    data = data_of(config, source, start)
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.data.datasets import list_dataset
    from ldm.data.summary import describe
    from ldm.diffusion.latent_batches import LatentBatches
    from ldm.diffusion.losses.effective_weight import effective_weight
    from ldm.evaluation.panels import HeldOutLatents, SamplePanel
    from ldm.export.finalize import finalize_diffusion
    from ldm.export.warm_start import check_objective, open_latent_space, open_warm_start, start_fingerprint
    from ldm.text.captions import embed_captions, open_encoders
    from ldm.training.run import Run

    run = Run(config, out, dry=dry)
    if run.is_finished():
        return
    encoders = open_encoders(data)
    dataset = run.main_first(lambda: list_dataset(data))
    if not dry:
        run.on_main(lambda: run.folder.check_same_images(dataset.fingerprint))
    training, held_out = dataset.split()
    run.validation.check(len(held_out))
    sampler = run.batch_sampler(training)
    run.main_first(lambda: dataset.load(progress=run.is_main))
    run.print(describe(dataset))
    warm = open_warm_start(start, config.denoiser)
    embed_captions(run, cache, dataset, encoders)
    check_objective(config.objective, dataset.schema, warm)
    autoencoder, latents = open_latent_space(run, cache, data, dataset, source=source, warm=warm)
    model, denoiser = create_model(run, config, autoencoder, latents, dataset, warm)
    objective, uncertainty = create_objective(run, config, model, denoiser, warm)
    begun = start_fingerprint(config.objective, model.schema, warm)
    run.resume(dataset.with_conditions(latents.fingerprint), images=dataset.fingerprint, start=begun)
    batches = LatentBatches(latents, dataset, config.objective, sampler, run.device, config.run)
    panel, validation = SamplePanel(autoencoder, model, held_out or training), HeldOutLatents(latents, held_out)
    if weight := effective_weight(config.objective, denoiser):
        run.on_main(lambda: weight.draw_once(run.folder.path / "objective.png", dry=dry, warn=run.print))

    def learn(step: "TrainingStep") -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        if uncertainty is not None:
            learned = uncertainty(**losses.outputs)
            step.update(learned.total, of="uncertainty")
            losses.terms.update(learned.terms)
        step.log(losses.terms)

    for step in run.steps(batches, learn):
        if step.draws_panel:
            run.draw_panel(panel, step)
            if config.objective.kind == "denoising":  # a consistency model is no denoiser
                run.validate(validation, step)

    if dry:
        run.report(data.shape, latents.shape, training, held_out)
        return run.print(weight.describe()) if weight else None
    finalize_diffusion(run, autoencoder, model, encoders)


def create_model(
    run: "Run",
    config: TrainDiffusionConfig,
    autoencoder: "Autoencoder",
    latents: "LatentCache",
    dataset: "Dataset",
    warm: "WarmStart | None",
) -> "tuple[DiffusionModelConfig, Denoiser]":
    """The denoiser as training begins with it, and what is needed to create another."""
    from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
    from ldm.latents import above_noise, initialize_skip, possible_skip
    from ldm.randomness import seed_weights

    seed_weights(config.run.seed)
    training, _ = dataset.split()
    guided = config.objective.kind == "denoising" and config.objective.condition_dropout > 0
    denoiser_config = config.denoiser if warm else possible_skip(config.denoiser, latents, training, run.print)
    sampling = above_noise(config.sampling, autoencoder.latent_noise, run.print)
    schema = warm.schema_of(dataset.schema) if warm else dataset.schema
    model = DiffusionModelConfig(latents.shape, schema, denoiser_config, sampling, guided)
    denoiser = create_denoiser(model)
    if warm is None:
        initialize_skip(run, denoiser, latents, training)
    else:
        run.initialize(denoiser, lambda: warm.initialize(denoiser, schema, run.print))
    return model, denoiser


def create_objective(
    run: "Run",
    config: TrainDiffusionConfig,
    model: "DiffusionModelConfig",
    denoiser: "Denoiser",
    warm: "WarmStart | None",
) -> "tuple[nn.Module, nn.Module | None]":
    """The training loss, and that of what is learned of its weighting, if anything is."""
    from ldm.diffusion.consistency import ConsistencyObjective, ConsistencyStages
    from ldm.diffusion.losses.weighting import UncertaintyObjective, create_uncertainty
    from ldm.diffusion.objective import DenoisingObjective

    if config.objective.kind == "consistency":
        guide = warm.guide(model).to(run.device) if warm and config.objective.needs_guide else None
        consistency = ConsistencyObjective(denoiser, config.objective, guide=guide)
        stages = ConsistencyStages(consistency, config.run.steps)
        return run.prepare(consistency, trains=denoiser, schedule=stages), None
    uncertainty = create_uncertainty(config.objective.weighting)
    objective = run.prepare(DenoisingObjective(denoiser, config.objective.weighting, uncertainty), trains=denoiser)
    if uncertainty is None:
        return objective, None
    optim = AdamWConfig(lr=uncertainty.lr, warmup=0, schedule="constant")
    return objective, run.prepare(
        UncertaintyObjective(uncertainty), trains=uncertainty, optim=optim, name="uncertainty"
    )


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
