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
    from ldm.autoencoder.model import build
    from ldm.autoencoder.objective import ReconstructionObjective
    from ldm.data.batches import ImageBatches
    from ldm.data.datasets import open_dataset
    from ldm.data.split import split
    from ldm.evaluation import Reconstructions
    from ldm.export import finish_autoencoder
    from ldm.training import dry_run
    from ldm.training.run import Run

    data = settings.data
    run = Run(settings, out, dry=dry)
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.list_unreadable(dataset.bad)
    training, held_out = split(dataset.groups, data.held_out, data.split_seed)
    autoencoder = build(settings.autoencoder, image_channels=data.channels, sides=data.sides)
    objective = run.prepare(
        ReconstructionObjective(autoencoder, settings.objective), trains=autoencoder, data=dataset.fingerprint
    )
    batches = ImageBatches(dataset, data, run.order(training.tolist()))
    if dry:
        return dry_run.report(run, objective, batches, autoencoder.latent_shape(data.sides), data)

    panel = Reconstructions(dataset, data, held_out if len(held_out) else training)
    for _, batch in run.steps(batches):
        losses = objective(batch, run.random)
        run.update(losses.total)
        run.log(losses.terms)
        if run.panel_is_due():
            run.record(**panel.draw(run.averaged(), run.panel_path()))
    finish_autoencoder(run, dataset, data, training, held_out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
