"""Trains the denoiser that a config describes, in the latent space of an autoencoder or on pixels, and exports both."""

import sys
from pathlib import Path

from ldm.config.command_line import Command, Option, parse
from ldm.script_configs import TrainDiffusionConfig, data_of, data_of_autoencoder
from ldm.terminal import exit_code_of

OPTIONS = {
    "autoencoder": Option(
        "a finished run of train_vae.py, a diffusers folder, TAESD's files, or a hub id; left out: pixels", "X"
    ),
    "out": Option("the run folder: checkpoints, log, samples and the finished model", "DIR", required=True),
    "cache": Option("where the encoded images are kept, to share them between runs; left out: DIR/latents", "DIR"),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = read(arguments)
    options = command.options
    out, cache, source = Path(str(options["out"])), options["cache"], options["autoencoder"]
    train(
        command.config,
        out,
        source=str(source) if source else None,
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
        inherited={"data": data_of_autoencoder},
    )


def train(config: TrainDiffusionConfig, out: Path, *, source: str | None, cache: Path, dry: bool = False) -> None:
    data = data_of(config, source)
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.data.datasets import open_dataset
    from ldm.data.summary import describe
    from ldm.diffusion.objective import DenoisingObjective
    from ldm.evaluation.panels import HeldOutLatents, SamplePanel
    from ldm.export.finalize import finalize_diffusion
    from ldm.latents import LatentBatches, above_noise, initialize_skip, open_autoencoder, open_latents, possible_skip
    from ldm.pipeline import DiffusionModelConfig, check_latent_shape, create_denoiser
    from ldm.randomness import seed_weights
    from ldm.training.run import Run

    run = Run(config, out, dry=dry)
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.print(describe(dataset))
    training, held_out = dataset.split()
    run.check_keep(held_out)
    autoencoder, standardized = open_autoencoder(source, data, dataset.fingerprint)
    check_latent_shape(config.denoiser, autoencoder.latent_shape(data.sides))
    latents = open_latents(run, cache, autoencoder.to(run.device), dataset)
    if not standardized:
        latents = latents.standardize(autoencoder, training.indices)

    seed_weights(config.run.seed)
    guided = config.objective.condition_dropout > 0
    denoiser_config = possible_skip(config.denoiser, latents, training, run.print)
    sampling = above_noise(config.sampling, autoencoder.latent_noise, run.print)
    model = DiffusionModelConfig(latents.shape, dataset.schema, denoiser_config, sampling, guided)
    denoiser = create_denoiser(model)
    initialize_skip(run, denoiser, latents, training)
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume(latents.fingerprint, images=dataset.fingerprint)
    batches = LatentBatches(latents, dataset, config.objective, run.batch_sampler(training))
    panel, validation = SamplePanel(autoencoder, model), HeldOutLatents(latents, held_out)

    for step in run.steps(batches):
        losses = objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)
        if step.draws_panel:
            run.draw_panel(panel, step)
            run.validate(validation, step)

    if dry:
        return run.report(data.shape, latents.shape, training, held_out)
    finalize_diffusion(run, autoencoder, model)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
