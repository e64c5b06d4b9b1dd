r"""Text to image that can be checked: draws captioned scenes of two objects, and reads samples from their pixels.

    python benchmarks/scenes.py draw scenes                   # 20,000 images and two files of 500 prompts
    python train_vae.py configs/vae/folder.yaml --data.path scenes/images --data.size 32 --data.flip false \
        --run.steps 300 --out runs/scenes/vae
    python train_diffusion.py configs/diffusion/scenes.yaml --autoencoder runs/scenes/vae --out runs/scenes/diffusion
    python sample.py runs/scenes/diffusion --prompts scenes/seen.txt --num 500 --guidance 4 \
        --sampler dpm++2m --steps 14 --out runs/scenes/seen
    python sample.py runs/scenes/diffusion --prompts scenes/unseen.txt --num 500 --guidance 4 \
        --sampler dpm++2m --steps 14 --out runs/scenes/unseen
    python benchmarks/scenes.py score runs/scenes/seen scenes/seen.txt
    python benchmarks/scenes.py score runs/scenes/unseen scenes/unseen.txt

Where nothing can be installed for the text encoder (wordllama), `words` writes a folder of the few embeddings that it
takes, elsewhere, beforehand:

    python benchmarks/scenes.py words scenes-words
    ... --data.conditions "{text: {kind: text, encoder: scenes-words, length: 16, layers: 2}}"

"a small red circle left of a blue square": three shapes, five colors, two sizes, which may be left open, and four
relations. The two objects differ in color. Three pairs of color and shape are in no training image (`HELD_OUT`): each
prompt of unseen.txt asks for one of them, and none of seen.txt does. Image i belongs to line i of the prompts, again
from the first where there are more images.
"""

import argparse
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, center_of_mass, label

SIDE, FINER = 32, 8  # pixels of a scene, and of each of them while it is drawn
COLORS = {"red": (230, 40, 40), "green": (40, 205, 60), "blue": (50, 90, 240), "yellow": (240, 220, 50)} | {
    "white": (245, 245, 245)
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": (6.0, 8.0), "large": (11.0, 13.0)}  # pixels across
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}  # from the first to the second
HELD_OUT = {("red", "square"), ("green", "triangle"), ("blue", "circle")}
FILLED = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5}  # share of the box
GAP = 2.0  # pixels between the two objects
FOREGROUND = 0.45  # of full brightness
LEAST = 8  # pixels of an object; less is a speck, which counts as an object too many if it has half as many
CENTERS_APART = 3.0  # pixels by which the second object lies on the asked-for side of the first


@dataclass(frozen=True)
class Thing:
    """An object as it is asked for; no size leaves it open."""

    color: str
    shape: str
    size: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, ["a", self.size, self.color, self.shape]))


@dataclass(frozen=True)
class Scene:
    """Two objects and where the first is, seen from the second."""

    first: Thing
    relation: str
    second: Thing

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"

    @property
    def is_seen(self) -> bool:
        """Whether training images may show it."""
        return not {(thing.color, thing.shape) for thing in (self.first, self.second)} & HELD_OUT


@dataclass(frozen=True)
class Found:
    """An object as it is found in an image."""

    color: str
    shape: str
    size: str
    center: tuple[float, float]  # x, y


def scene_of(prompt: str) -> Scene:
    """The scene that a prompt describes."""
    relation = next(each for each in RELATIONS if f" {each} " in prompt)
    first, second = (part.split()[1:] for part in prompt.split(f" {relation} "))
    things = [Thing(*words[-2:], *words[:-2]) for words in (first, second)]
    return Scene(things[0], relation, things[1])


def random_scene(rng: np.random.Generator, *, seen: bool) -> Scene:
    """A scene whose objects are all seen in training, or one that has an unseen object."""
    while True:
        colors = rng.choice(list(COLORS), 2, replace=False)
        things = [Thing(str(color), str(rng.choice(SHAPES)), str(rng.choice(["", *SIZES]))) for color in colors]
        scene = Scene(things[0], str(rng.choice(list(RELATIONS))), things[1])
        if scene.is_seen == seen:
            return scene


