"""The autoencoder chosen by the denoiser: the same small denoiser, for as many steps, on the codes of several.

    python benchmarks/first_stages.py runs/first_stages --features lite0      benchmarks/lite.py writes that folder

Each autoencoder is trained for --autoencoder-seconds of one CPU core on emoji, each denoiser for --denoiser-steps that
take the same time in the latents of all, with noise of .05 of their standard deviation:

- `lapped`: configs/vae/folder.yaml, whose encoder is the best lapped transform of the images, without the noise that
  its decoder expects in samples;
- `lapped, sample noise`: configs/vae/folder.yaml as it is;
- `lapped, trained`: the same network, whose encoder has a block and learns as the decoder does;
- `patch PCA`: the first network, whose encoder is the principal components of single patches;
- `kl`: configs/vae/kl-f4.yaml with `bottleneck.noise .05`;
- `lapped, one scale`: the first one's latents, whose channels keep the scale that they have in the image (the norm of
  the decoder's filters) and are divided by one number, where the others' channels have variance 1 each.

400 samples without guidance, of the held-out images' classes, are compared with 800 training images by their features.
A row that is in OUT/first_stages.jsonl already is not trained again.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ldm.autoencoder import lapped_transform
from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.data.datasets import Dataset, open_dataset
from ldm.evaluation.panels import HeldOutLatents
from ldm.latents import LatentCache, open_latents
from ldm.script_configs import TrainDiffusionConfig
from ldm.training.run import Run

# isort: off
from learning import EMOJI, Kept, Row, config_of, measured, over_seeds, trained
from runs import from_root, print_table
from stage_two import CONFIG, Data, SampleMetrics, Training, config_with

ONE_SCALE = ", one scale"
ROWS = {
    "kl": "kl, noise",
    "lapped, trained": "encoder trained",
    "lapped, sample noise": "sample noise",
}  # of learning.py
SMALL: dict[str, Any] = {  # what configs/diffusion/folder.yaml says of one to three minutes
    "denoiser.network": {"kind": "unet", "widths": [32, 64], "blocks": 1, "attention": [1], "dropout": 0.1},
    "run.batch_size": 16,
}
COLUMNS = {
    "PSNR": ("psnr", "{:.2f}"),
    **{f"σ {sigma:g}": (f"loss {sigma:g}", "{:.3f}") for sigma in HeldOutLatents.sigmas},
    "Fréchet": ("frechet", "{:.0f}"),
    "kernel": ("kernel", "{:.3f}"),
}


def autoencoder_of(kind: str, seed: int, seconds: float, dataset: Dataset) -> tuple[Autoencoder, float]:
    """One that was trained for so many seconds, and its PSNR with noise."""
    minimize = (
        functools.partial(lapped_transform.minimize, iterations=0) if kind == "patch PCA" else lapped_transform.minimize
    )
    row = ROWS.get(kind, "residual")
    with mock.patch.object(lapped_transform, "minimize", minimize):
        loop, _ = trained(row, str(EMOJI), seed, seconds, dataset)
    autoencoder = loop.averaged()
    return autoencoder, measured(autoencoder, dataset.split()[1])["with noise"]


def with_one_scale(latents: LatentCache, autoencoder: Autoencoder) -> LatentCache:
    """Channels as large as what they do to the image, divided by one number; the autoencoder takes them so, too."""
    gains = autoencoder.network.channel_gains
    assert gains is not None
    in_image = gains * autoencoder.latent_std.flatten()
    divisor = (in_image.square().mean().sqrt() / in_image).view(-1, 1, 1)
    autoencoder.standardize(torch.zeros_like(divisor), divisor)
    return replace(latents, std=latents.std * divisor)


def rows_of(
    kind: str, seed: int, options: argparse.Namespace, dataset: Dataset, metrics: Callable[[], SampleMetrics]
) -> Iterator[tuple[str, Row]]:
    """What a denoiser makes of the latents of an autoencoder, in each scale."""
    autoencoder, psnr = autoencoder_of(kind, seed, options.autoencoder_seconds, dataset)
    training, held_out = dataset.split()
    run = Run(reader.load(TrainDiffusionConfig, CONFIG, {}), options.out / "run", dry=True)
    latents = open_latents(run, options.out / f"latents-{kind.replace(' ', '-')}-{seed}", autoencoder, dataset)
    latents = latents.standardize(autoencoder, training.indices)
    for scale in ("", ONE_SCALE) if kind == "lapped" else ("",):
        if scale:
            latents = with_one_scale(latents, autoencoder)
        data = Data(autoencoder, dataset, training, held_out, latents)
        config = config_with({**SMALL, "run.seed": seed}, CONFIG)
        training_loop = Training(config, data, options.out, options.denoiser_steps)
        seconds = training_loop.seconds(options.denoiser_steps)
        with torch.no_grad():
            losses = data.losses(training_loop.run.ema_model())
            frechet, kernel = metrics().of(training_loop, data)
        by_level = {f"loss {sigma:g}": loss for sigma, loss in zip(HeldOutLatents.sigmas, losses, strict=True)}
        yield (
            kind + scale,
            {"psnr": psnr, "seconds": seconds, **by_level, "frechet": frechet, "kernel": kernel},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", required=True, help="a folder that benchmarks/lite.py has written")
    parser.add_argument("--autoencoder-seconds", type=float, default=60.0)
    parser.add_argument("--denoiser-steps", type=int, default=350)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if not EMOJI.exists():
        raise SystemExit(f"the emoji are not there: {EMOJI}")
    options.out = from_root(options.out)
    torch.set_num_threads(1)
    dataset = open_dataset(config_of("residual", str(EMOJI), 0, 1).data)

    @functools.cache
    def metrics() -> SampleMetrics:
        return SampleMetrics(options.features, dataset.split()[0])

    kept, found = Kept(options.out / "first_stages.jsonl"), dict[str, list[Row]]()
    for seed in options.seeds:
        for kind in ("lapped", "lapped, sample noise", "lapped, trained", "patch PCA", "kl"):
            names = [kind, kind + ONE_SCALE] if kind == "lapped" else [kind]
            if not all(kept.has(row=name, seed=seed) for name in names):
                for name, row in rows_of(kind, seed, options, dataset, metrics):
                    kept.row(lambda row=row: row, row=name, seed=seed)
            for name in names:
                found.setdefault(name, []).append(kept.row(dict, row=name, seed=seed))
    print_table(
        ["autoencoder", *COLUMNS],
        [[name, *(over_seeds(rows, key, form) for key, form in COLUMNS.values())] for name, rows in found.items()],
    )


if __name__ == "__main__":
    main()
