"""Textures with planted defects and their masks: brick, grass and gravel of scikit-image, for benchmarks/anomaly.py.

The upper three fifths of a texture, in overlapping tiles, are the normal images; the test tiles are from the rest and
do not overlap, each once as it is and once with each defect. A scratch, a blob and a missing patch are drawn with a
fixed seed.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import Kept, Row
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import print_table, ran

from ldm import AnomalyDetector
from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.metrics import aupro, auroc, pixel_auroc
from ldm.config import reader
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.script_configs import TrainVAEConfig
from ldm.shapes import Images

TEXTURES = ("brick", "grass", "gravel")
TILE = 64
SHOWN = 9  # tiles of the picture
SCORES = ("reconstruction", "reconstruction-ssim", "latent-density", "pixel-density", "default")


def texture(name: str) -> np.ndarray:
    """512 x 512 bytes."""
    import skimage.data

    return getattr(skimage.data, name)()  # type: ignore[no-any-return]


def tiles(image: np.ndarray, stride: int) -> np.ndarray:
    """All tiles at multiples of `stride`, N x TILE x TILE."""
    rows, columns = (range(0, side - TILE + 1, stride) for side in image.shape)
    return np.stack([image[row : row + TILE, column : column + TILE] for row in rows for column in columns])


def scratch(tile: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright or dark line, two pixels wide."""
    angle, center = random.uniform(0, np.pi), random.uniform(20, TILE - 20, 2)
    down, right = np.mgrid[:TILE, :TILE] - center[:, None, None]
    along, across = down * np.sin(angle) + right * np.cos(angle), down * np.cos(angle) - right * np.sin(angle)
    mask = (abs(along) < random.uniform(10, 18)) & (abs(across) < 1)
    return np.where(mask, random.choice([20, 235]), tile), mask


def blob(tile: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A soft spot that is brighter or darker."""
    center, radius = random.uniform(14, TILE - 14, 2), random.uniform(4, 8)
    distance = np.hypot(*(np.mgrid[:TILE, :TILE] - center[:, None, None])) / radius
    change = random.choice([-90, 90]) * np.clip(1.5 - distance, 0, 1)
    return np.clip(tile + change, 0, 255), distance < 1


def missing_patch(tile: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A square of the tile's mean gray: simpler than what is normal."""
    side = random.integers(10, 17)
    row, column = random.integers(4, TILE - 4 - side, 2)
    mask = np.zeros(tile.shape, bool)
    mask[row : row + side, column : column + side] = True
    return np.where(mask, tile.mean(), tile), mask


DEFECTS = {"scratch": scratch, "blob": blob, "missing patch": missing_patch}


def as_images(pixels: np.ndarray) -> Images:
    """Gray images in [-1, 1] of bytes N x H x W."""
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


def test_tiles(name: str) -> tuple[Images, torch.Tensor, list[str]]:
    """Test tiles, their masks, and the name of each one's defect; the whole ones come first."""
    whole = tiles(texture(name)[320:], TILE)
    random = np.random.default_rng(0)
    pixels, masks, kinds = [*whole], [np.zeros(tile.shape, bool) for tile in whole], ["none"] * len(whole)
    for kind, draw in DEFECTS.items():
        for tile in whole:
            drawn, mask = draw(tile.astype(float), random)
            pixels.append(drawn.round().astype(np.uint8))
            masks.append(mask)
            kinds.append(kind)
    return as_images(np.stack(pixels)), torch.from_numpy(np.stack(masks)), kinds


def trained(out: Path, pixels: np.ndarray, config: str, **flags: Any) -> Dataset:
    """The images of a finished run in `out`/run, trained by that config and flags with __ for the dots.

    `pixels` are bytes, N x H x W, perhaps x channels.
    """
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "normal.npy", pixels)
    data: dict[str, Any] = {
        "data.kind": "folder",
        "data.path": str((out / "normal.npy").resolve()),
        "data.size": pixels.shape[1],
        "data.channels": pixels.shape[3] if pixels.ndim == 4 else 1,
        "data.flip": "false",
    }
    data |= {name.replace("__", "."): value for name, value in flags.items()}
    texts = {name: str(value) for name, value in data.items()}
    words = [word for name, text in texts.items() for word in (f"--{name}", text)]
    ran(shlex.join(["train_vae.py", config, "--out", str(out / "run"), *words]))
    return open_dataset(reader.load(TrainVAEConfig, Path(config), texts).data)


