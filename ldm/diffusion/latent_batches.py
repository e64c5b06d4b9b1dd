"""Training batches of latents: loaded by number, sampled, noised and left without a condition on the device."""

from functools import lru_cache
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ldm.batch import Condition, LatentBatch
from ldm.data.augmentation import flips
from ldm.data.batches import BatchSampler, TrainingBatches
from ldm.data.datasets import Dataset
from ldm.data.device_store import fits_on
from ldm.data.order import MOST_SHUFFLED
from ldm.diffusion.losses.config import ObjectiveConfig
from ldm.diffusion.losses.noise_distribution import create_noise_distribution
from ldm.diffusion.objective import drop_condition
from ldm.randomness import StepRandom
from ldm.training.config import RunConfig
from ldm.training.sharded_array import as_tensor


class CachedMoments(Protocol):
    """Cached posterior moments of all images, and what is made of them."""

    @property
    def moments(self) -> np.ndarray:
        """Flips x images x channels x height x width; of bfloat16 the bits, as `as_tensor` reads them."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        ...

    def posterior_of(self, moments: Tensor) -> Any:
        """The posteriors of some rows, on their device."""
        ...

    def statistics_on(self, device: torch.device | str) -> Self:
        """The same, ready for rows on a device."""
        ...


class LatentRows(NamedTuple):
    """What a data loader brings of a batch: which images it is of, and, where the device has none, their moments."""

    indices: Tensor  # in the data set, int64
    epochs: Tensor  # int64
    condition: Condition
    moments: Tensor | None  # None: in the store


class LatentBatches(TrainingBatches[LatentRows, LatentBatch]):
    """Training latents, with noise, noise levels and conditions drawn beside them.

    Where the moments fit onto the device they lie there, in the precision that they are cached in, and the rows are
    numbers; else workers bring them.
    """

    def __init__(
        self,
        cache: CachedMoments,
        dataset: Dataset,
        config: ObjectiveConfig,
        sampler: BatchSampler,
        device: torch.device | str = "cpu",
        run: RunConfig | None = None,
    ):
        super().__init__(sampler)
        run = run or RunConfig()
        self.cache, self.config = cache.statistics_on(device), config
        self.condition = dataset.conditions  # and not the images, which workers would copy
        self.noise_distribution = create_noise_distribution(config.noise_distribution)
        self.loads_data = not fits_on(device, cache.moments.nbytes, run.store, dataset.config.cache_gb)
        # On the host that is the mapped file, which its processes share.
        on_gpu = not self.loads_data and torch.device(device).type != "cpu"
        self.store = copied(cache.moments, device) if on_gpu else None

    def __getstate__(self) -> dict[str, Any]:
        """Workers, which get this, have nothing to do on the device."""
        return vars(self) | {"cache": self.cache.statistics_on("cpu"), "store": None}

    def __getitem__(self, micro_batch: int) -> LatentRows:
        indices, epochs = self.sampler.spec(micro_batch).tensors()
        moments = self.gathered(indices, epochs) if self.loads_data else None
        return LatentRows(indices, epochs, self.condition[indices], moments)

    def prepare(self, rows: LatentRows, rng: StepRandom) -> LatentBatch:
        device, shape = rows.indices.device, self.cache.shape
        moments = self.gathered(rows.indices, rows.epochs) if rows.moments is None else rows.moments
        posterior = self.cache.posterior_of(moments)
        latents = posterior.mode()
        if posterior.logvar is not None:
            latents = posterior.reparameterize(rng.normal("posterior", *shape, device=device))
        noise = rng.normal("noise", *shape, device=device)
        sigma = self.noise_distribution.draw(rng, device).to(latents)
        return LatentBatch(latents, noise, sigma, drop_condition(self.config, rows.condition, rng, device))

    def gathered(self, indices: Tensor, epochs: Tensor) -> Tensor:
        """The moments of these images, or of their mirror images."""
        mirrored = self.mirrored(indices, epochs)
        if self.store is not None:
            return self.store[mirrored, indices]
        return as_tensor(self.cache.moments[mirrored.numpy(), indices.numpy()])

    def mirrored(self, indices: Tensor, epochs: Tensor) -> Tensor:
        """1 for each image that is seen mirrored, as (seed, epoch, image) alone decides, 0 for the others."""
        views, count = self.cache.moments.shape[:2]
        if views == 1:
            return torch.zeros_like(indices)
        if indices.device.type == "cpu" and count <= MOST_SHUFFLED:
            first = int((of := epochs.numpy())[0])
            if (of == first).all():
                return flips_of_epoch(self.sampler.seed, first, count)[indices].long()
        return flips(self.sampler.seed, epochs, indices).long()


@lru_cache(maxsize=2)
def flips_of_epoch(seed: int, epoch: int, count: int) -> Tensor:
    """Which of all images are mirrored in an epoch: on a CPU these take little longer than those of one batch."""
    indices = torch.arange(count)
    return flips(seed, torch.full_like(indices, epoch), indices)


def copied(moments: np.ndarray, device: torch.device | str) -> Tensor:
    """The moments of every image in one tensor on a device, some at a time."""
    store = torch.empty(moments.shape, dtype=as_tensor(moments[:0, :0].copy()).dtype, device=device)
    for flip, rows in enumerate(moments):
        for start in range(0, len(rows), 1024):
            part = slice(start, start + 1024)
            store[flip, part] = as_tensor(np.array(rows[part])).to(device)
    return store
