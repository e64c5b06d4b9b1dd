"""Benchmark of five autoencoders by how easily their latents are modeled: the same small denoiser behind each.

    python benchmarks/latent_spaces.py runs/tokenizers [--seeds 0 1] [--steps 300] [--denoiser-steps 500]

On digits, at equal budgets of steps and images: KL alone, and with latent noise, masking, equivariance, contraction.
An autoencoder is measured by held-out PSNR; its latents by what a denoiser trained in them draws, without guidance:
the Fréchet distance of 1,000 samples to the real digits in features of EfficientNet-Lite1, the fraction that a
classifier of real digits classifies as requested, and the accuracy on real held-out digits of a classifier trained on
the samples only. The row "pixels" is configs/diffusion/pixel.yaml, which has no autoencoder, and another budget
(--pixel-steps). The last line says the same of the real held-out digits. One thread. A row that is there already is
not run again.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from ldm.data.config import MNIST5kConfig
from ldm.data.datasets import open_dataset
from ldm.evaluation.feature_networks import FeatureExtractor, open_extractor
from ldm.evaluation.metrics import frechet_distance
from ldm.shapes import to_float

# isort: off
from digits import classifier, pixels, read_samples, real_digits
from runs import Metrics, folder_name, from_root, print_table, ran, row

ENCODER_TRAINED = "--autoencoder.network.blocks 1 --autoencoder.network.encoder-lr-factor 0.03"  # or nothing shapes it
NOISE = "--objective.latent_corruption.kind interpolation --objective.latent_corruption.strength 1.0"
MASK = (
    "--objective.corruption.kind mask --objective.corruption.fraction '[0.0, 0.5]' --objective.corruption.p-clean 0.2"
)
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
    "classified as requested": ("classified_as_requested", "{:.1%}"),
    "classifier from samples": ("classifier_from_samples", "{:.1%}"),
    "spectrum slope": ("latent_spectrum_slope", "{:.2f}"),
    "Jacobian": ("encoder_jacobian", "{:.2f}"),
}


class SampleMetrics:
    """Metrics of samples, by real digits, a classifier of them, and features of EfficientNet-Lite1."""

    def __init__(self, weights: Path):
        training, held_out = open_dataset(MNIST5kConfig()).split()
        images = real_digits(training)
        extractor = open_extractor("features", str(weights), 1, torch.device("cpu"))
        assert extractor is not None
        self.extractor: FeatureExtractor = extractor
        self.classifier = classifier(pixels(images), training.labels.numpy())
        self.features = self.features_of(images)
        self.held_out, self.held_out_labels = real_digits(held_out), held_out.labels.numpy()

    @torch.no_grad()
    def features_of(self, images: np.ndarray) -> torch.Tensor:
        """A row of features for each image."""
        chunks = torch.from_numpy(images)[:, None].split(100)
        return torch.cat([self.extractor.features(to_float(chunk)) for chunk in chunks])

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> Metrics:
        """Of drawn images and the classes that were requested."""
        from_samples = classifier(pixels(images), labels)
        return {
            "frechet": frechet_distance(self.features, self.features_of(images)),
            "classified_as_requested": self.classifier.score(pixels(images), labels),
            "classifier_from_samples": from_samples.score(pixels(self.held_out), self.held_out_labels),
        }


def sample_command(run: Path, num: int) -> str:
    return f"sample.py {run}/diffusion --out {run}/samples --num {num} --sampler dpm++2m --steps 14 --guidance 1"


def latent_row(
    out: Path, measured: SampleMetrics, name: str, seed: int, steps: int, denoiser_steps: int, num: int
) -> Metrics:
    """The metrics of an autoencoder and of the denoiser of its latents."""
    run = out / folder_name(name, str(seed))
    commands = [
        f"train_vae.py configs/vae/mnist5k.yaml --out {run}/vae --run.steps {steps} --run.seed {seed}"
        f" --run.precision fp32 {ENCODER_TRAINED} {TOKENIZERS[name]}".rstrip(),
        f"-m ldm evaluate {run}/vae --out {run}/evaluation.json",
        f"train_diffusion.py configs/diffusion/mnist5k.yaml --autoencoder {run}/vae --out {run}/diffusion"
        f" --run.steps {denoiser_steps} --run.batch-size 64 --run.seed {seed} --run.precision fp32",
        sample_command(run, num),
    ]
    return row(run, commands, lambda evaluation: measured(*read_samples(run / "samples")), resumes=True)


def pixel_row(out: Path, measured: SampleMetrics, seed: int, steps: int, num: int) -> Metrics:
    """The same of a denoiser of pixels."""
    run = out / folder_name("pixels", str(seed))
    commands = [
        f"train_diffusion.py configs/diffusion/pixel.yaml --out {run}/diffusion --run.steps {steps} --run.seed {seed}"
        " --run.precision fp32",
        sample_command(run, num),
    ]
    return row(run, commands, lambda evaluation: measured(*read_samples(run / "samples")), resumes=True)


def over_seeds(rows: list[Metrics], key: str, form: str) -> str:
    """The mean of a metric, and where there are several its value for each seed."""
    values = [metrics[key] for metrics in rows if key in metrics]
    each_seed = f" ({', '.join(map(form.format, values))})" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + each_seed if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--denoiser-steps", type=int, default=500)
    parser.add_argument("--pixel-steps", type=int, default=1600)
    parser.add_argument("--num", type=int, default=1000)
    options = parser.parse_args()
    out = from_root(options.out)
    torch.set_num_threads(1)
    ran(f"benchmarks/lite.py {out}/lite1 1")
    measured = SampleMetrics(out / "lite1")
    found: dict[str, list[Metrics]] = {name: [] for name in TOKENIZERS}
    for seed in options.seeds:  # seed by seed, so that an early stop leaves whole tables
        for name in TOKENIZERS:
            found[name].append(
                latent_row(out, measured, name, seed, options.steps, options.denoiser_steps, options.num)
            )
    found["pixels"] = [pixel_row(out, measured, seed, options.pixel_steps, options.num) for seed in options.seeds[:1]]
    print_table(
        [f"autoencoder, seeds {options.seeds}", *COLUMNS],
        [[name, *(over_seeds(rows, *column) for column in COLUMNS.values())] for name, rows in found.items()],
    )
    real = measured(measured.held_out, measured.held_out_labels)
    print(
        f"\n{len(measured.held_out)} real held-out digits: Fréchet {real['frechet']:.1f},"
        f" classified correctly {real['classified_as_requested']:.1%}"
    )


if __name__ == "__main__":
    main()
