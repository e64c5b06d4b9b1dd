"""Rate-distortion curves: BD-rate, and what of a classical file is payload."""

import pytest
import torch

from ldm.compression.classical import CLASSICAL_CODECS
from ldm.compression.rate_distortion import Curve, RatePoint
from ldm.shapes import to_uint8
from tests.support.codecs import small_images


def curve(rates: list[float], psnr: list[float], payload: float = 1.0) -> Curve:
    pairs = zip(rates, psnr, strict=True)
    return Curve("some", [RatePoint(0, rate, rate * payload, {"psnr": decibels}) for rate, decibels in pairs])


def test_a_codec_that_needs_a_quarter_less_at_every_psnr_has_a_bd_rate_of_minus_a_quarter() -> None:
    reference = curve([0.5, 1.0, 2.0], [20.0, 25.0, 30.0])
    shifted = curve([0.375, 0.75, 1.5], [20.0, 25.0, 30.0], payload=0.5)
    assert shifted.bd_rate(reference) == pytest.approx(-0.25)
    assert shifted.bd_rate(reference, payload=True) == pytest.approx(-0.625)
    assert reference.bd_rate(reference) == pytest.approx(0)
    # Only the common range counts, and a point that costs more for less does not.
    assert curve([0.375, 0.7, 0.75], [20.0, 19.0, 25.0]).bd_rate(reference) == pytest.approx(-0.25)
    assert curve([3.0, 4.0], [31.0, 33.0]).bd_rate(reference) is None


@pytest.mark.parametrize("name", [name for name, codec in CLASSICAL_CODECS.items() if codec.is_there])
def test_payload_of_a_classical_file_is_what_grows_with_the_image_and_tables_are_not(name: str) -> None:
    codec, rng = CLASSICAL_CODECS[name], torch.Generator().manual_seed(0)
    flat = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    busy = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=rng)
    value = codec.values[len(codec.values) // 2]
    plain, noisy = codec.file(flat, value), codec.file(busy, value)
    headers = [len(file) - codec.payload(file) for file in (plain, noisy)]
    assert headers[0] > 0 and codec.payload(plain) < 200 < codec.payload(noisy)
    assert abs(headers[1] - headers[0]) < (700 if name == "JPEG" else 60)
    image = to_uint8(small_images(1, 64)[0])
    assert codec.image(codec.file(image, codec.values[-1]), 3).shape == image.shape
