"""Normal images in memory, and anomalies among them, for tests of anomaly detection."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, Subset
from ldm.randomness import generator
from ldm.shapes import Images


def data_of(images: Images, groups: Sequence[str] | None = None, fingerprint: str = "test") -> Subset:
    """The images as a data set that keeps them to the bit."""
    count, channels, height, width = images.shape
    config = FolderConfig(path="memory", size=(height, width), channels=channels, depth="float32", held_out=0.2)
    names = [f"{number:04d}" for number in range(count)]
    arrays = images.float().numpy()
    labels = np.zeros(count, dtype=np.int64)
    dataset = Dataset(config, names, labels, [], list(groups or names), fingerprint, lambda number: arrays[number])
    return Subset(dataset, list(range(count)))


def subspace_images(
    count: int, shape: tuple[int, int, int], *, rank: int = 3, noise: float = 0.05, seed: int = 0
) -> Images:
    """Images of a random subspace, with a little noise: what principal components rebuild."""
    size = int(np.prod(shape))
    axes = torch.linalg.qr(torch.randn(size, rank, generator=generator(0, "subspace"))).Q
    rng = generator(seed, "subspace images")
    coordinates = torch.randn(count, rank, generator=rng) * torch.tensor([1.5, 1.0, 0.7, 0.5, 0.4][:rank])
    rows: Tensor = coordinates @ axes.T + noise * torch.randn(count, size, generator=rng)
    return rows.view(count, *shape).clamp(-1, 1)
