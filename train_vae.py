"""Trains the autoencoder that a config describes, and exports it: of network.kind kl, as a stock AutoencoderKL."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.config.command_line import Option, parse
from ldm.script_configs import TrainVAEConfig
from ldm.terminal import exit_code_of

if TYPE_CHECKING:
    from ldm.training.step import TrainingStep

OPTIONS = {
    "out": Option("the run folder: checkpoints, log, panels and the finished vae/", "DIR", required=True),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = parse(TrainVAEConfig, arguments, prog="train_vae.py", description=__doc__, options=OPTIONS)
    train(command.config, Path(str(command.options["out"])), dry=bool(command.options["dry-run"]))


def train(config: TrainVAEConfig, out: Path, *, dry: bool = False) -> None:
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.autoencoder.config_checks import check_compatibility
    from ldm.autoencoder.losses.discriminator import DiscriminatorObjective, SaturationMonitor, create_discriminator
    from ldm.autoencoder.model import create_trainable
    from ldm.autoencoder.objective import ReconstructionObjective
    from ldm.data.batches import ImageBatches
    from ldm.data.datasets import list_dataset
    from ldm.data.summary import describe
    from ldm.evaluation.panels import ReconstructionPanel
    from ldm.export.finalize import finalize_autoencoder
    from ldm.randomness import seed_weights
    from ldm.training.run import Run

    loss = config.objective
    run = Run(config, out, dry=dry, find_unused_parameters=bool(loss.stages))
    if run.is_finished():
        return
    dataset = run.main_first(lambda: list_dataset(config.data))
    training, held_out = dataset.split()
    sampler = run.batch_sampler(training)
    seed_weights(config.run.seed)
    image, classes, steps = config.data.shape, len(dataset.classes), config.run.steps
    head = classes if loss.penalties.classification else 0
    autoencoder = create_trainable(config.autoencoder, image=image, classes=head)
    discriminator = create_discriminator(loss.discriminator, image_channels=image[0], steps=steps)
    run.on_main(lambda: check_compatibility(autoencoder, loss, classes))
    run.main_first(lambda: dataset.load(progress=run.is_main))
    run.print(describe(dataset))
    run.initialize(autoencoder, lambda: autoencoder.initialize(lambda count: training.evenly_spaced(count).images()))
    reconstruction = run.main_first(lambda: ReconstructionObjective(autoencoder, loss, discriminator, steps=steps))
    objective = run.prepare(reconstruction, trains=autoencoder, schedule=reconstruction.schedule)
    if discriminator is not None:
        adversarial, optim = DiscriminatorObjective(discriminator), discriminator.optim
        discriminator_objective = run.prepare(
            adversarial, trains=discriminator, optim=optim, name="discriminator", schedule=discriminator
        )
        run.add_monitor(SaturationMonitor())
    run.resume(dataset.fingerprint, reconstruction.perceptual_weights)
    batches = ImageBatches(dataset, sampler, run.device, config.run)
    panel = ReconstructionPanel(held_out if len(held_out) else training, objective=loss)

    def learn(step: "TrainingStep") -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        if "code" in losses.outputs:
            autoencoder.bottleneck.update_usage(losses.outputs["code"], step.now, is_last=step.is_last)
        if discriminator is not None and discriminator.learns(step.number):
            adversary = discriminator_objective(losses.outputs["images"], losses.outputs["reconstruction"])
            step.update(adversary.total, of="discriminator")
            discriminator.update_logit_means(adversary.outputs)
            losses.terms.update(adversary.terms)
        step.log(losses.terms)

    for step in run.steps(batches, learn):
        if step.draws_panel:
            run.draw_panel(panel, step)
    if dry:
        return run.report(image, autoencoder.latent_shape(image[1:]), training, held_out)
    finalize_autoencoder(run, training, held_out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
