"""Benchmark of the memorization report: a model that copies its training images beside one that does not.

    python benchmarks/memorization.py runs/memorization [--steps 1200] [--samples 200] [--flags="--run.graph on"]

The same denoiser is trained for as many steps on 200 emoji and on 3,400, without dropout and without mirror images, in
the latent space of one autoencoder, of 4 x 4 x 16 numbers. Each is measured by `ldm evaluate
--generate` with EfficientNet-Lite0 for features. Both have the same held-out emoji, of groups of their own. The few are
overfitted on purpose, and should be caught, by their copies and by the step since which the held-out loss rises; the
many should not. The samples that are most like training images are drawn in few.png and many.png. Seconds are of CPU,
of the training command on one thread. A row that is there already is not run again.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset

# isort: off
from runs import SHARED, Metrics, cells, from_root, print_table, ran, row

EMOJI = SHARED / "noto-emoji-64"
FEW = 200
AUTOENCODER = "--autoencoder.network.downsampling 16 --autoencoder.bottleneck.channels 16 --run.steps 100"
DENOISER = (
    "--data.flip false --denoiser.network.dropout 0 --denoiser.network.widths '[64, 128]'"
    " --denoiser.network.attention '[]' --optim.kind muon --optim.lr 5e-3 --optim.schedule linear --run.batch-size 64"
)
COLUMNS = {
    "training images": ("training_images", "{:,}"),
    "copies, pixels": ("copies_pixels", "{:.1%}"),
    "held out": ("held_out_copies_pixels", "{:.1%}"),
    "copies, latents": ("copies_latents", "{:.1%}"),
    "held out ": ("held_out_copies_latents", "{:.1%}"),
    "copies, features": ("copies_features", "{:.1%}"),
    "held out  ": ("held_out_copies_features", "{:.1%}"),
    "flagged": ("flagged", "{}"),
    "overfitting since": ("overfitting_since", "{:,}"),
    "lowest held-out loss": ("lowest_held_out_loss", "{:.3f}"),
    "at the end": ("held_out_loss", "{:.3f}"),
    "CPU s": ("seconds", "{:.0f}"),
}


def write_split(folder: Path, training: Subset, held_out: Subset) -> Path:
    """A folder of these images as its splits, with their groups."""
    lines = []
    for split, images in (("train", training), ("val", held_out)):
        for index in images.indices:
            source, group = images.dataset.names[index], images.dataset.groups[index]
            name = f"{split}/{source.replace('/', '-')}"
            (folder / split).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(EMOJI / source, folder / name)
            lines.append(json.dumps({"file_name": name, "group": group}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def data_row(out: Path, name: str, steps: int, samples: int, flags: str) -> Metrics:
    """The metrics of the denoiser that is trained on one of the folders."""
    run = out / name
    commands = [
        f"train_diffusion.py configs/diffusion/folder.yaml --autoencoder {out}/vae --data.path {out}/data/{name}"
        f" --out {run} {DENOISER} --run.steps {steps} {flags}".rstrip(),
        f"-m ldm evaluate {run} --generate {samples} --sampler dpm++2m --steps 12"
        f" --fid features --fid-weights {out}/lite0"
        f" --out {run}/evaluation.json --memorization-sheet {out}/{name}.png",
    ]

    def measure(evaluation: dict[str, Any]) -> Metrics:
        found, report = evaluation["memorization"], json.loads((run / "report.json").read_text())
        metrics = {"training_images": found["protocol"]["training_images"], "flagged": found["flagged"], **report}
        for space, figures in found["spaces"].items():
            metrics[f"copies_{space}"] = figures["copies"]
            metrics[f"held_out_copies_{space}"] = figures["held_out"]["copies"]
        return metrics

    return row(run, commands, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--flags", default="", help="of the training of denoisers")
    options = parser.parse_args()
    out = from_root(options.out)
    if not EMOJI.exists():
        raise SystemExit(f"the emoji are not there: {EMOJI}")
    if not (out / "data").exists():
        training, held_out = open_dataset(FolderConfig(path=str(EMOJI), size=64)).split()
        folder = out / "data.partial"
        write_split(folder / "few", training.evenly_spaced(FEW), held_out)
        write_split(folder / "many", training, held_out)
        os.rename(folder, out / "data")
    if not (out / "lite0").exists():
        ran(f"benchmarks/lite.py {out}/lite0")
    ran(f"train_vae.py configs/vae/folder.yaml --data.path {out}/data/many --out {out}/vae {AUTOENCODER}")
    rows = [
        [name, *cells(COLUMNS, data_row(out, name, options.steps, options.samples, options.flags))]
        for name in ("few", "many")
    ]
    print_table(["", *COLUMNS], rows)


if __name__ == "__main__":
    main()
