"""Are the samples of the demo digits? Classifies them with a classifier of real digits, and trains one on them alone.

python benchmarks/digits.py runs/demo
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from ldm.data.config import MNIST5kConfig
from ldm.data.datasets import Subset, open_dataset


def read_samples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The gray images that sample.py wrote into a folder, uint8, and the digits that were requested."""
    files = sorted(folder.glob("*.png"))
    labels = np.array([int(file.stem.split("-")[1]) for file in files])
    return np.stack([np.asarray(Image.open(file)) for file in files]), labels


def real_digits(digits: Subset) -> np.ndarray:
    """The gray images of a data set, uint8."""
    return np.stack([digits.dataset.eval_view(index).numpy()[0] for index in digits.indices])


def pixels(images: np.ndarray) -> np.ndarray:
    """One row in [0, 1] per image."""
    return images.reshape(len(images), -1) / 255


def classifier(rows: np.ndarray, labels: np.ndarray) -> SVC:
    return SVC(C=5, gamma=0.02).fit(rows, labels)


def print_metric(label: str, value: float, unit: str) -> None:
    """One line of the report, the numbers one below the other."""
    shown = f"{100 * value:6.1f}" if unit == "%" else f"{value:6.2f}"
    print(f"  {label:74}{shown} {unit}")


def main(folder: Path) -> None:
    training, held_out = open_dataset(MNIST5kConfig()).split()
    train_rows, train_labels = pixels(real_digits(training)), training.labels.numpy()
    test_rows, test_labels = pixels(real_digits(held_out)), held_out.labels.numpy()
    images, requested = read_samples(folder / "samples")
    samples, first = pixels(images), slice(0, 200)

    of_real = classifier(train_rows, train_labels)
    of_samples = classifier(samples, requested)
    as_many = np.random.default_rng(0).permutation(len(train_rows))[: len(samples)]
    of_as_many = classifier(train_rows[as_many], train_labels[as_many])
    neighbors = NearestNeighbors(n_neighbors=1).fit(train_rows)
    to_training = [neighbors.kneighbors(rows)[0][:, 0] for rows in (test_rows, samples)]
    close = np.quantile(to_training[0], 0.01)  # as close as the closest 1 % of held-out digits are to a training digit
    report = json.loads((folder / "vae" / "report.json").read_text())

    print("\nautoencoder, 8 x 8 x 4 latents, on held-out digits")
    print_metric("PSNR", report["held_out_psnr"], "dB")
    print_metric("global PCA of the same size", report["pca_psnr"], "dB")
    print_metric("PCA per 4 x 4 patch of the same size", report["patch_pca_psnr"], "dB")
    print(f"  {'latent std per channel, training views':48}{' '.join(f'{std:.3f}' for std in report['latent_std'])}")
    print("latent diffusion")
    guided = "guided samples classified as the requested class"
    print_metric(f"{guided}, first 200", of_real.score(samples[first], requested[first]), "%")
    print_metric(f"{guided}, all {len(samples)}", of_real.score(samples, requested), "%")
    print_metric("the classifier itself, on real held-out digits", of_real.score(test_rows, test_labels), "%")
    on_real = of_samples.score(test_rows, test_labels)
    print_metric("classifier trained on samples only, tested on real held-out digits", on_real, "%")
    print_metric(
        "classifier trained on as many real digits, tested on the same", of_as_many.score(test_rows, test_labels), "%"
    )
    memorized = (to_training[1] < close).mean()
    print_metric("closer to a training digit than 99 % of held-out digits are (memorization)", memorized, "%")
    print(f"\nlook at {folder / 'samples.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