def measured(detector: AnomalyDetector, name: str) -> Row:
    """Image AUROC, over all and by defect, pixel AUROC, AUPRO, and the rate of false alarms."""
    images, masks, kinds = test_tiles(name)
    found = detector.score(images)
    whole = torch.tensor([kind == "none" for kind in kinds])
    row: Row = {"image AUROC": auroc(found.pred_score, ~whole)}
    for kind in DEFECTS:
        chosen = whole | torch.tensor([each == kind for each in kinds])
        row[kind] = auroc(found.pred_score[chosen], ~whole[chosen])
    if found.anomaly_map is not None:
        row |= {"pixel AUROC": pixel_auroc(found.anomaly_map[:, 0], masks), "AUPRO": aupro(found.anomaly_map, masks)}
    row["false alarms"] = float(found.pred_label[whole].double().mean())
    return row


def draw_maps(detectors: dict[str, AnomalyDetector], file: Path) -> None:
    """Test tiles of each texture, their masks and their maps, three with each defect."""
    figure = Figure(figsize=(SHOWN, 3 * len(detectors)))
    FigureCanvasAgg(figure)
    for place, (name, detector) in enumerate(detectors.items()):
        images, masks, kinds = test_tiles(name)
        count = len(kinds) // (len(DEFECTS) + 1)
        chosen = [count * (1 + kind) + number for kind in range(len(DEFECTS)) for number in (0, 9, 18)]
        maps = detector.score(images).anomaly_map
        assert maps is not None
        low, high = float(maps.quantile(0.5)), float(maps[count:].flatten(1).amax(1).median())
        for column, index in enumerate(chosen):
            rows = [
                (images[index, 0], "gray", -1, 1),
                (masks[index], "gray", 0, 1),
                (maps[index, 0], "inferno", low, high),
            ]
            for row, (picture, colors, least, most) in enumerate(rows):
                axes = figure.add_subplot(3 * len(detectors), SHOWN, (3 * place + row) * SHOWN + column + 1)
                axes.imshow(picture.numpy(), cmap=colors, vmin=least, vmax=most)
                axes.set_axis_off()
    figure.subplots_adjust(0.002, 0.002, 0.998, 0.998, wspace=0.04, hspace=0.04)
    figure.savefig(file, dpi=80)
    print(file)


def textures(out: Path, kept: Kept, *, steps: int, features: str) -> None:
    """Measure every texture with an autoencoder and, if given, with a folder of pretrained features; draw the maps."""
    table, drawn = [], {}
    for name in TEXTURES:
        folder = out / f"texture-{name}-{steps}"
        dataset = trained(
            folder,
            tiles(texture(name)[:320], 32),
            "configs/vae/mnist5k.yaml",
            data__held_out=0.3,
            autoencoder__network__downsampling=8,
            run__steps=steps,
        )
        normal = Subset(dataset, list(range(len(dataset))))

        def fitted(source: str, score: str, normal: Subset = normal) -> AnomalyDetector:
            return AnomalyDetector.fit(source, normal, DetectorConfig(scores=(score,), pool="top", alpha=0.1))

        sources = {"autoencoder": (str(folder / "run"), SCORES), "pca:32": ("pca:32", ("reconstruction",))}
        if features:
            sources["features"] = (f"features:{features}", ("reconstruction",))
        for label, (source, scores) in sources.items():
            for score in scores:
                row = kept.row(
                    lambda source=source, score=score, name=name, fitted=fitted: measured(fitted(source, score), name),
                    texture=name,
                    model=label,
                    score=score,
                    steps=steps,
                )
                cells = [f"{row[key]:.3f}" if key in row else "" for key in COLUMNS]
                table.append([name, f"{label}: {score}", *cells])
        best = f"features:{features}" if features else str(folder / "run")
        drawn[name] = fitted(best, "default")
    draw_maps(drawn, out / "textures.png")
    print_table(["texture", "score", *COLUMNS], table)


COLUMNS = ["image AUROC", *DEFECTS, "pixel AUROC", "AUPRO", "false alarms"]
