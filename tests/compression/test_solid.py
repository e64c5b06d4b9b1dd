"""Several images in one file: the same symbols, fewer bytes, and nothing that a crafted file could do."""

import zlib

import numpy as np
import pytest
import torch

from ldm.compression.codec import Codec
from ldm.compression.container import header_size, pack_solid, unpack_solid
from ldm.compression.sampling import sampled
from ldm.compression.solid import compress_solid, decompress_solid, verify_solid
from ldm.compression.step_search import target_of
from ldm.entropy.tables import POSITIONS
from ldm.errors import CodecError, DataError
from ldm.evaluation.metrics import psnr
from ldm.shapes import rounded
from tests.support.codecs import fitted_codec, pixel_codec, small_images
from tests.support.mutations import mutated, sealed

NAMES = [f"some/{number}" for number in range(6)]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return fitted_codec()


def solid(codec: Codec, images: list[torch.Tensor], *, step: float | None = None, rate: float | None = None) -> bytes:
    return compress_solid(codec, images, NAMES[: len(images)], target_of(step, rate, None))


def test_a_solid_file_holds_what_single_files_hold_in_fewer_bytes(codec: Codec) -> None:
    images = [*small_images(4, seed=3), *small_images(2, 12, seed=4)]
    single, file = codec.compress(images, step=0.2), solid(codec, images, step=0.2)
    found = decompress_solid(codec, file)
    assert list(found) == NAMES and len(file) < sum(map(len, single))
    for one, other in zip(found.values(), codec.decompress(single), strict=True):
        assert one.equal(other)
    assert [each.shape for each in verify_solid(codec, images, file)] == [image.shape for image in images]
    with pytest.raises(CodecError, match="does not decode to the symbols"):
        verify_solid(codec, images[::-1][2:] + images[:2][::-1], solid(codec, images, step=0.2))


def test_a_rate_is_that_of_the_whole_solid_file(codec: Codec) -> None:
    images = list(small_images(6, seed=5))
    file = solid(codec, images, rate=1.2)
    assert 8 * len(file) <= 1.2 * 6 * 256
    finer = (unpack_solid(file)[0][0].step - 1) / POSITIONS
    assert 8 * len(solid(codec, images, step=finer)) > 1.2 * 6 * 256
    (quality,) = (compress_solid(codec, images, NAMES, target_of(None, None, 14.0)),)
    decoded = torch.stack(list(decompress_solid(codec, quality).values()))
    assert float(psnr(torch.stack(images), rounded(decoded)).mean()) >= 14


@pytest.mark.parametrize("name", ["../escaped", "/root", "a//b", "a/./b", "a\\b", "", "two\nlines", "some/1"])
def test_a_name_that_leaves_its_folder_or_is_there_twice_is_refused(codec: Codec, name: str) -> None:
    images, names = list(small_images(2)), ["some/1", name]
    with pytest.raises(DataError, match="different paths inside a folder"):
        compress_solid(codec, images, names, target_of(0.5, None, None))
    headers, _, payload = unpack_solid(solid(codec, images, step=0.5))
    with pytest.raises(CodecError, match="damaged"):
        decompress_solid(codec, pack_solid(headers, names, payload))


def test_names_that_inflate_without_end_are_refused_before_they_do(codec: Codec) -> None:
    file = solid(codec, list(small_images(1)), step=0.5)
    bomb = zlib.compress(bytes(2**27), 9)
    numbers = bytes([128 | 0, 2]) + bytes([128 | len(bomb) & 127, 128 | len(bomb) >> 7 & 127, len(bomb) >> 14])
    with pytest.raises(CodecError, match="damaged"):
        decompress_solid(codec, sealed(file[:13] + numbers + bomb))


def test_mutated_solid_files_decode_or_are_refused_as_files() -> None:
    codec = pixel_codec("channel-checkerboard")
    images = [torch.linspace(-1, 1, 144).view(1, 12, 12) * size for size in (1, 0.5, 0.1)]
    files, refused = [solid(codec, images, step=step) for step in (0.1, 0.7)], 0
    for file in mutated(files, 300):
        try:
            found = decompress_solid(codec, file)
        except CodecError:
            refused += 1
        else:
            assert all(image.isfinite().all() for image in found.values())
    assert refused > 200
    with pytest.raises(CodecError, match="several images"):
        codec.decompress(files)
    assert 13 < header_size(files[0]) < 60


def test_samples_of_the_entropy_model_cost_what_it_says_and_depend_on_seed_and_number_alone(codec: Codec) -> None:
    model, steps = codec.entropy_model, [128, 128]

    symbols = model.sample((2, 24, 24), steps, np.random.default_rng(0))
    payload = model.encode(symbols, steps)
    assert abs(8 * len(payload) / model.bits(symbols, steps) - 1) < 0.02
    assert (model.decode(payload, symbols.shape, steps) == symbols).all()
    images = [next(sampled(codec, (16, 16), 64, seed=seed)) for seed in (1, 1, 2)]
    assert images[0].shape == (3, 16, 16) and images[0].equal(images[1]) and not images[0].equal(images[2])
