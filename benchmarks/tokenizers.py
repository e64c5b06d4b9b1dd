"""Which autoencoder makes latents that a denoiser likes? Five ways to train one, the same small denoiser behind each.

    python benchmarks/tokenizers.py runs/tokenizers [--seeds 0 1] [--steps 300] [--denoiser-steps 500]

On digits, at equal budgets of steps and images: KL alone, and with latent noise, masking, equivariance, contraction.
An autoencoder is measured by held-out PSNR; its latents by what a denoiser trained in them draws, without guidance:
the Fréchet distance of 1,000 samples to the real digits in features of EfficientNet-Lite1, the fraction read as their
class by a classifier of real digits, and how well a classifier trained on the samples alone reads real held-out ones.
The row "pixels" is configs/diffusion/pixel.yaml, which has no autoencoder, and another budget (--pixel-steps). The last
line says the same of the real held-out digits. One thread. A row that is there already is not run again.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC

from ldm.data.config import MNIST5kConfig
from ldm.data.datasets import open_dataset
from ldm.data.split import split
from ldm.evaluation.feature_networks import FeatureExtractor, open_extractor
from ldm.evaluation.metrics import frechet_distance
from ldm.shapes import to_float

ROOT = Path(__file__).parent.parent
NOISE = "--objective.latent_corruption.kind interpolation --objective.latent_corruption.strength 1.0"
MASK = "--objective.corruption.kind mask --objective.corruption.fraction '[0.0, 0.5]' --objective.corruption.whole 0.2"
TOKENIZERS = {
    "KL": "",
    "+ latent noise": NOISE,
    "+ masking": MASK,
    "+ equivariance": "--objective.equivariance.probability 0.5",
    "+ contraction": "--objective.penalties.jacobian.weight 0.05",
}
COLUMNS = {
    "held-out PSNR": ("psnr", "{:.2f}"),
    "Fréchet": ("frechet", "{:.1f}"),
    "read as class": ("read", "{:.1%}"),
    "classifier from samples": ("taught", "{:.1%}"),
    "spectrum slope": ("latent_spectrum_slope", "{:.2f}"),
    "Jacobian": ("encoder_jacobian", "{:.2f}"),
}


def ran(*command: str) -> None:
    """Runs a command of ours on one thread."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


