"""Ablation of the losses of a small autoencoder: a table of equal, short budgets, each row with its commands.

    python benchmarks/losses.py runs/losses [--steps 300] [--data emoji photos] [--only f4] [--network kl]

Emoji (64 x 64, split by group) and 64 x 64 crops of photographs (split by photograph), downsampled by 4 and by 8. The
perceptual loss sees EfficientNet-Lite0, the feature distance and the Fréchet distance EfficientNet-Lite1: no model is
evaluated with the network it was trained against. The last two losses, which shape the latents, have an encoder that
learns. Seconds are of CPU, of the training command. Both data sets lie in
../shared/data; one that is not there is left out. A row that is there already is not run again.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from PIL import Image

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.data.datasets import open_dataset
from ldm.pictures import grid, save_png, upscaled
from ldm.script_configs import TrainVAEConfig

# isort: off
from runs import SHARED, Metrics, cells, folder_name, from_root, print_table, ran, row

NETWORKS = {  # its config and, by factor, its flags; f8 of `residual` has as many numbers as f4
    "residual": (
        "folder",
        {"f4": "", "f8": "--autoencoder.network.downsampling 8 --autoencoder.bottleneck.channels 16"},
    ),
    "kl": (
        "kl-f4",
        {
            "f4": "--autoencoder.network.widths '[16, 32, 64]'",
            "f8": "--autoencoder.network.widths '[16, 32, 64, 64]'",
        },
    ),
}
PERCEPTUAL = (
    "--objective.perceptual.backbone features --objective.perceptual.weights-file {out}/lite0"
    " --objective.perceptual.weight 0.1"
)
DISCRIMINATOR = "--objective.discriminator.weight 0.25 --objective.discriminator.width 32"
CLEAN = "--objective.latent_corruption null"  # the config of `residual` has one
LOSSES = {
    "L1 + KL": CLEAN,
    "+ perceptual": f"{CLEAN} {PERCEPTUAL}",
    "+ perceptual + discriminator": f"{CLEAN} {PERCEPTUAL} {DISCRIMINATOR}",
    "+ equivariance": f"{CLEAN} --objective.equivariance.probability 0.5",
    "+ latent noise": "--objective.latent_corruption.kind interpolation",
}
SHAPE_CODE = ("+ equivariance", "+ latent noise")  # for an encoder that learns
ENCODER_TRAINED = "--autoencoder.network.blocks 1 --autoencoder.network.encoder-lr-factor 0.03"
COLUMNS = {
    "PSNR": ("psnr", "{:.2f}"),
    "SSIM": ("ssim", "{:.3f}"),
    "feature distance": ("feature_distance_tf_efficientnet_lite1", "{:.3f}"),
    "Fréchet": ("frechet_tf_efficientnet_lite1", "{:.1f}"),
    "spectrum slope": ("latent_spectrum_slope", "{:.2f}"),
    "Jacobian": ("encoder_jacobian", "{:.3f}"),
    "CPU s": ("seconds", "{:.0f}"),
}


def crops(folder: Path) -> Path:
    """Photographs at half size, cut into squares of 64 pixels; those of one photograph are a group."""
    if (folder / "metadata.jsonl").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for file in sorted((SHARED / "photos").glob("*.jpg")):
        photo = Image.open(file).convert("RGB").reduce(2)
        for top in range(0, photo.height - 63, 64):
            for left in range(0, photo.width - 63, 64):
                name = f"{file.stem}-{top}-{left}.png"
                photo.crop((left, top, left + 64, top + 64)).save(folder / name)
                lines.append(json.dumps({"file_name": name, "group": file.stem}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@torch.no_grad()
def picture(out: Path, data: str, factor: str, losses: list[str], count: int = 10) -> None:
    """The same held-out images as every row of a table reconstructs them, the images themselves on top."""
    runs = [out / folder_name(data, factor, name) for name in losses]
    _, held_out = open_dataset(reader.load(TrainVAEConfig, runs[0] / "config.yaml", {}).data).split()
    images = held_out.evenly_spaced(count).images()
    rows = [images, *(Autoencoder.load(run).reconstruct(images) for run in runs)]
    save_png(upscaled(grid(torch.cat(rows), columns=count)), out / f"{data}-{factor}.png")


def loss_row(options: argparse.Namespace, out: Path, data: str, folder: Path, factor: str, name: str) -> Metrics:
    """The metrics of one row."""
    run, (config, factors) = out / folder_name(data, factor, name), NETWORKS[options.network]
    train = " ".join(
        filter(
            None,
            [
                f"train_vae.py configs/vae/{config}.yaml --data.path {folder} --out {run} --run.steps {options.steps}",
                f"--run.batch-size 16 --optim.warmup 30 {factors[factor]}",
                LOSSES[name].format(out=out),
                ENCODER_TRAINED if name in SHAPE_CODE and options.network == "residual" else "",
                options.flags,
            ],
        )
    )
    lite1 = f"--lpips features --lpips-weights {out}/lite1 --fid features --fid-weights {out}/lite1"
    return row(run, [train, f"-m ldm evaluate {run} {lite1} --out {run}/evaluation.json"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", nargs="+", default=["emoji", "photos"], choices=["emoji", "photos"])
    parser.add_argument("--only", nargs="+", default=["f4", "f8"], choices=["f4", "f8"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES), metavar="NAME")
    parser.add_argument("--network", default="residual", choices=list(NETWORKS))
    parser.add_argument("--flags", default="", help="of the training of every row")
    options = parser.parse_args()
    out, rows = from_root(options.out), []
    for number in "01":
        if not (out / f"lite{number}").exists():
            ran(f"benchmarks/lite.py {out}/lite{number} {number}")
    for data in options.data:
        source = SHARED / {"emoji": "noto-emoji-64", "photos": "photos"}[data]
        if not source.exists():
            print(f"{data}: left out, {source} is not there")
            continue
        folder = Path(os.path.relpath(source)) if data == "emoji" else crops(out / "photos")
        for factor in options.only:
            for name in options.losses:
                metrics = loss_row(options, out, data, folder, factor, name)
                rows.append([f"{data} {factor}", name, *cells(COLUMNS, metrics)])
            picture(out, data, factor, options.losses)
    print_table(["data", "losses", *COLUMNS], rows)


if __name__ == "__main__":
    main()
