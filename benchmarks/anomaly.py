"""Benchmark of anomaly detection: every score of `ldm detect` beside classical detectors, PyOD and scikit-learn.

    python benchmarks/anomaly.py runs/anomaly --pyod PYTHON
    python benchmarks/anomaly.py runs/anomaly --parts digits --seeds 0 --smoke

`digits`: each class of the 5,000 MNIST digits is the normal one. For each seed 400 images of a class are training
images, and the 100 others are held out; the test images are the 1,000 held out of all ten classes. Everything has the
same 400: the autoencoder is trained on 360 of them, and 40 put its scores on one scale and set the threshold. `emoji`
is the same with one category of emoji. `textures` is benchmarks/defects.py. `alarms` measures false alarms over 40
splits of the calibration set with one fitted model; `speed` images per second on one core.

Nothing sees an anomaly before the test: the number of components of the PCA residual is the likeliest on normal images.
PyOD runs in a process of its own, with the Python that --pyod names; its best three are the best on the anomalies.
Rows that are in OUT/anomaly.jsonl already are not measured again.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classical import CHOSEN, PYOD, classical_scores
from defects import textures, trained
from learning import Kept, Row
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import ROOT, SHARED, from_root, print_table

from ldm import AnomalyDetector
from ldm.anomaly.config import SCORES, DetectorConfig
from ldm.anomaly.conformal import conformal_threshold
from ldm.anomaly.metrics import auroc
from ldm.anomaly.splits import split_normal
from ldm.data.config import FolderConfig, MNIST5kConfig
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.shapes import Images

EMOJI = SHARED / "noto-emoji-64"
NORMAL_EMOJI = "flags"
TRAINING = 400  # images of a class
DEFAULT = "default (combined)"
RATES = (0.05, 0.01)
SPLITS, CALIBRATION = 40, 500
ALPHA = 0.1  # few images calibrate a detector of one category; no AUROC depends on it


@dataclass(frozen=True)
class Task:
    """Normal images to train with, and test images of which some are anomalies; bytes, N x H x W x channels."""

    training: np.ndarray
    test: np.ndarray
    is_anomaly: np.ndarray


def as_bytes(dataset: Dataset) -> np.ndarray:
    """All images of a data set."""
    images = Subset(dataset, list(range(len(dataset)))).images()
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def as_images(pixels: np.ndarray) -> Images:
    """Those images, in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def digit_task(normal: int, seed: int) -> Task:
    """One class against the nine others."""
    dataset = open_dataset(MNIST5kConfig())
    pixels, labels = as_bytes(dataset), dataset.labels
    orders = [np.random.default_rng((seed, each)).permutation(np.flatnonzero(labels == each)) for each in range(10)]
    test = np.concatenate([order[TRAINING:] for order in orders])
    return Task(pixels[orders[normal][:TRAINING]], pixels[test], labels[test] != normal)


