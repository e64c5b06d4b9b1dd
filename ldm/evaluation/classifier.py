"""A small image classifier, trained on the spot: it reads samples, is trained on samples, and lends its features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.pretrained_weights import sha256_of
from ldm.randomness import derived_seed, generator
from ldm.shapes import Images, Labels, to_float

SIDE = 64  # pixels: larger images are shrunk to it
GRID = 16  # positions after the first layer, in each direction
WIDTHS = (32, 64, 128)
STEPS, BATCH, RATE = 300, 64, 5e-3
TURNS = 4  # quarter turns, the classes of images that have none


class Classifier(nn.Module):
    """Three convolutions, the first of which leaves about 16 x 16 positions, their mean, and a linear layer.

    It is made for images of channels x height x width, and takes any other size too.
    """

    def __init__(self, image: tuple[int, int, int], classes: int):
        super().__init__()
        layers, strides = [], (max(min(*image[1:], SIDE) // GRID, 1), 2, 2)
        for inputs, outputs, stride in zip((image[0], *WIDTHS), WIDTHS, strides, strict=False):
            kernel = max(2 * stride - 1, 3)
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, images: Images) -> Tensor:
        """Logits: batch x classes."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Images) -> Tensor:
        """What the linear layer is given: batch x 128."""
        features: Tensor = self.layers(shrunk(images)).mean((2, 3))
        return features


def shrunk(images: Images) -> Images:
    """Images of at most 64 x 64 pixels: means over the areas of larger ones."""
    sides = [min(side, SIDE) for side in images.shape[2:]]
    return images if sides == list(images.shape[2:]) else F.interpolate(images, size=sides, mode="area")


@dataclass(frozen=True, eq=False)
class ClassifierTask:
    """What a classifier learns: the classes of images or, where they have none, how many quarter turns each is turned.

    The latter is a pretext task whose features are of use for others (Gidaris et al. 2018).
    """

    classes: int  # 0: quarter turns
    flip: bool = False  # whether a mirror image is as good

    @property
    def outputs(self) -> int:
        """How many classes the classifier has."""
        return self.classes or TURNS

    def examples(self, images: Images, labels: Labels, turns: Tensor) -> tuple[Images, Labels]:
        """What the classifier is shown, and what it should say."""
        if self.classes:
            return images, labels
        side = min(images.shape[2:])
        squares = images[..., :side, :side]
        turned = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(squares, turns, strict=True)]
        return torch.stack(turned), turns


def train_classifier(
    task: ClassifierTask,
    pixels: Tensor,
    labels: Labels,
    device: torch.device,
    *,
    seed: int = 0,
    on_step: Callable[[int], object] = lambda count: None,
) -> Classifier:
    """A classifier of uint8 images, trained for a fixed number of steps: AdamW, one cycle of learning rates.

    Images are shifted by up to a sixteenth of their sides, and mirrored where the task says so. The same on any
    number of threads and processes, as it is trained on one.
    """
    with one_thread(), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(derived_seed(seed, "classifier"))
        classifier = Classifier(image_shape(pixels), task.outputs).to(device)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.05)
        rng = generator(seed, "classifier augmentation")
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for chosen in batches(len(pixels), seed):
            given = labels[chosen] if task.classes else chosen
            shown, wanted = augmented(task, to_float(pixels[chosen]), given, rng)
            loss = F.cross_entropy(classifier(shown.to(device)), wanted.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step(1)
    return classifier.eval().requires_grad_(False)


def image_shape(pixels: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of each of the images."""
    channels, height, width = pixels.shape[1:]
    return channels, height, width


def batches(count: int, seed: int) -> Iterator[Tensor]:
    """The images of each training step, epoch by epoch, each in a new order."""
    size, order, epoch = min(BATCH, count), torch.tensor([], dtype=torch.int64), 0
    for _ in range(STEPS):
        if len(order) < size:
            order = torch.randperm(count, generator=generator(seed, "classifier order", epoch))
            epoch += 1
        yield order[:size]
        order = order[size:]


def augmented(task: ClassifierTask, images: Images, labels: Labels, rng: torch.Generator) -> tuple[Images, Labels]:
    """A training batch, shifted as a whole, each image mirrored or not."""
    images = shrunk(images)
    most = [side // 16 for side in images.shape[2:]]
    down, right = (int(torch.randint(-shift, shift + 1, (), generator=rng)) for shift in most)
    padded = F.pad(images, (most[1], most[1], most[0], most[0]), mode="replicate")
    images = padded[:, :, most[0] + down :, most[1] + right :][:, :, : images.shape[2], : images.shape[3]]
    if task.flip:
        images = torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images.flip(-1), images)
    return task.examples(images, labels, torch.randint(0, TURNS, (len(images),), generator=rng))


@torch.no_grad()
def accuracy(classifier: Classifier, task: ClassifierTask, pixels: Tensor, labels: Labels, size: int = 256) -> float:
    """Share of uint8 images that the classifier gets right; each in all four turns where these are its classes."""
    device, right, total = next(classifier.parameters()).device, 0, 0
    labels = labels if task.classes else torch.zeros(len(pixels), dtype=torch.int64)
    for images, wanted in zip(pixels.split(size), labels.split(size), strict=True):
        for turn in range(1 if task.classes else TURNS):
            shown, expected = task.examples(shrunk(to_float(images)), wanted, torch.full((len(images),), turn))
            right += int((classifier(shown.to(device)).argmax(1).cpu() == expected).sum())
            total += len(images)
    return right / total


def protocol_entry(classifier: Classifier, task: ClassifierTask, images: int) -> dict[str, Any]:
    """What there is to know about a classifier, for a protocol."""
    return {
        "architecture": f"convolutions to {', '.join(map(str, WIDTHS))} channels, each with batch norm and ReLU;"
        f" mean over positions; linear; images larger than {SIDE} pixels shrunk to that",
        "classes": task.classes or "none: by how many quarter turns an image is turned",
        "training": f"{STEPS} steps of {min(BATCH, images)}, AdamW, one cycle up to a learning rate of {RATE:g}; shifts"
        f"{' and mirror images' if task.flip else ''}",
        "training_images": images,
        "seed": 0,
        "weights": sha256_of(classifier.state_dict()),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this block sums are made in one order, on a GPU too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(threads)
