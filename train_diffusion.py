"""Trains the denoiser that a config describes, in the latent space of an autoencoder or on pixels, and exports both."""

import sys
from pathlib import Path

from ldm.config.command_line import Option, parse
from ldm.errors import exit_code_of
from ldm.settings import TrainDiffusionConfig, with_data_from

OPTIONS = {
    "autoencoder": Option(
        "a finished run of train_vae.py, a diffusers AutoencoderKL folder, or a hub id; left out: pixels", "X"
    ),
    "out": Option("the run folder: checkpoints, log, samples and the finished model", "DIR", required=True),
    "cache": Option("where the encoded images are kept, to share them between runs; left out: DIR/latents", "DIR"),
    "dry-run": Option("print the resolved config, sizes, time and memory of a few real steps; train nothing"),
}


def main(arguments: list[str]) -> None:
    command = parse(TrainDiffusionConfig, arguments, prog="train_diffusion.py", description=__doc__, options=OPTIONS)
    options = command.options
    out, cache, source = Path(str(options["out"])), options["cache"], options["autoencoder"]
    train(
        command.config,
        out,
        source=str(source) if source else None,
        cache=Path(str(cache)) if cache else out / "latents",
        dry=bool(options["dry-run"]),
    )


def train(config: TrainDiffusionConfig, out: Path, *, source: str | None, cache: Path, dry: bool = False) -> None:
    config, data = with_data_from(source, config)
    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.batch import LatentBatch
    from ldm.data.datasets import open_dataset
    from ldm.data.split import split
    from ldm.diffusion.objective import DenoisingObjective
    from ldm.evaluation.held_out import SamplePanel
    from ldm.export.final import finalize_diffusion
    from ldm.latents import LatentBatches, open_autoencoder, open_latents
    from ldm.pipeline import DiffusionModelConfig, check_latent_shape, create_denoiser
    from ldm.training import dry_run
    from ldm.training.run import Run

    run = Run(config, out, dry=dry)
    if run.is_finished():
        return
    dataset = run.main_first(lambda: open_dataset(data, progress=run.is_main))
    run.list_unreadable(dataset.bad)
    training, held_out = split(dataset.groups, data.held_out, data.split_seed)
    autoencoder, standardized = open_autoencoder(source, data, dataset.fingerprint)
    check_latent_shape(config.denoiser, autoencoder.latent_shape(data.sides))
    latents = open_latents(run, cache, autoencoder.to(run.device), dataset, data)
    if not standardized:
        latents = latents.standardize(autoencoder, training.tolist())
    dropout = config.objective.condition_dropout
    description = DiffusionModelConfig(
        latents.shape, tuple(dataset.classes), config.denoiser, config.sampling, knows_no_label=dropout > 0
    )
    denoiser = create_denoiser(description)
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume(latents.fingerprint)
    batches = LatentBatches(latents, dataset, config.objective, run.order(training.tolist()))

    def train_step(step: int, batch: LatentBatch) -> None:
        losses = objective(batch, run.rng)
        run.update(losses.total)
        run.log(losses.terms)

    if dry:
        return dry_run.report(run, train_step, batches, latents.shape, data)
    panel = SamplePanel(autoencoder, description, latents, dataset.labels, held_out)
    for step, batch in run.steps(batches):
        train_step(step, batch)
        if run.panel_is_due():
            run.record(**panel.draw(run.ema_model(), run.panel_path()))
    finalize_diffusion(run, autoencoder, description)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
