"""Trains the autoencoder that a config describes, and exports it as a stock diffusers AutoencoderKL."""

import sys
from pathlib import Path

from ldm.command_line import Option, parse
from ldm.errors import exit_code_of
from ldm.settings import StageOne

OPTIONS = {
    "out": Option("the run folder: checkpoints, log, panels and the finished vae/", "DIR", required=True),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = parse(StageOne, arguments, prog="train_vae.py", description=__doc__, options=OPTIONS)
    train(command.settings, Path(str(command.options["out"])), dry=bool(command.options["dry-run"]))


def train(settings: StageOne, out: Path, *, dry: bool = False) -> None:
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.autoencoder.critic import CollapseWatch, CriticObjective, build_critic
    from ldm.autoencoder.model import build
    from ldm.autoencoder.objective import ReconstructionObjective
    from ldm.data.batches import ImageBatch, ImageBatches
    from ldm.data.datasets import open_dataset
    from ldm.data.split import split
    from ldm.evaluation import Reconstructions
    from ldm.finish import finish_autoencoder
    from ldm.training import dry_run
    from ldm.training.run import Run

    data = settings.data
    run = Run(settings, out, dry=dry, parts_rest=bool(settings.objective.stages))
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.list_unreadable(dataset.bad)
    training, held_out = split(dataset.groups, data.held_out, data.split_seed)
    classes = len(dataset.classes)
    reads_classes = settings.objective.penalties.classification is not None
    autoencoder = build(settings.autoencoder, image=data.shape, classes=classes if reads_classes else 0)
    critic = build_critic(settings.objective.critic, image_channels=data.channels, steps=settings.run.steps)
    reconstruction = run.main_first(
        lambda: ReconstructionObjective(
            autoencoder, settings.objective, critic, steps=settings.run.steps, classes=classes
        )
    )
    objective = run.prepare(reconstruction, trains=autoencoder, span=reconstruction.schedule.span)
    if critic is not None:
        judge = run.prepare(CriticObjective(critic), trains=critic, optim=critic.optim, name="critic", span=critic.span)
        run.watch(CollapseWatch())
    run.resume(dataset.fingerprint, reconstruction.judges)
    batches = ImageBatches(dataset, data, run.order(training.tolist()))

    def train_step(step: int, batch: ImageBatch) -> None:
        losses = objective(batch, run.random)
        run.update(losses.total)
        terms = losses.terms
        if critic is not None and critic.learns(step):
            judged = judge(**losses.outputs)
            run.update(judged.total, of="critic")
            terms = terms | judged.terms
        run.log(terms)

    if dry:
        return dry_run.report(run, train_step, batches, autoencoder.latent_shape(data.sides), data)
    panel = Reconstructions(dataset, data, held_out if len(held_out) else training, objective=settings.objective)
    for step, batch in run.steps(batches):
        train_step(step, batch)
        if run.panel_is_due():
            run.record(**panel.draw(run.averaged(), run.panel_path()))
    finish_autoencoder(run, dataset, data, training, held_out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
