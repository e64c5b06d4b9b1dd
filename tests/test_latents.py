"""Cached latents are fresh ones, standardized; a cache of anything else is refused."""

import errno
import json
import math
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.latent_encoding import check_shared, encode_shards
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.batch import NULL, LatentBatch
from ldm.data.batches import BatchSampler
from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.diffusion.config import DenoiserConfig, GaussianSkipConfig, SamplingConfig, ScalarSkipConfig
from ldm.diffusion.gaussian import fit_gaussian
from ldm.diffusion.latent_batches import LatentBatches, copied
from ldm.diffusion.losses.config import DenoisingObjectiveConfig, LogNormalConfig
from ldm.errors import CheckpointError, ConfigError
from ldm.latents import (
    LatentCache,
    above_noise,
    array_of,
    cache_lock,
    fingerprint,
    gaussian_of,
    open_autoencoder,
    open_cache,
    possible_skip,
)
from ldm.randomness import generator
from ldm.training import sharded_array
from ldm.training.config import RunConfig
from ldm.training.processes import Processes
from ldm.training.sharded_array import ShardedArray
from tests.support.runs import one_process
from tests.support.scripts import Stage, together

CPU = torch.device("cpu")


def untrained(seed: int = 0) -> Autoencoder:
    """An autoencoder whose latents are neither centered nor of unit variance."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(
        network=KLNetworkConfig(widths=(8, 8), norm_groups=4), bottleneck=GaussianConfig(channels=2)
    )
    autoencoder = create_trainable(config, image=(3, 16, 16)).eval().requires_grad_(False)
    autoencoder.network.quant_conv.bias.copy_(torch.tensor([0.5, -3.0, -4.0, -1.0]))
    return autoencoder


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return untrained()


@pytest.fixture(scope="module")
def dataset(shapes_folder: Path) -> Dataset:
    return open_dataset(FolderConfig(path=str(shapes_folder), size=16, flip=True))


def build(folder: Path, autoencoder: Autoencoder, dataset: Dataset, precision: str = "float32") -> ShardedArray:
    folder.mkdir(parents=True, exist_ok=True)
    array = array_of(folder, autoencoder, dataset, precision)
    with one_process() as processes:
        encode_shards(array, array.begin(), autoencoder, dataset, processes)
    array.finish()
    return array


def cached(folder: Path, autoencoder: Autoencoder, dataset: Dataset, precision: str = "float32") -> LatentCache:
    array = build(folder, autoencoder, dataset, precision)
    cache = open_cache(folder, array.fingerprint, autoencoder.latent_channels, precision)
    assert cache is not None
    return cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, autoencoder: Autoencoder, dataset: Dataset) -> LatentCache:
    return cached(tmp_path_factory.mktemp("cache"), autoencoder, dataset)


def plain(dataset: Dataset, indices: list[int]) -> Tensor:
    return Subset(dataset, indices).images()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


# ---- the cache


def test_cached_posteriors_are_fresh_ones_in_plain_and_in_mirrored_view(cache, autoencoder, dataset):
    indices, flips = [5, 0, 41, 17, 59, 5], [0, 1, 1, 0, 1, 1]
    images = plain(dataset, indices)
    seen = torch.stack([image.flip(-1) if flip else image for image, flip in zip(images, flips, strict=True)])
    fresh, found = autoencoder.encode(seen), cache.posterior(indices, flips)
    close(found.mean, fresh.mean)
    close(found.logvar, fresh.logvar)
    close(cache.posterior(indices).mean, autoencoder.encode(images).mean)


def test_the_latent_of_a_mirror_image_is_not_the_mirrored_latent(cache):
    plain, mirrored = cache.posterior([3]).mean, cache.posterior([3], [1]).mean
    assert (mirrored - plain.flip(-1)).abs().max() > 1e-3


def test_the_cache_holds_moments_of_every_image_memory_mapped_and_read_only(cache, dataset):
    assert isinstance(cache.moments, np.memmap) and not cache.moments.flags.writeable
    assert cache.moments.shape == (2, len(dataset), 4, 8, 8) and cache.shape == (2, 8, 8)


def test_without_flips_only_plain_views_are_encoded(tmp_path, autoencoder, dataset):
    never_flipped = replace(dataset, config=replace(dataset.config, flip=False))
    found = cached(tmp_path, autoencoder, never_flipped)
    assert found.moments.shape[0] == 1
    close(found.posterior([4, 2]).mean, autoencoder.encode(plain(dataset, [4, 2])).mean)


def test_a_fingerprint_tells_weights_statistics_data_and_flips_apart(autoencoder, dataset):
    moved, standardized = untrained(), untrained()
    moved.network.decoder.conv_in.bias[0] += 1e-3
    standardized.standardize(torch.zeros(2), torch.tensor([1.0, 2.0]))
    found = [
        fingerprint(autoencoder, "data", 2),
        fingerprint(untrained(1), "data", 2),
        fingerprint(moved, "data", 2),
        fingerprint(standardized, "data", 2),
        fingerprint(autoencoder, "other data", 2),
        fingerprint(autoencoder, "data", 1),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(untrained(), "data", 2) == found[0]


def test_a_stale_cache_is_refused_by_name(tmp_path, autoencoder, dataset):
    cached(tmp_path, autoencoder, dataset)
    for other in (
        fingerprint(untrained(1), dataset.fingerprint, 2),
        fingerprint(autoencoder, "other data", 2),
        fingerprint(autoencoder, dataset.fingerprint, 1),
    ):
        with pytest.raises(CheckpointError, match="stale") as caught:
            open_cache(tmp_path, other, 2)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def damages(folder: Path) -> dict[str, tuple[str, bytes | None]]:
    """What the file of that name holds in each damaged cache; None: it is gone."""
    moments, description = (folder / "moments.npy").read_bytes(), (folder / "cache.json").read_bytes()
    return {
        "moments missing": ("moments.npy", None),
        "moments empty": ("moments.npy", b""),
        "moments cut short": ("moments.npy", moments[:-1]),
        "moments cut in the header": ("moments.npy", moments[:60]),
        "moments of another shape": ("moments.npy", moments.replace(b"(2, 60, 4, 8, 8)", b"(2, 30, 8, 8, 8)", 1)),
        "moments of another type": ("moments.npy", moments.replace(b"<f4", b"<i4", 1)),
        "description empty": ("cache.json", b""),
        "description cut short": ("cache.json", description[:-4]),
        "description of something else": ("cache.json", b"[1, 2]"),
        "description that is not text": ("cache.json", b"\xff\xfe\x00"),
    }


def test_a_damaged_cache_is_refused_by_name(tmp_path, cache, autoencoder, dataset):
    original = cached(tmp_path / "original", autoencoder, dataset)
    for what, (name, content) in damages(tmp_path / "original").items():
        folder = tmp_path / what
        folder.mkdir()
        for file in ("moments.npy", "cache.json"):
            data = content if file == name else (tmp_path / "original" / file).read_bytes()
            if data is not None:
                (folder / file).write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            open_cache(folder, original.fingerprint, 2)
        assert str(folder) in str(caught.value) and "delete it" in str(caught.value)


def test_a_changed_byte_of_the_header_never_gives_other_shapes(tmp_path, autoencoder, dataset):
    original = cached(tmp_path, autoencoder, dataset)
    path, shape = tmp_path / "moments.npy", original.moments.shape
    data, changed = path.read_bytes(), np.random.default_rng(0)
    path.unlink()  # the original stays mapped
    for place in range(128):
        path.write_bytes(data[:place] + bytes([data[place] ^ int(changed.integers(1, 256))]) + data[place + 1 :])
        try:
            found = open_cache(tmp_path, original.fingerprint, 2)
        except CheckpointError:
            continue
        assert found.moments.shape == shape and found.moments.dtype == np.float32


def test_half_a_cache_is_none_and_is_built_anew(tmp_path, cache, autoencoder, dataset):
    (tmp_path / "moments.npy").write_bytes(b"half a cache")
    assert open_cache(tmp_path, cache.fingerprint, 2) is None
    assert np.array_equal(cached(tmp_path, autoencoder, dataset).moments, cache.moments)


def test_a_build_that_was_killed_goes_on_with_the_shards_that_are_missing(
    tmp_path, cache, autoencoder, dataset, monkeypatch
):
    monkeypatch.setattr(sharded_array, "SHARD", 25)
    array = array_of(tmp_path, autoencoder, dataset, "float32")
    assert array.begin() == [0, 1, 2]
    with one_process() as processes:
        encode_shards(array, [1], autoencoder, dataset, processes)
    assert open_cache(tmp_path, cache.fingerprint, 2) is None
    written = (tmp_path / "moments.npy").stat().st_ino
    assert array.begin() == [0, 2] and (tmp_path / "moments.npy").stat().st_ino == written
    with one_process() as processes:
        encode_shards(array, [0, 2], autoencoder, dataset, processes)
    array.finish()
    found = open_cache(tmp_path, cache.fingerprint, 2)
    np.testing.assert_allclose(found.moments, cache.moments, rtol=1e-5, atol=1e-5)
    for shard in range(3):
        array.verify(shard)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "moments.npy"]


def test_what_was_built_of_something_else_is_not_gone_on_with(tmp_path, autoencoder, dataset):
    other = array_of(tmp_path, untrained(1), dataset, "float32")
    with one_process() as processes:
        encode_shards(other, other.begin(), untrained(1), dataset, processes)
    for precision in ("float32", "bfloat16"):
        assert array_of(tmp_path, autoencoder, dataset, precision).begin() == [0]


def test_a_flipped_bit_of_the_moments_is_named(tmp_path, autoencoder, dataset):
    array = build(tmp_path, autoencoder, dataset)
    array.verify(0)
    data = bytearray((tmp_path / "moments.npy").read_bytes())
    data[-100] ^= 1
    (tmp_path / "moments.npy").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged \(the checksum of images 0 to 59\): delete it"):
        array.verify(0)


def test_a_cache_of_an_earlier_version_without_checksums_is_still_read(tmp_path, cache, autoencoder, dataset):
    array = build(tmp_path, autoencoder, dataset)
    description = json.loads((tmp_path / "cache.json").read_text())
    before = {name: description[name] for name in ("fingerprint", "shape")}
    (tmp_path / "cache.json").write_text(json.dumps(before))
    array.verify(0)
    assert np.array_equal(open_cache(tmp_path, cache.fingerprint, 2, "float32").moments, cache.moments)


def test_in_bfloat16_the_cache_is_half_as_large_and_rounded(tmp_path, cache, autoencoder, dataset):
    small = cached(tmp_path, autoencoder, dataset, "bfloat16")
    assert small.moments.nbytes * 2 == cache.moments.nbytes and small.fingerprint == cache.fingerprint
    indices, flips = [5, 0, 41], [0, 1, 1]
    expected, found = cache.posterior(indices, flips), small.posterior(indices, flips)
    assert torch.equal(found.mean, expected.mean.bfloat16().float())
    assert torch.equal(found.logvar, expected.logvar.bfloat16().float())
    with pytest.raises(CheckpointError, match=r"is of bfloat16, and run\.latents is float32: delete it"):
        open_cache(tmp_path, cache.fingerprint, 2, "float32")


def test_a_file_of_more_shards_than_one_holds_every_view_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_array, "SHARD", 3)
    array = ShardedArray(tmp_path, "x", (2, 7, 1, 2, 2), "float32")
    numbers = np.arange(2 * 7 * 4, dtype=np.float32).reshape(2, 7, 1, 2, 2)
    for shard in reversed(array.begin()):
        images = array.images(shard)
        array.write(shard, ([view[[image]] for view in numbers] for image in images))
    array.finish()
    assert np.array_equal(np.load(array.file), numbers) and len(array) == 3


def test_two_processes_encode_a_cache_together(tmp_path, cache, autoencoder, dataset, monkeypatch):
    monkeypatch.setattr(sharded_array, "SHARD", 13)
    array = array_of(tmp_path, autoencoder, dataset, "float32")

    def work() -> int:
        processes = Processes("cpu")
        encode_shards(array, processes.on_main(array.begin), autoencoder, dataset, processes)
        processes.on_main(array.finish)
        return 0

    outcomes = together([work] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for shard in range(5):
        array.verify(shard)
    found = open_cache(tmp_path, cache.fingerprint, 2)
    np.testing.assert_allclose(found.moments, cache.moments, rtol=1e-5, atol=1e-5)


def test_a_cache_that_other_machines_do_not_see_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the same folder for every process: several machines need one"):
        check_shared(tmp_path, is_there=False)


def test_two_runs_that_share_a_cache_do_not_write_it_at_once(tmp_path):
    """The second would empty the file that the first has mapped, which would train on zeros."""
    order: list[str] = []

    def second() -> None:
        with cache_lock(tmp_path):
            order.append("second")

    with cache_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_and_leaves_no_cache(tmp_path, cache, autoencoder, dataset):
    """Writing through a memory map would end in SIGBUS, which no program survives."""
    (tmp_path / "moments.npy").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        build(tmp_path, autoencoder, dataset)
    assert caught.value.errno == errno.ENOSPC and str(tmp_path) in caught.value.filename
    assert open_cache(tmp_path, cache.fingerprint, 2) is None


# ---- standardizing


def test_standardized_latents_have_mean_0_and_std_1_and_the_autoencoder_agrees(cache, dataset):
    autoencoder, indices = untrained(), list(range(0, 60, 2))
    images = plain(dataset, [1, 2, 3])
    reconstruction = autoencoder.reconstruct(images)
    standardized = cache.standardize(autoencoder, indices)
    samples = torch.stack(
        [standardized.posterior(indices).sample(generator(0, "test", draw)) for draw in range(300)]
    ).double()
    assert bool((samples.mean((0, 1, 3, 4)).abs() < 0.02).all())
    assert bool(((samples.std((0, 1, 3, 4)) - 1).abs() < 0.02).all())
    for flips in ([0, 0, 0], [1, 1, 1]):
        fresh = autoencoder.encode(images.flip(-1) if flips[0] else images)
        close(standardized.posterior([1, 2, 3], flips).mean, fresh.mean)
        close(standardized.posterior([1, 2, 3], flips).logvar, fresh.logvar)
    close(autoencoder.reconstruct(images), reconstruction)


def test_standardizing_again_changes_nothing(cache):
    autoencoder, indices = untrained(), list(range(60))
    once = cache.standardize(autoencoder, indices)
    twice = once.standardize(autoencoder, indices)
    close(twice.mean, once.mean, 1e-6)
    close(twice.std, once.std, 1e-6)
    statistics = LatentStatistics()
    statistics.add(twice.posterior(indices))
    close(statistics.mean, torch.zeros(2), 1e-6)
    close(statistics.std, torch.ones(2), 1e-6)


def test_standardizing_leaves_the_weights_and_the_file_alone(cache, autoencoder):
    changed, before = untrained(), cache.moments[:].copy()
    cache.standardize(changed, list(range(60)))
    for name, value in autoencoder.network.state_dict().items():
        assert torch.equal(value, changed.network.state_dict()[name]), name
    assert np.array_equal(cache.moments, before)
    assert not cache.mean.any() and bool((cache.std == 1).all())


# ---- what a step sees


def batches(
    cache: LatentCache,
    dataset: Dataset,
    *,
    samples: int = 60,
    objective=None,
    run: RunConfig | None = None,
    **sampler: int,
) -> LatentBatches:
    given = {"seed": 0, "batch_size": 12, **sampler}
    order = BatchSampler(tuple(range(samples)), **given)
    return LatentBatches(cache, dataset, objective or DenoisingObjectiveConfig(), order, "cpu", run)


def test_a_worker_that_is_not_forked_was_sent_all_latents_instead_of_mapping_their_file(cache, dataset, tmp_path):
    np.save(tmp_path / "moments.npy", cache.moments)
    mapped = replace(cache, moments=np.load(tmp_path / "moments.npy", mmap_mode="r"))
    given = batches(mapped, dataset, run=RunConfig(store="host"))
    sent = pickle.dumps(given)
    assert len(sent) < cache.moments.nbytes / 2
    there = pickle.loads(sent)
    assert isinstance(there.cache.moments, np.memmap) and not there.cache.moments.flags.writeable
    assert torch.equal(there[3].moments, given[3].moments)
    half = replace(mapped, moments=mapped.moments[:, 1:])  # a part of a file is no file
    assert np.array_equal(pickle.loads(pickle.dumps(half)).moments, half.moments)


def test_latents_are_samples_of_the_posterior_with_fresh_noise_at_every_step(cache, dataset):
    only = replace(cache, moments=cache.moments[:1])  # no flips: always the same posterior
    given, posterior, count = batches(only, dataset, samples=1, batch_size=1), only.posterior([0]), 2000
    seen = torch.cat([given.batch(step).latents for step in range(count)]).double()
    assert len({tuple(latent.flatten().tolist()) for latent in seen[:50]}) == 50
    std = (posterior.logvar / 2).exp().double()
    standard = (seen - posterior.mean) / std
    assert bool((standard.mean(0).abs() < 5 / math.sqrt(count)).all())
    assert bool(((standard.std(0) - 1).abs() < 5 / math.sqrt(2 * count)).all())


def test_the_noise_of_the_posterior_is_not_the_noise_of_diffusion(cache, dataset):
    only, pairs = replace(cache, moments=cache.moments[:1]), []
    given = batches(only, dataset)
    for step in range(20):
        batch, posterior = given.batch(step), only.posterior(given.sampler.spec(step).indices)
        inner = (batch.latents - posterior.mean) / (posterior.logvar / 2).exp()
        pairs.append(torch.stack([inner.flatten(), batch.noise.flatten()]))
    both = torch.cat(pairs, dim=1).double()
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / math.sqrt(both.shape[1])
    assert abs(both[1].mean()) < 4 / math.sqrt(both.shape[1]) and abs(both[1].std() - 1) < 0.02


def test_a_latent_is_the_one_of_the_image_or_of_its_mirror_image_half_of_the_time(cache, dataset):
    given, mirrored = batches(cache, dataset), 0
    for step in range(50):
        spec = given.sampler.spec(step)
        flips = given.mirrored(torch.tensor(spec.indices), torch.tensor(spec.epochs)).tolist()
        noise = spec.rng.normal("posterior", *cache.shape)
        assert torch.equal(given.batch(step).latents, cache.posterior(spec.indices, flips).reparameterize(noise))
        mirrored += sum(flips)
    assert abs(mirrored - 300) < 4 * math.sqrt(150)


def test_whether_a_latent_is_mirrored_depends_on_epoch_and_image_alone(cache, dataset):
    given, epochs, images = batches(cache, dataset), torch.arange(4).repeat_interleave(60), torch.arange(60).repeat(4)
    together = given.mirrored(images, epochs)
    alone = [given.mirrored(images[place : place + 1], epochs[place : place + 1]) for place in range(240)]
    assert torch.equal(together, torch.cat(alone)) and len(together.view(4, 60).unique(dim=0)) == 4
    assert not torch.equal(together, batches(cache, dataset, seed=1).mirrored(images, epochs))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_stated_rate_to_the_null_label(cache, dataset, probability: float):
    given = batches(cache, dataset, objective=DenoisingObjectiveConfig(condition_dropout=probability))
    labels = torch.cat([given.batch(step).condition.values["label"] for step in range(100)])
    true = torch.tensor([dataset.labels[index] for step in range(100) for index in given.sampler.spec(step).indices])
    dropped = labels == NULL
    assert torch.equal(labels[~dropped], true[~dropped])
    assert abs(dropped.double().mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(labels))


def test_images_without_classes_have_an_empty_condition(cache, dataset):
    unlabeled = replace(dataset, classes=[], labels=np.zeros(60, dtype=np.int64))
    assert not batches(cache, unlabeled).batch(0).condition.values and not unlabeled.schema.attributes


def test_noise_levels_follow_the_noise_distribution(cache, dataset):
    distribution = LogNormalConfig(mean=-0.7, std=0.9)
    given = batches(cache, dataset, objective=DenoisingObjectiveConfig(noise_distribution=distribution))
    logs = torch.cat([given.batch(step).sigma for step in range(200)]).double().log()
    assert abs(logs.mean() + 0.7) < 4 * 0.9 / math.sqrt(len(logs))
    assert abs(logs.std() - 0.9) < 4 * 0.9 / math.sqrt(2 * len(logs))
    drawn = given.sampler.spec(7).rng.normal("sigma")
    torch.testing.assert_close(given.batch(7).sigma, (0.9 * drawn - 0.7).exp())


def tensors(batch: LatentBatch) -> list[Tensor]:
    return [batch.latents, batch.noise, batch.sigma, *batch.condition.values.values()]


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 4), (2, 2)])
def test_the_parts_of_a_step_tile_the_same_global_batch_bit_for_bit(cache, dataset, processes, accumulation):
    for step in (0, 3, 7):
        whole = batches(cache, dataset).batch(step)
        parts = [
            batches(cache, dataset, processes=processes, accumulation=accumulation, rank=rank).batch(
                step * accumulation + micro_step
            )
            for micro_step in range(accumulation)
            for rank in range(processes)
        ]
        for expected, *found in zip(tensors(whole), *map(tensors, parts), strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_the_store_and_the_workers_give_the_same_latents(cache, dataset):
    """Wherever the moments lie: in the mapped file, in a tensor on the device, or in what a worker brings."""
    mapped, loaded, stored = (
        batches(cache, dataset),
        batches(cache, dataset, run=RunConfig(store="host")),
        batches(cache, dataset),
    )
    stored.store = copied(cache.moments, "cpu")
    assert loaded.loads_data and not mapped.loads_data and mapped[0].moments is None
    for step in range(5):
        for expected, *found in zip(*(tensors(each.batch(step)) for each in (mapped, loaded, stored)), strict=True):
            assert all(torch.equal(expected, other) for other in found)


def test_latents_in_half_precision_are_half_as_large_and_hardly_different(cache, dataset):
    whole = batches(cache, dataset)
    bits = torch.from_numpy(np.array(cache.moments)).bfloat16().view(torch.uint16).numpy()
    halved = replace(cache, moments=bits)
    ways = [batches(halved, dataset, run=RunConfig(store=store)) for store in ("auto", "host")]
    stored, loaded = (each.batch(3).latents for each in ways)
    assert torch.equal(stored, loaded) and stored.dtype == torch.float32 and ways[1][0].moments.dtype == torch.bfloat16
    assert 0 < (stored - whole.batch(3).latents).abs().max() < 0.1


def test_the_posterior_of_the_cache_can_be_changed_without_touching_the_file(cache):
    before = cache.moments[0, 3].copy()
    posterior: Posterior = cache.posterior([3])
    posterior.mean.add_(1)
    assert np.array_equal(cache.moments[0, 3], before)


# ---- what of a denoiser starts from the latents


def test_the_gaussian_of_the_latents_is_that_of_posterior_samples_of_images_and_mirror_images(cache, dataset):
    training, _ = dataset.split()
    gaussian, indices = gaussian_of(cache, training), training.indices
    views = [cache.posterior(indices, [flip] * len(indices)) for flip in (0, 1)]
    means = torch.cat([view.mean for view in views]).double()
    close(gaussian.mean, means.mean(0))
    noise = views[0].variance.double().mean((0, 2, 3))
    by_hand = fit_gaussian(
        views[0].mean, mirrored=views[1].mean, noise_variance=noise, groups=[dataset.groups[i] for i in indices]
    )
    close(gaussian.eigenvalues, by_hand.eigenvalues)
    assert gaussian.basis.shape == (128, 128) and gaussian_of(cache, training, rank=7).basis.shape == (128, 7)


def test_a_gaussian_skip_is_off_and_said_so_for_latents_that_are_too_large_or_too_few(cache, dataset):
    training, _ = dataset.split()
    asked, said = DenoiserConfig(skip=GaussianSkipConfig()), list[str]()
    assert possible_skip(asked, cache, training, said.append) == asked and not said
    large = replace(cache, moments=np.broadcast_to(np.float32(0), (1, 60, 4, 65, 64)))
    for latents, images in ((large, training), (cache, training.evenly_spaced(1))):
        assert possible_skip(asked, latents, images, said.append).skip == ScalarSkipConfig()
    assert len(said) == 2 and all("denoiser.skip gaussian is off" in line for line in said)
    assert "8,320 numbers takes 4.1 GiB" in said[0] and "two or more" in said[1]


def test_the_last_noise_level_is_not_below_the_noise_of_the_latents() -> None:
    grid, said = SamplingConfig(sigma_min=0.01), list[str]()
    assert above_noise(grid, None, said.append) == grid and not said
    assert above_noise(grid, torch.tensor([0.001, 0.2]), said.append) == grid and not said
    assert above_noise(grid, torch.tensor([0.25, 0.5]), said.append) == replace(grid, sigma_min=0.25)
    assert said == ["sampling.sigma_min 0.01 is raised to 0.25, the noise of the autoencoder's latents"]


# ---- the autoencoder of stage two


def test_a_finished_run_is_standardized_for_its_own_data_and_frozen(finished_vae: Path, dataset: Dataset):
    data, config = json.loads((finished_vae / "environment.json").read_text())["data"], dataset.config
    autoencoder, standardized = open_autoencoder(str(finished_vae), config, data)
    assert standardized and not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert not open_autoencoder(str(finished_vae), config, "other data")[1]
    assert not open_autoencoder(str(finished_vae / "vae"), config, data)[1]


@pytest.mark.parametrize(("changed", "named"), [({"channels": 1}, "data.channels 1"), ({"size": 15}, "data.size 15")])
def test_an_autoencoder_of_other_images_is_refused_by_name(finished_vae: Path, dataset: Dataset, changed, named):
    with pytest.raises(CheckpointError, match=named) as caught:
        open_autoencoder(str(finished_vae), replace(dataset.config, **changed), "data")
    assert str(finished_vae) in str(caught.value)


def test_a_finished_run_encodes_its_training_images_to_mean_0_and_std_1(finished_vae: Path):
    latent = json.loads((finished_vae / "report.json").read_text())
    assert all(abs(mean) < 0.02 for mean in latent["latent_mean"])
    assert all(abs(std - 1) < 0.02 for std in latent["latent_std"])


def test_a_run_that_is_not_finished_is_refused_by_name(tmp_path: Path, dataset: Dataset):
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not finished") as caught:
        open_autoencoder(str(tmp_path), dataset.config, "data")
    assert str(tmp_path) in str(caught.value)


def test_stage_two_refuses_a_stale_cache_in_one_line(stage_two: Stage, tmp_path: Path):
    moments = np.zeros((2, 1, 4, 8, 8), dtype=np.float32)
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / "moments.npy", moments)
    (tmp_path / "cache" / "cache.json").write_text(json.dumps({"fingerprint": "another", "shape": moments.shape}))
    outcome = stage_two.run(tmp_path / "run", "--cache", tmp_path / "cache")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert outcome.code == 4 and len(errors) == 1 and "stale" in errors[0] and str(tmp_path / "cache") in errors[0]
    assert "Traceback" not in outcome.err
