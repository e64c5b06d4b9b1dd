"""A number as condition: digits turned by a known angle, and the angle that samples of them are turned by.

    python benchmarks/turned_digits.py draw turned
    python train_diffusion.py configs/diffusion/pixel.yaml --out runs/turned --data.kind folder --data.path turned \\
        --data.size 32 --data.channels 1 --data.conditions '{label: {kind: class}, angle: {kind: number, period: 360}}'
    python sample.py runs/turned --label 7 --angle 0,30,60,90,120,150,180,210,240,270,300,330 --num 240 --out sevens
    python benchmarks/turned_digits.py score turned sevens

The angle of an image is read by its 15 nearest neighbors among the drawn ones of its class; the same is done for drawn
digits of other people's hands first, which says how well it can be read at all.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from ldm.data.config import MNIST5kConfig
from ldm.data.datasets import open_dataset

DIGITS = (2, 3, 4, 5, 7)  # those that look like no other, nor like themselves, when they are turned
TURNS = 8  # of each digit
NEIGHBORS = 15


def draw(out: Path) -> None:
    """Write each digit turned by random angles, counterclockwise, with metadata."""
    out.mkdir(parents=True)  # and never into a folder that is there
    dataset, rng = open_dataset(MNIST5kConfig()), np.random.default_rng(0)
    with open(out / "metadata.jsonl", "w") as file:
        for index, label in enumerate(dataset.labels.tolist()):
            for turn in range(TURNS if label in DIGITS else 0):
                name, angle = f"{index:04d}-{turn}.png", round(float(rng.uniform(0, 360)), 2)
                picture = Image.fromarray(dataset.eval_view(index).numpy()[0])
                picture.rotate(angle, Image.Resampling.BICUBIC).save(out / name)
                row = {"file_name": name, "label": str(label), "angle": angle, "group": f"{index:04d}"}
                file.write(json.dumps(row) + "\n")


def pixels(files: list[Path]) -> np.ndarray:
    """One row for each image, of half the size, in [0, 1]."""
    images = [Image.open(file).convert("L").resize((16, 16), Image.Resampling.BOX) for file in files]
    return np.stack([np.asarray(image).reshape(-1) for image in images]) / 255


def asked(file: Path) -> tuple[str, float]:
    """The class and the angle that a sample was asked for, which sample.py wrote into it."""
    info = Image.open(file).info
    number = int(info["number"])
    labels, angles = (str(info[f"condition of {name}"]).split(",") for name in ("label", "angle"))
    return labels[number % len(labels)].strip(), float(angles[number % len(angles)])


def angles_of(rows: np.ndarray, known: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """The angle of each row, in degrees: the mean direction of its neighbors'."""
    _, nearest = NearestNeighbors(n_neighbors=NEIGHBORS).fit(known).kneighbors(rows)
    return np.degrees(np.angle(np.exp(1j * np.radians(turns[nearest])).mean(1)))


def report(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    """Print how far the angles are from those that were asked for."""
    errors = abs((found - wanted + 180) % 360 - 180)
    print(f"{name:24} median error {np.median(errors):5.1f}°, within 20° {100 * (errors <= 20).mean():5.1f} %")


def score(drawn: Path, samples: Path) -> None:
    """Print the errors for drawn digits that are not among the neighbors, and for samples, class by class."""
    rows = [json.loads(line) for line in (drawn / "metadata.jsonl").read_text().splitlines()]
    files = sorted(samples.glob("*.png"))
    wanted = [asked(file) for file in files]
    for label in sorted({label for label, _ in wanted}):
        of_class = [row for row in rows if row["label"] == label]
        known = pixels([drawn / row["file_name"] for row in of_class])
        turns = np.array([row["angle"] for row in of_class])
        held_out = np.array([int(row["group"]) % 10 == 0 for row in of_class])
        report(f"{label}, drawn", angles_of(known[held_out], known[~held_out], turns[~held_out]), turns[held_out])
        chosen = [place for place, (other, _) in enumerate(wanted) if other == label]
        found = angles_of(pixels([files[place] for place in chosen]), known, turns)
        report(f"{label}, samples", found, np.array([wanted[place][1] for place in chosen]))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "draw":
        draw(Path(sys.argv[2]))
    elif len(sys.argv) == 4 and sys.argv[1] == "score":
        score(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit("usage: python benchmarks/turned_digits.py draw FOLDER | score FOLDER SAMPLES")
