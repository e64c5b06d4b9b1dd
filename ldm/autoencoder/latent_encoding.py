"""Encoding of a whole data set: every process encodes some of the shards of a latent cache."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Dataset, Subset
from ldm.errors import ConfigError
from ldm.shapes import Images
from ldm.training.processes import Processes
from ldm.training.sharded_array import ShardedArray


def encode_shards(
    array: ShardedArray, missing: list[int], autoencoder: Autoencoder, dataset: Dataset, processes: Processes
) -> None:
    """Encode the images of the missing shards, each process those of some; each image is decoded once for all views."""
    total = sum(len(array.images(shard)) for shard in missing)
    bar = tqdm(total=total, desc="encoding", unit="image", disable=not processes.is_main)

    def chunks(shard: int) -> Iterator[list[np.ndarray]]:
        for images in decoded_ahead(Subset(dataset, [*array.images(shard)])):
            views = [images, images.flip(-1)][: array.shape[0]]
            yield [stored(autoencoder.encode(view.to(processes.device)), array.precision) for view in views]
            bar.update(min(len(images) * processes.count, total - bar.n))

    def encode(shard: int) -> None:
        check_shared(array.folder, array.file.exists())
        with torch.no_grad():
            array.write(shard, chunks(shard))

    with bar:
        for _ in processes.map(len(missing), lambda number: encode(missing[number])):
            pass


def decoded_ahead(images: Subset) -> Iterator[Images]:
    """The images in chunks of 64, the next one of which is decoded in a thread meanwhile."""
    pool = ThreadPoolExecutor(1)
    try:
        following: Future[Images] | None = None
        for chunk in images.chunks():
            ready, following = following, pool.submit(chunk.images)
            if ready is not None:
                yield ready.result()
        if following is not None:
            yield following.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def stored(posterior: Posterior, precision: str) -> np.ndarray:
    """The moments of a posterior as the file holds them."""
    parts = [posterior.mean] if posterior.logvar is None else [posterior.mean, posterior.logvar]
    moments = torch.cat(parts, dim=1)
    if precision == "bfloat16":
        return moments.bfloat16().cpu().view(torch.uint16).numpy()
    return moments.float().cpu().numpy()


def check_shared(folder: Path, is_there: bool) -> None:
    """Raise ConfigError where this process does not see the cache that is there for another one."""
    if not is_there:
        raise ConfigError(
            f"--cache {folder} is not the same folder for every process: several machines need one that all of them"
            " share"
        )
