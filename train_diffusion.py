"""Trains the denoiser that a config describes, in the latent space of an autoencoder or on pixels, and exports both."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.config.command_line import Command, Option, parse
from ldm.script_configs import TrainDiffusionConfig, data_of, data_of_source, denoiser_of_start
from ldm.terminal import exit_code_of
from ldm.training.config import AdamWConfig

if TYPE_CHECKING:
    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import Dataset
    from ldm.diffusion.denoiser import Denoiser
    from ldm.export.warm_start import WarmStart
    from ldm.latents import LatentCache
    from ldm.pipeline import DiffusionModelConfig
    from ldm.training.run import Run

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
        inherited={"data": data_of_source, "denoiser": denoiser_of_start},
    )


def train(
    config: TrainDiffusionConfig,
    out: Path,
    *,
    source: str | None,
    cache: Path,
    start: str | None = None,
    dry: bool = False,
) -> None:
    data = data_of(config, source)
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.data.datasets import open_dataset
    from ldm.data.summary import describe
    from ldm.diffusion.latent_batches import LatentBatches
    from ldm.diffusion.losses.effective_weight import EffectiveWeight
    from ldm.diffusion.losses.weighting import UncertaintyObjective, create_uncertainty
    from ldm.diffusion.objective import DenoisingObjective
    from ldm.evaluation.panels import HeldOutLatents, SamplePanel
    from ldm.export.finalize import finalize_diffusion
    from ldm.export.warm_start import open_latent_space, open_warm_start
    from ldm.training.run import Run

    run = Run(config, out, dry=dry)
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.print(describe(dataset))
    training, held_out = dataset.split()
    run.check_keep(held_out)
    warm = open_warm_start(start, config.denoiser)
    autoencoder, latents = open_latent_space(run, cache, data, dataset, source=source, warm=warm)
    model, denoiser = create_model(run, config, autoencoder, latents, dataset, warm)
    uncertainty = create_uncertainty(config.objective.weighting)
    objective = run.prepare(DenoisingObjective(denoiser, config.objective.weighting, uncertainty), trains=denoiser)
    if uncertainty is not None:
        optim = AdamWConfig(lr=uncertainty.lr, warmup=0, schedule="constant")
        fit = run.prepare(UncertaintyObjective(uncertainty), trains=uncertainty, optim=optim, name="uncertainty")
    run.resume(latents.fingerprint, images=dataset.fingerprint)
    batches = LatentBatches(latents, dataset, config.objective, run.batch_sampler(training), run.device, config.run)
    panel, validation = SamplePanel(autoencoder, model), HeldOutLatents(latents, held_out)
    weight = EffectiveWeight(config.objective, denoiser)
    run.on_main(lambda: weight.draw_once(run.folder.path / "objective.png", dry=dry, warn=run.print))

    for step in run.steps(batches):
        losses = objective(step.batch, step)
        step.update(losses.total)
        if uncertainty is not None:
            learned = fit(**losses.outputs)
            step.update(learned.total, of="uncertainty")
            losses.terms.update(learned.terms)
        step.log(losses.terms)
        if step.draws_panel:
            run.draw_panel(panel, step)
            run.validate(validation, step)

    if dry:
        run.report(data.shape, latents.shape, training, held_out)
        return run.print(weight.describe())
    finalize_diffusion(run, autoencoder, model)


def create_model(
    run: "Run",
    config: TrainDiffusionConfig,
    autoencoder: "Autoencoder",
    latents: "LatentCache",
    dataset: "Dataset",
    warm: "WarmStart | None",
) -> "tuple[DiffusionModelConfig, Denoiser]":
    """The denoiser as training begins with it, and what is needed to create another."""
    from ldm.latents import above_noise, initialize_skip, possible_skip
    from ldm.pipeline import DiffusionModelConfig, create_denoiser
    from ldm.randomness import seed_weights

    seed_weights(config.run.seed)
    training, _ = dataset.split()
    guided = config.objective.condition_dropout > 0
    denoiser_config = config.denoiser if warm else possible_skip(config.denoiser, latents, training, run.print)
    sampling = above_noise(config.sampling, autoencoder.latent_noise, run.print)
    model = DiffusionModelConfig(latents.shape, dataset.schema, denoiser_config, sampling, guided)
    denoiser = create_denoiser(model)
    if warm is None:
        initialize_skip(run, denoiser, latents, training)
    else:
        run.initialize(denoiser, lambda: warm.initialize(denoiser, dataset.schema, run.print))
    return model, denoiser


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