def draw_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """An image of it, uint8 [32, 32, 3]: whatever the prompt leaves open is drawn at random."""
    sizes = [rng.uniform(*SIZES[thing.size or str(rng.choice(list(SIZES)))]) for thing in (scene.first, scene.second)]
    toward = np.array(RELATIONS[scene.relation])
    along = int(toward[1] != 0)  # the axis of the relation: 0 is x
    before, after = sizes if toward[along] > 0 else sizes[::-1]
    start = rng.uniform(1, SIDE - 1 - before - GAP - after)
    gap = rng.uniform(GAP, SIDE - 1 - before - after - start)
    places = [start + before / 2, start + before + gap + after / 2]
    if toward[along] < 0:
        places.reverse()
    image = np.zeros((SIDE, SIDE, 3))
    middle = rng.uniform(10, SIDE - 10)
    for thing, size, place in zip((scene.first, scene.second), sizes, places, strict=True):
        across = np.clip(middle + rng.uniform(-3, 3), size / 2 + 1, SIDE - 1 - size / 2)
        center = (place, across) if along == 0 else (across, place)
        covered = coverage(thing.shape, center, size)[..., None]
        image = image * (1 - covered) + covered * np.array(COLORS[thing.color])
    return image.round().astype(np.uint8)


def coverage(shape: str, center: tuple[float, float], size: float) -> np.ndarray:
    """Which share of each pixel an object covers."""
    places = (np.arange(SIDE * FINER) + 0.5) / FINER
    x, y = (places[None, :] - center[0]) / size, (places[:, None] - center[1]) / size  # the object within ±1/2
    inside = {
        "circle": x**2 + y**2 <= 0.25,
        "square": (abs(x) <= 0.5) & (abs(y) <= 0.5),
        "triangle": (abs(y) <= 0.5) & (2 * abs(x) <= y + 0.5),
    }[shape]
    return inside.reshape(SIDE, FINER, SIDE, FINER).mean((1, 3))


def things_in(image: np.ndarray) -> list[Found]:
    """The objects of an image, uint8 [32, 32, 3]: connected pixels of a color."""
    brightest = image.max(2) / 255
    hues = image / np.maximum(image.max(2, keepdims=True), 1)
    palette = np.array([np.array(color) / max(color) for color in COLORS.values()])
    nearest = ((hues[..., None, :] - palette) ** 2).sum(-1).argmin(-1)
    found = []
    for index, color in enumerate(COLORS):
        labels, count = label((nearest == index) & (brightest > FOREGROUND))
        for region in (labels == number for number in range(1, count + 1)):
            if region.sum() < LEAST / 2:
                continue
            y, x = center_of_mass(region)
            covered = np.where(binary_dilation(region, np.ones((3, 3))), image.max(2) / max(COLORS[color]), 0).clip(
                0, 1
            )
            shape, size = shape_and_size(covered) if region.sum() >= LEAST else ("speck", 0.0)
            named = min(SIZES, key=lambda name: abs(sum(SIZES[name]) / 2 - size))
            found.append(Found(color, shape, named, (x + 0.5, y + 0.5)))
    return found


def shape_and_size(covered: np.ndarray) -> tuple[str, float]:
    """The shape whose drawing of the same area and center is nearest to the share of each pixel that is covered."""
    area = covered.sum()
    places = np.arange(SIDE) + 0.5
    x, y = (covered.sum(0) * places).sum() / area, (covered.sum(1) * places).sum() / area
    distances, sizes = {}, {}
    for shape in SHAPES:
        sizes[shape] = size = math.sqrt(area / FILLED[shape])
        lower = size / 6 if shape == "triangle" else 0.0  # the center of its mass than that of its box
        distances[shape] = ((coverage(shape, (x, y - lower), size) - covered) ** 2).sum()
    nearest = min(SHAPES, key=lambda shape: distances[shape])
    return nearest, sizes[nearest]