class Judge:
    """Real digits, and what tells how much like them others are."""

    def __init__(self, weights: Path):
        dataset = open_dataset(MNIST5kConfig())
        training, held_out = split(dataset.groups, dataset.config.held_out, dataset.config.split_seed)
        images = torch.stack([dataset.image(index) for index in range(len(dataset))])
        self.rows, self.labels = images.flatten(1).numpy() / 255, dataset.labels
        self.training, self.held_out, self.images = training, held_out, images
        extractor = open_extractor("features", str(weights), 1, torch.device("cpu"))
        assert extractor is not None
        self.extractor: FeatureExtractor = extractor
        self.reader = SVC(C=5, gamma=0.02).fit(self.rows[training], self.labels[training])
        self.features = self.features_of(images[training])

    @torch.no_grad()
    def features_of(self, images: torch.Tensor) -> torch.Tensor:
        """A row of features for each uint8 image."""
        return torch.cat([self.extractor.features(to_float(part)) for part in images.split(100)])

    def figures(self, images: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
        """Of drawn images and the classes that they were asked to be."""
        rows = images.flatten(1).numpy() / 255
        taught = SVC(C=5, gamma=0.02).fit(rows, labels)
        return {
            "frechet": frechet_distance(self.features, self.features_of(images)),
            "read": self.reader.score(rows, labels),
            "taught": taught.score(self.rows[self.held_out], self.labels[self.held_out]),
        }


def row(out: Path, metric: Judge, name: str, seed: int, steps: int, denoiser_steps: int, num: int) -> dict[str, float]:
    """The figures of an autoencoder and the denoiser behind it, from where they were written or from new runs."""
    run = out / f"{name.strip('+ ').replace(' ', '-').lower()}-{seed}"
    draws = f"sample.py {run}/diffusion --out {run}/samples --num {num} --sampler dpm++2m --steps 14 --guidance 1"
    commands = [
        f"train_vae.py configs/vae/mnist5k.yaml --out {run}/vae --run.steps {steps} --run.seed {seed}"
        f" --run.precision fp32 {TOKENIZERS[name]}".rstrip(),
        f"-m ldm evaluate {run}/vae --out {run}/evaluation.json",
        f"train_diffusion.py configs/diffusion/mnist5k.yaml --autoencoder {run}/vae --out {run}/diffusion"
        f" --run.steps {denoiser_steps} --run.batch-size 64 --run.seed {seed} --run.precision fp32",
        draws,
    ]
    return figures_of(run, metric, commands)


def pixel_row(out: Path, metric: Judge, seed: int, steps: int, num: int) -> dict[str, float]:
    """The same of a denoiser of pixels."""
    run = out / f"pixels-{seed}"
    commands = [
        f"train_diffusion.py configs/diffusion/pixel.yaml --out {run}/diffusion --run.steps {steps} --run.seed {seed}"
        " --run.precision fp32",
        f"sample.py {run}/diffusion --out {run}/samples --num {num} --sampler dpm++2m --steps 14 --guidance 1",
    ]
    return figures_of(run, metric, commands)


def figures_of(run: Path, metric: Judge, commands: list[str]) -> dict[str, float]:
    """What the commands of a row lead to, done now unless it was done before."""
    report = run / "row.json"
    if report.exists() and json.loads(report.read_text())["commands"] != commands:
        shutil.rmtree(run)
    if not report.exists():
        run.mkdir(parents=True, exist_ok=True)
        for command in commands:  # what was done of them before is not done again
            print(f"python {command}", flush=True)
            ran(*shlex.split(command))
        files = sorted((run / "samples").glob("*.png"))
        images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])[:, None]
        labels = np.array([int(file.stem.split("-")[1]) for file in files])
        evaluated = run / "evaluation.json"
        figures = json.loads(evaluated.read_text())["figures"] if evaluated.exists() else {}
        figures |= metric.figures(images, labels)
        report.write_text(json.dumps({"commands": commands, "figures": figures}, indent=2))
    return json.loads(report.read_text())["figures"]  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--denoiser-steps", type=int, default=500)
    parser.add_argument("--pixel-steps", type=int, default=1600)
    parser.add_argument("--num", type=int, default=1000)
    options = parser.parse_args()
    out = Path(os.path.relpath(options.out, ROOT))
    os.chdir(ROOT)
    torch.set_num_threads(1)
    ran("benchmarks/lite.py", f"{out}/lite1", "1")
    metric = Judge(out / "lite1")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TOKENIZERS}
    for seed in options.seeds:  # seed by seed, so that an early stop leaves whole tables
        for name in TOKENIZERS:
            found[name].append(row(out, metric, name, seed, options.steps, options.denoiser_steps, options.num))
    found["pixels"] = [pixel_row(out, metric, seed, options.pixel_steps, options.num) for seed in options.seeds[:1]]
    print(f"\n| autoencoder, seeds {options.seeds} | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for name, rows in found.items():
        cells = []
        for key, form in COLUMNS.values():
            values = [each[key] for each in rows if key in each]
            each_seed = f" ({', '.join(map(form.format, values))})" if len(values) > 1 else ""
            cells.append(form.format(statistics.mean(values)) + each_seed if values else "")
        print(f"| {name} | {' | '.join(cells)} |")
    real = metric.figures(metric.images[metric.held_out], metric.labels[metric.held_out])
    print(
        f"\n{len(metric.held_out)} real held-out digits: Fréchet {real['frechet']:.1f}, read as class {real['read']:.1%}"
    )


if __name__ == "__main__":
    main()
