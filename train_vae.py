"""Trains the autoencoder that a config describes, and exports it as a stock diffusers AutoencoderKL."""

import sys
from pathlib import Path

from ldm.config.command_line import Option, parse
from ldm.errors import exit_code_of
from ldm.settings import TrainVAEConfig

OPTIONS = {
    "out": Option("the run folder: checkpoints, log, panels and the finished vae/", "DIR", required=True),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = parse(TrainVAEConfig, arguments, prog="train_vae.py", description=__doc__, options=OPTIONS)
    train(command.config, Path(str(command.options["out"])), dry=bool(command.options["dry-run"]))


def train(config: TrainVAEConfig, out: Path, *, dry: bool = False) -> None:
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.autoencoder.losses.discriminator import DiscriminatorObjective, SaturationMonitor, create_discriminator
    from ldm.autoencoder.model import create_trainable
    from ldm.autoencoder.objective import ReconstructionObjective
    from ldm.batch import ImageBatch
    from ldm.data.batches import ImageBatches
    from ldm.data.datasets import open_dataset
    from ldm.data.split import split
    from ldm.evaluation.held_out import ReconstructionPanel
    from ldm.export.final import finalize_autoencoder
    from ldm.training import dry_run
    from ldm.training.run import Run

    data = config.data
    run = Run(config, out, dry=dry, find_unused_parameters=bool(config.objective.stages))
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.list_unreadable(dataset.bad)
    training, held_out = split(dataset.groups, data.held_out, data.split_seed)
    classes = len(dataset.classes)
    reads_classes = config.objective.penalties.classification is not None
    autoencoder = create_trainable(config.autoencoder, image=data.shape, classes=classes if reads_classes else 0)
    discriminator = create_discriminator(
        config.objective.discriminator, image_channels=data.channels, steps=config.run.steps
    )
    reconstruction = run.main_first(
        lambda: ReconstructionObjective(
            autoencoder, config.objective, discriminator, steps=config.run.steps, classes=classes
        )
    )
    objective = run.prepare(reconstruction, trains=autoencoder, window=reconstruction.schedule.window)
    if discriminator is not None:
        metric = run.prepare(
            DiscriminatorObjective(discriminator),
            trains=discriminator,
            optim=discriminator.optim,
            name="discriminator",
            window=discriminator.window,
        )
        run.watch(SaturationMonitor())
    run.resume(dataset.fingerprint, reconstruction.perceptual_weights)
    batches = ImageBatches(dataset, data, run.order(training.tolist()))

    def train_step(step: int, batch: ImageBatch) -> None:
        losses = objective(batch, run.rng)
        run.update(losses.total)
        terms = losses.terms
        if discriminator is not None and discriminator.learns(step):
            judged = metric(**losses.outputs)
            run.update(judged.total, of="discriminator")
            terms = terms | judged.terms
        run.log(terms)

    if dry:
        return dry_run.report(run, train_step, batches, autoencoder.latent_shape(data.sides), data)
    panel = ReconstructionPanel(dataset, data, held_out if len(held_out) else training, objective=config.objective)
    for step, batch in run.steps(batches):
        train_step(step, batch)
        if run.panel_is_due():
            run.record(**panel.draw(run.ema_model(), run.panel_path()))
    finalize_autoencoder(run, dataset, data, training, held_out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
