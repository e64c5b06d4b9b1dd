"""Are the samples of the demo digits? Reads them as a classifier of real digits does, and learns from them alone.

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
from ldm.data.datasets import open_dataset
from ldm.data.split import split


def pixels(images: list[np.ndarray]) -> np.ndarray:
    """One row in [0, 1] per image."""
    return np.stack([image.reshape(-1) / 255 for image in images])


def classifier(rows: np.ndarray, labels: np.ndarray) -> SVC:
    return SVC(C=5, gamma=0.02).fit(rows, labels)


def main(folder: Path) -> None:
    dataset = open_dataset(MNIST5kConfig())
    training, held_out = split(dataset.groups, dataset.config.held_out, dataset.config.split_seed)
    real = pixels([dataset.image(index).numpy() for index in range(len(dataset))])
    files = sorted((folder / "samples").glob("*.png"))
    samples = pixels([np.asarray(Image.open(file)) for file in files])
    asked = np.array([int(file.stem.split("-")[1]) for file in files])

    reader = classifier(real[training], dataset.labels[training])
    learner = classifier(samples, asked)
    as_many = np.random.default_rng(0).permutation(training)[: len(samples)]
    peer = classifier(real[as_many], dataset.labels[as_many])
    truth = dataset.labels[held_out]
    known = NearestNeighbors(n_neighbors=1).fit(real[training])
    to_known = {name: known.kneighbors(rows)[0][:, 0] for name, rows in (("real", real[held_out]), ("new", samples))}
    near = np.quantile(to_known["real"], 0.01)  # as near as the nearest 1 % of held-out digits are to a training digit
    report = json.loads((folder / "vae" / "report.json").read_text())
    first = slice(0, 200)
    print("\nautoencoder, 8 x 8 x 4 latents, on held-out digits")
    print(f"  PSNR                                            {report['held_out_psnr']:6.2f} dB")
    print(f"  global PCA of the same size                     {report['pca_psnr']:6.2f} dB")
    print(f"  PCA per 4 x 4 patch of the same size            {report['patch_pca_psnr']:6.2f} dB")
    print(f"  latent std per channel, training views          {' '.join(f'{s:.3f}' for s in report['latent_std'])}")
    print("latent diffusion")
    print(
        f"  guided samples read as their class, first 200   {100 * reader.score(samples[first], asked[first]):6.1f} %"
    )
    print(f"  guided samples read as their class, all {len(files):5d}   {100 * reader.score(samples, asked):6.1f} %")
    print(f"  the reader itself, on held-out real digits      {100 * reader.score(real[held_out], truth):6.1f} %")
    print(f"  trained on samples alone, real held-out digits  {100 * learner.score(real[held_out], truth):6.1f} %")
    print(f"  trained on as many real digits                  {100 * peer.score(real[held_out], truth):6.1f} %")
    print(f"  nearer to a training digit than 99 % of real ones {100 * (to_known['new'] < near).mean():4.1f} %")
    print(f"\nlook at {folder / 'samples.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