def emoji_task(seed: int) -> Task:
    """One category against the others: a fifth of it, and a tenth of them, for the test."""
    dataset = open_dataset(FolderConfig(path=str(EMOJI), size=64, channels=3))
    pixels, labels = as_bytes(dataset), dataset.labels
    order = np.random.default_rng(seed).permutation(len(labels))
    is_normal = labels[order] == dataset.classes.index(NORMAL_EMOJI)
    own, others = order[is_normal], order[~is_normal]
    test = np.concatenate([own[: len(own) // 5], others[: len(others) // 10]])
    return Task(pixels[own[len(own) // 5 :]], pixels[test], np.arange(len(test)) >= len(own) // 5)


def one_class_run(out: Path, pixels: np.ndarray, seed: int, steps: int) -> Dataset:
    """The images of a finished run in `out`/run; one hidden layer has the better held-out PSNR on so few images."""
    flags = {"autoencoder__network__widths": "[512]", "run__batch_size": 64, "run__steps": steps, "run__seed": seed}
    return trained(out, pixels, "configs/autoencoder/plain.yaml", **flags)


def ours(out: Path, task: Task, seed: int, steps: int) -> Row:
    """AUROC of every score of a detector, and of their combinations."""
    dataset = one_class_run(out, task.training, seed, steps)
    normal, labels = Subset(dataset, list(range(len(dataset)))), torch.from_numpy(task.is_anomaly)
    images, row = as_images(task.test), {}
    for scores, combination in (("all", "all (combined)"), ("default", DEFAULT)):
        detector = AnomalyDetector.fit(str(out / "run"), normal, DetectorConfig(scores=(scores,), alpha=ALPHA))
        found = detector.score(images)
        row |= {f"ours: {name}": auroc(values, labels) for name, values in found.parts.items()}
        row[f"ours: {combination}"] = auroc(found.pred_score, labels)
    return row


def theirs(out: Path, task: Task, pyod: str) -> Row:
    """AUROC of every classical detector, and of those of PyOD."""
    out.mkdir(parents=True, exist_ok=True)
    training, test = (as_images(part).flatten(1).double().numpy() for part in (task.training, task.test))
    found = classical_scores(training, test) | pyod_scores(out, pyod, training=training, test=test)
    return {name: auroc(torch.from_numpy(values), torch.from_numpy(task.is_anomaly)) for name, values in found.items()}


def one_class(kept: Kept, folder: str, task: Task, steps: int, pyod: str, **key: Any) -> Row:
    """AUROC of everything; a change of the default scores is another row."""
    out, seed = kept.file.parent / f"{folder}-{steps}", key["seed"]
    default = [name for name, facts in SCORES.items() if facts.in_default]
    return {
        **kept.row(lambda: ours(out, task, seed, steps), steps=steps, default=default, **key),
        **kept.row(lambda: theirs(out, task, pyod), pyod=bool(pyod), **key),
    }


def pyod_scores(out: Path, python: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """The scores that PyOD gives, without their seconds; none where `python` is empty."""
    return {f"PyOD: {name}": found for name, found in pyod_run(out, python, **arrays).items() if name in PYOD}


def imports_pyod(python: str) -> bool:
    """Whether it is a Python that can run benchmarks/classical.py."""
    try:
        return not subprocess.run([python, "-c", "import pyod, sklearn, torch"], stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def pyod_run(out: Path, python: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """What benchmarks/classical.py writes when it is run by that Python."""
    if not python:
        return {}
    np.savez(out / "vectors.npz", **arrays)
    command = [python, str(ROOT / "benchmarks" / "classical.py"), str(out / "vectors.npz"), str(out / "pyod.npz")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = dict(np.load(out / "pyod.npz"))
    (out / "vectors.npz").unlink()
    return found


def alarms(out: Path, steps: int) -> Row:
    """False alarms of one model over splits of its calibration images; mean and standard error over the splits."""
    pixels = as_bytes(open_dataset(MNIST5kConfig()))
    known = pixels[np.random.default_rng(0).permutation(len(pixels))]
    dataset = one_class_run(out, known[:1000], 0, steps)
    normal = Subset(dataset, list(range(len(dataset))))
    detector = AnomalyDetector.fit(str(out / "run"), normal, DetectorConfig())
    seen = split_normal(normal, str(out / "run"), fits=True, seed=0).fitting.images()
    on_training = detector.score(seen).pred_score
    fresh = detector.score(as_images(known[1000:])).pred_score
    row: Row = {}
    for rate in RATES:
        conformal, naive = [], []
        for split in range(SPLITS):
            order = torch.from_numpy(np.random.default_rng(split).permutation(len(fresh)))
            calibration, test = fresh[order[:CALIBRATION]], fresh[order[CALIBRATION:]]
            conformal.append(float((test > conformal_threshold(calibration, rate)).double().mean()))
            naive.append(float((test > on_training.quantile(1 - rate)).double().mean()))
        error = statistics.stdev(conformal) / SPLITS**0.5
        row |= {f"{rate}": statistics.mean(conformal), f"{rate} error": error, f"{rate} naive": statistics.mean(naive)}
    return row


def speed(out: Path, steps: int, pyod: str) -> Row:
    """Images per CPU second of each score alone, and of PyOD's AutoEncoder of the same sizes."""
    task = digit_task(3, 0)
    dataset = one_class_run(out, task.training, 0, steps)
    normal, images, row = Subset(dataset, list(range(len(dataset)))), as_images(task.test), {}
    every = AnomalyDetector.fit(str(out / "run"), normal, DetectorConfig(scores=("all",)))
    for name in [*every.scores, "default"]:
        detector = AnomalyDetector.fit(str(out / "run"), normal, DetectorConfig(scores=(name,)))
        detector.score(images[:50])
        began = time.process_time()
        for part in images.split(100):
            detector.score(part)
        row[name] = len(images) / (time.process_time() - began)
    vectors = [as_images(part).flatten(1).numpy() for part in (task.training, task.test)]
    sizes = np.array([512, 32])
    found = pyod_run(out, pyod, training=vectors[0], test=vectors[1], widths=sizes)
    if found:
        row["PyOD: AutoEncoder"] = len(images) / float(found["AutoEncoder seconds"])
    return row


def draw_scores(out: Path, task: Task, file: Path) -> None:
    """Two normal images and six anomalies, and under each image its map by every score that has one."""
    data = FolderConfig(path=str((out / "normal.npy").resolve()), size=task.test.shape[1], channels=1, flip=False)
    dataset = open_dataset(data)
    normal = Subset(dataset, list(range(len(dataset))))
    chosen = [*np.flatnonzero(~task.is_anomaly)[:2], *np.flatnonzero(task.is_anomaly)[50::150][:6]]
    images, rows = as_images(task.test[chosen]), {}
    for name in ("reconstruction", "reconstruction-ssim", "pixel-density"):
        found = AnomalyDetector.fit(str(out / "run"), normal, DetectorConfig(scores=(name,))).score(images)
        assert found.anomaly_map is not None
        rows[name] = found.anomaly_map[:, 0]
    figure = Figure(figsize=(len(chosen), 1 + len(rows)))
    FigureCanvasAgg(figure)
    for row, maps in enumerate([images[:, 0], *rows.values()]):
        for column, picture in enumerate(maps):
            axes = figure.add_subplot(1 + len(rows), len(chosen), row * len(chosen) + column + 1)
            axes.imshow(
                picture.numpy(), cmap="inferno" if row else "gray", vmin=float(maps.min()), vmax=float(maps.max())
            )
            axes.set_axis_off()
    figure.subplots_adjust(0.002, 0.002, 0.998, 0.998, wspace=0.04, hspace=0.04)
    figure.savefig(file, dpi=80)
    print(file)


def print_aurocs(name: str, rows: list[tuple[str, Row]]) -> None:
    """Mean AUROC over seeds by class, and over all; of PyOD the best three. `rows` holds pairs of class and row."""
    classes = list(dict.fromkeys(each for each, _ in rows))
    scores = [key for key, value in rows[0][1].items() if isinstance(value, float)]

    def mean(score: str, of: str | None = None) -> float:
        return statistics.mean(row[score] for each, row in rows if of in (None, each) and score in row)

    best = sorted((key for key in scores if key.startswith("PyOD")), key=mean, reverse=True)[:3]
    shown = [key for key in scores if not key.startswith("PyOD") or key in best]
    table = [[key, f"{mean(key):.4f}", *(f"{mean(key, of):.3f}" for of in classes)] for key in shown]
    print_table([f"{name}, AUROC", "mean", *classes], table)
    lost = [of for of in classes if mean(f"ours: {DEFAULT}", of) <= mean(CHOSEN, of)]
    print(f"\n{CHOSEN} is as good as our default, or better, in: {', '.join(lost) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parts = ["digits", "emoji", "textures", "alarms", "speed"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--classes", nargs="+", type=int, default=list(range(10)), choices=range(10), metavar="DIGIT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pyod", default="", metavar="PYTHON", help="a Python that can import pyod and torch")
    parser.add_argument("--features", default="", metavar="FOLDER", help="a pretrained network for the textures")
    parser.add_argument("--smoke", action="store_true", help="two classes, one seed, few steps: does it run?")
    options = parser.parse_args()
    options.pyod = str(Path(options.pyod).absolute()) if options.pyod else ""
    options.features = str(Path(options.features).absolute()) if options.features else ""
    out, steps = from_root(options.out), 20 if options.smoke else 400
    torch.set_num_threads(1)
    if options.smoke:
        options.classes, options.seeds = options.classes[:2], options.seeds[:1]
    if options.pyod and not imports_pyod(options.pyod):
        sys.exit(f"error: --pyod {options.pyod}: no Python that can import pyod, torch and sklearn; install PyOD there")
    if not options.pyod:
        print("PyOD is not measured: name a Python that has it with --pyod")
    kept = Kept(out / "anomaly.jsonl")
    if "digits" in options.parts:
        rows = []
        for seed in options.seeds:
            for digit in options.classes:
                task, folder = digit_task(digit, seed), f"digits-{seed}-{digit}"
                row = one_class(kept, folder, task, steps, options.pyod, digit=digit, seed=seed)
                rows.append((str(digit), row))
        print_aurocs("digits", rows)
        digit, seed = options.classes[0], options.seeds[0]
        draw_scores(out / f"digits-{seed}-{digit}-{steps}", digit_task(digit, seed), out / "digits.png")
    if "emoji" in options.parts and not EMOJI.exists():
        print(f"emoji are not measured: {EMOJI} is not there")
    elif "emoji" in options.parts:
        rows = []
        for seed in options.seeds:
            task, folder = emoji_task(seed), f"emoji-{seed}"
            row = one_class(kept, folder, task, steps, options.pyod, emoji=NORMAL_EMOJI, seed=seed)
            rows.append((NORMAL_EMOJI, row))
        print_aurocs("emoji", rows)
    if "textures" in options.parts:
        textures(out, kept, steps=20 if options.smoke else 150, features=options.features)
    if "alarms" in options.parts:
        row = kept.row(lambda: alarms(out / f"alarms-{steps}", steps), alarms=steps)
        rates = [[str(rate), *(f"{row[f'{rate}{of}']:.4f}" for of in ("", " error", " naive"))] for rate in RATES]
        print_table(["stated false-alarm rate", "measured", "standard error", "quantile of training scores"], rates)
    if "speed" in options.parts:
        row = kept.row(
            lambda: speed(out / f"speed-{steps}", steps, options.pyod), steps=steps, pyod=bool(options.pyod), speed=1
        )
        print_table(["score", "images / s"], [[key, f"{value:,.0f}"] for key, value in row.items() if key != "key"])


if __name__ == "__main__":
    main()
