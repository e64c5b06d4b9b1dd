"""What every run leaves behind at its end, ready to use: `vae/`, or all that sampling needs, and a report."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from ldm.autoencoder.model import Autoencoder
from ldm.checkpoint import replace_folder, write_atomically
from ldm.data.datasets import Dataset
from ldm.errors import CheckpointError
from ldm.evaluation.held_out import head_accuracy, held_out_psnr, latent_statistics, pca_baselines, restoration_metrics
from ldm.export.diffusers_pipeline import save_denoiser_model, save_index
from ldm.pipeline import DiffusionModelConfig
from ldm.training.run import Run

MAX_SHOWN = 16  # channels; of more, the range


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in place of `folder` in one move."""
    new = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(new, ignore_errors=True)  # what an interrupted attempt left
        new.mkdir(parents=True)
        write(new)
    except (OSError, SafetensorError) as error:  # a full disk reaches safetensors, which has an error of its own for it
        shutil.rmtree(new, ignore_errors=True)
        raise CheckpointError(f"could not write {folder}: {error}; the same command tries again") from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(new, folder)


def finalize_autoencoder(run: Run, dataset: Dataset, data: Any, training: np.ndarray, held_out: np.ndarray) -> None:
    """Measure the averaged autoencoder's latents, export it as `vae/`, and report its figures beside PCA."""

    def finish() -> None:
        autoencoder: Autoencoder = run.ema_model()
        objective = run.config.objective
        autoencoder.decodes_images = objective.target == "images"
        train, others = training.tolist(), held_out.tolist()
        reads = autoencoder.head is not None and bool(others)
        accuracy = head_accuracy(autoencoder, dataset, data, others, run.device) if reads else None
        statistics = latent_statistics(autoencoder, dataset, data, train, run.device)
        autoencoder.standardize(statistics.mean, statistics.std)
        write_folder_atomically(run.folder.path / "vae", autoencoder.save)
        exported = Autoencoder.load(run.folder.path / "vae").to(run.device)
        again = latent_statistics(exported, dataset, data, train, run.device)
        figures: dict[str, Any] = {"latent_mean": again.mean.tolist(), "latent_std": again.std.tolist()}
        if others:
            if exported.decodes_images:
                figures["held_out_psnr"] = held_out_psnr(exported, dataset, data, others, run.device)
            figures |= pca_baselines(dataset, data, train, others, autoencoder.numbers(data.sides))
            figures |= restoration_metrics(exported, objective, dataset, data, train, others, run.device)
            if accuracy is not None:
                figures["head_accuracy"] = accuracy
        write_atomically(run.folder.path / "report.json", json.dumps(figures, indent=2).encode())
        for name, value in figures.items():
            if value is not None or name == "pca_psnr":
                run.print(f"{name:20} {shown(value)}")

    run.on_main(finish)
    run.finish()


def shown(value: Any) -> str:
    """A figure, or several, as a person reads it."""
    if value is None:
        return "not defined: fewer training images than numbers"
    if isinstance(value, list) and len(value) > MAX_SHOWN:
        return f"{min(value):.3f} to {max(value):.3f}, in {len(value)} channels"
    return " ".join(f"{number:.3f}" for number in (value if isinstance(value, list) else [value]))


def finalize_diffusion(run: Run, autoencoder: Autoencoder, description: DiffusionModelConfig) -> None:
    """Export the averaged denoiser and the autoencoder together, ready for `sample.py` and for diffusers."""

    def finish() -> None:
        folder = run.folder.path
        write_folder_atomically(folder / "vae", autoencoder.save)
        write_folder_atomically(folder / "unet", lambda new: save_denoiser_model(run.ema_model(), description, new))
        save_index(folder, description)

    run.on_main(finish)
    run.finish()
