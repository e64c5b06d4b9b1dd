"""The final export of a run: `vae/`, or all that sampling needs (`unet/`, `vae/`, ...), and report.json."""

import json
from collections.abc import Mapping
from typing import Any

from ldm.autoencoder.model import Autoencoder
from ldm.checkpoint import write_atomically, write_folder_atomically
from ldm.data.datasets import Subset
from ldm.diffusion.model import DiffusionModelConfig
from ldm.evaluation.formatting import format_metric
from ldm.evaluation.held_out import (
    MOST_MEASURED,
    head_accuracy,
    held_out_psnr,
    held_out_psnr_of_sample,
    latent_statistics,
    noise_metrics,
    pca_baselines,
    restoration_metrics,
)
from ldm.export.diffusers_pipeline import save_pipeline
from ldm.text.encoder import TextEncoder
from ldm.text.prompts import PromptEncoders
from ldm.training.run import Run


def finalize_autoencoder(run: Run, training: Subset, held_out: Subset) -> None:
    """Measure the averaged autoencoder's latents, export it as `vae/`, and report its metrics beside PCA.

    All processes measure; of very many images a sample.
    """
    training, held_out = (
        measured(run, images, what) for images, what in ((training, "training"), (held_out, "held-out"))
    )
    vae, device, spread = run.folder.path / "vae", run.device, run.processes.map
    autoencoder: Autoencoder = run.ema_model()
    autoencoder.decodes_images = run.config.objective.target == "images"
    metrics: dict[str, Any] = {}
    if autoencoder.head is not None and len(held_out):
        metrics["head_accuracy"] = head_accuracy(autoencoder, held_out, device, spread)
    statistics = latent_statistics(autoencoder, training, device, spread)
    autoencoder.standardize(statistics.mean, statistics.std)
    run.on_main(lambda: write_folder_atomically(vae, autoencoder.save))
    exported = run.main_first(lambda: Autoencoder.load(vae)).to(device)
    again = latent_statistics(exported, training, device, spread)
    metrics |= {"latent_mean": again.mean.tolist(), "latent_std": again.std.tolist()}
    metrics |= {name: value for name, value in noise_metrics(exported).items() if value is not None}
    if len(held_out) and exported.decodes_images:
        metrics["held_out_psnr"] = held_out_psnr(exported, held_out, device, spread)
        if exported.bottleneck.is_stochastic:
            metrics["held_out_psnr_of_sample"] = held_out_psnr_of_sample(exported, held_out, device, spread)

    def report() -> None:
        if len(held_out):
            latent = autoencoder.active_shape(training.shape[1:])
            metrics.update(pca_baselines(training, held_out, latent))
            metrics.update(restoration_metrics(exported, run.config.objective, training, held_out, device))
        write_atomically(run.folder.path / "report.json", json.dumps(metrics, indent=2).encode())
        for name, value in metrics.items():
            if value is not None or name == "pca_psnr":
                undefined = "not defined: fewer training images than numbers"
                run.print(f"{name:20} {format_metric(value, undefined=undefined, spec='.3f')}")

    run.on_main(report)
    run.finish()


def measured(run: Run, images: Subset, what: str) -> Subset:
    """The images that are measured at the end of a run: all, or of very many a sample, which is said."""
    if len(images) > MOST_MEASURED:
        run.print(f"of the {len(images):,} {what} images {MOST_MEASURED:,} are measured, evenly spaced")
    return images.evenly_spaced(MOST_MEASURED)


def finalize_diffusion(
    run: Run, autoencoder: Autoencoder, config: DiffusionModelConfig, encoders: Mapping[str, TextEncoder] | None = None
) -> None:
    """Export the denoiser, its text encoders and the autoencoder together, ready for `sample.py` and for diffusers.

    The denoiser is the average at the end, or the best one if that was kept; report.json says what the held-out loss
    was there.
    """

    def finalize() -> None:
        prompts = PromptEncoders(config.schema, opened=encoders)
        save_pipeline(run.folder.path, autoencoder, run.final_model(), config, prompts=prompts)
        validation, steps = run.validation, run.run_config.steps
        if not (metrics := validation.report()):
            return
        kept = validation.lowest_step if validation.keeps_best else steps
        metrics["exported_step"] = kept
        write_atomically(run.folder.path / "report.json", json.dumps(metrics, indent=2).encode())
        if validation.keeps_best:
            values = metrics["lowest_held_out_loss"], metrics.get("held_out_loss")
            lowest, last = (format_metric(value, undefined="not a number", spec=".3g") for value in values)
            run.print(f"kept step {kept:,} of {steps:,}: held-out loss {lowest}, {last} at the end")

    run.on_main(finalize)
    run.finish()