def judged(image: np.ndarray, scene: Scene) -> dict[str, bool]:
    """What of a prompt is right in an image; objects are told apart by color, so with a wrong color nothing is."""
    found = things_in(image)
    asked = (scene.first, scene.second)
    colors = sorted(thing.color for thing in found) == sorted(thing.color for thing in asked)
    if not colors:
        return dict.fromkeys(("colors", "shapes", "sizes", "relation", "all"), False)
    one, other = (next(each for each in found if each.color == thing.color) for thing in asked)
    toward = RELATIONS[scene.relation]
    step = sum(way * (there - here) for way, here, there in zip(toward, one.center, other.center, strict=True))
    right = {
        "colors": True,
        "shapes": one.shape == scene.first.shape and other.shape == scene.second.shape,
        "sizes": all(each.size == thing.size for each, thing in zip((one, other), asked, strict=True) if thing.size),
        "relation": bool(step >= CENTERS_APART),
    }
    return {**right, "all": all(right.values())}


def draw(out: Path, count: int, prompts: int, seed: int) -> None:
    """Write images with metadata, and prompts whose combinations those images show or do not show."""
    rng = np.random.default_rng(seed)
    images = out / "images"
    images.mkdir(parents=True)  # and never into a folder that is there
    with open(images / "metadata.jsonl", "w") as file:
        for number in range(count):
            scene, name = random_scene(rng, seen=True), f"{number:05d}.png"
            Image.fromarray(draw_scene(scene, rng)).save(images / name)
            file.write(json.dumps({"file_name": name, "text": str(scene)}) + "\n")
    for name in ("seen", "unseen"):
        lines = [str(random_scene(rng, seen=name == "seen")) for _ in range(prompts)]
        (out / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"{out}: {count} images, {prompts} prompts each in seen.txt and unseen.txt")


def write_words(texts: Iterable[str], out: Path) -> None:
    """Write the embedding of each word of some texts by wordllama, as static embeddings without a tokenizer."""
    from ldm.text.encoder import open_encoder

    encoder = open_encoder("wordllama")
    vocabulary = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    table = torch.stack([encoder.tokens(word, 8).mean(0) for word in vocabulary])
    out.mkdir(parents=True)
    safetensors.torch.save_file({"embedding": table.half()}, out / "embedding.safetensors")
    (out / "words.txt").write_text("\n".join(vocabulary) + "\n")
    print(f"{out}: {len(vocabulary)} words, {table.shape[1]} wide")


def score(folder: Path, prompts: Path) -> None:
    """Print the share of images in which each part of the prompt is right, with its standard error."""
    scenes = [scene_of(line) for line in prompts.read_text().splitlines() if line]
    files = sorted(folder.glob("*.png"))
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    results = [judged(image, scenes[number % len(scenes)]) for number, image in enumerate(images)]
    for name in results[0]:
        share = sum(result[name] for result in results) / len(results)
        print(f"{name:9} {100 * share:6.1f} % ± {100 * math.sqrt(share * (1 - share) / len(results)):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="draw scenes into a new folder")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("--count", type=int, default=20000)
    drawing.add_argument("--prompts", type=int, default=500)
    drawing.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="measure samples")
    scoring.add_argument("images", type=Path)
    scoring.add_argument("prompts", type=Path)
    writing = commands.add_parser("words", help="write the words' embeddings into a new folder")
    writing.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "words":
        write_words(["a", *COLORS, *SHAPES, *SIZES, *RELATIONS], given.out)
    elif given.command == "draw":
        draw(given.out, given.count, given.prompts, given.seed)
    else:
        score(given.images, given.prompts)


if __name__ == "__main__":
    main()
