"""What each loss of stage one does for a small autoencoder: a table of equal, short budgets, each row with its command.

    python benchmarks/losses.py runs/losses [--steps 300] [--data emoji photos] [--only f4]

Emoji (64 x 64, split by group) and 64 x 64 crops of photographs (split by photograph), downsampled by 4 and by 8. The
perceptual loss sees EfficientNet-Lite0, the judge is EfficientNet-Lite1: nobody is judged by what it was trained on.
Seconds are of CPU, of the training command. Both data sets lie in ../shared/data; one that is not there is left out. A
row that is there already is not run again.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.data.datasets import open_dataset
from ldm.data.split import split
from ldm.evaluation.held_out import ReconstructionPanel
from ldm.pictures import grid, save_png, upscaled
from ldm.settings import TrainVAEConfig

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
FACTORS = {"f4": "[16, 32, 64]", "f8": "[16, 32, 64, 64]"}
PERCEPTUAL = ("--objective.perceptual.backbone features --objective.perceptual.weights {out}/lite0"
              " --objective.perceptual.weight 0.1")  # fmt: skip
ROWS = {
    "L1 + KL": "",
    "+ perceptual": PERCEPTUAL,
    "+ perceptual + discriminator": f"{PERCEPTUAL} --objective.discriminator.weight 0.25 --objective.discriminator.width 32",
    "+ equivariance": "--objective.equivariance.probability 0.5",
    "+ latent noise": "--objective.latent_corruption.kind interpolation",
}
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


def ran(*command: str) -> float:
    """Runs a command of ours on one thread; its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def folder_of(out: Path, data: str, factor: str, name: str) -> Path:
    """Where the run of a row lies."""
    return out / f"{data}-{factor}-{name.strip('+ ').replace(' + ', '-').replace(' ', '-').lower()}"


@torch.no_grad()
def picture(out: Path, data: str, factor: str, count: int = 10) -> None:
    """The same held-out images as every row of a table gives them back, the images themselves on top."""
    runs = [folder_of(out, data, factor, name) for name in ROWS]
    config = reader.load(TrainVAEConfig, runs[0] / "config.yaml", {}).data
    dataset = open_dataset(config)
    _, held_out = split(dataset.groups, config.held_out, config.split_seed)
    images = ReconstructionPanel(dataset, config, held_out, count).images
    rows = [images, *(Autoencoder.load(run).reconstruct(images) for run in runs)]
    save_png(upscaled(grid(torch.cat(rows), columns=count)), out / f"{data}-{factor}.png")


def row(out: Path, data: str, folder: Path, factor: str, name: str, steps: int) -> dict[str, float]:
    """The figures of one row, from where they were written or from a run of its own."""
    run = folder_of(out, data, factor, name)
    report, figures = run / "row.json", run / "evaluation.json"
    command = (
        f"train_vae.py configs/vae/folder.yaml --data.path {folder} --out {run} --run.steps {steps}"
        f" --run.batch-size 16 --optim.warmup 30 --autoencoder.network.widths '{FACTORS[factor]}'"
        f" {ROWS[name].format(out=out)}"
    )
    print(f"python {command}", flush=True)
    if not report.exists() or json.loads(report.read_text())["command"] != command:
        shutil.rmtree(run, ignore_errors=True)  # half a row cannot be timed
        seconds = ran(*shlex.split(command))
        metric = f"features --lpips-weights {out}/lite1 --fid features --fid-weights {out}/lite1"
        ran("-m", "ldm", "evaluate", str(run), "--lpips", *shlex.split(metric), "--out", str(figures))
        found = json.loads(figures.read_text())
        found["figures"]["seconds"] = seconds
        found["command"] = command
        report.write_text(json.dumps(found, indent=2))
    return json.loads(report.read_text())["figures"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", nargs="+", default=["emoji", "photos"], choices=["emoji", "photos"])
    parser.add_argument("--only", nargs="+", default=list(FACTORS), choices=list(FACTORS))
    options = parser.parse_args()
    out = Path(os.path.relpath(options.out, ROOT))
    os.chdir(ROOT)
    for number in "01":
        ran("benchmarks/lite.py", f"{out}/lite{number}", number)
    lines = []
    for data in options.data:
        source = SHARED / {"emoji": "noto-emoji-64", "photos": "photos"}[data]
        if not source.exists():
            print(f"{data}: left out, {source} is not there")
            continue
        folder = Path(os.path.relpath(source)) if data == "emoji" else crops(out / "photos")
        for factor in options.only:
            for name in ROWS:
                figures = row(out, data, folder, factor, name, options.steps)
                cells = [form.format(figures[key]) for key, form in COLUMNS.values()]
                lines.append(f"| {data} {factor} | {name} | {' | '.join(cells)} |")
            picture(out, data, factor)
    print("\n| data | losses | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
