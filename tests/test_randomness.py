"""Counter-based random numbers: the published ones, the same on every device and for any part of a batch."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ldm.philox.counter_based import philox, philox_on_cpu
from ldm.randomness import StepRandom, normal_at, uniform_at
from tests.support.scripts import ROOT

# kat_vectors of Random123 (Salmon et al. 2011) for philox4x32 10: counter, key, words
ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


class OnAnotherDevice(Tensor):
    """Takes the way of all devices but the CPU, on the CPU."""


def elsewhere(places: Tensor) -> Tensor:
    """On a GPU where there is one, else on the CPU as if it were one."""
    return places.cuda() if torch.cuda.is_available() else places.as_subclass(OnAnotherDevice)


def back(numbers: Tensor) -> Tensor:
    return numbers.as_subclass(Tensor).cpu()


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    even, odd = philox(key, [torch.tensor([word]) for word in counter])
    assert torch.stack([even, odd], 1).flatten().tolist() == list(words)
    ((_, even_there, odd_there),) = philox_on_cpu(key, [np.array([word]) for word in counter])
    assert np.stack([even_there, odd_there], 1).flatten().tolist() == list(words)


@pytest.mark.parametrize("position", [3, 2**40 + 1, torch.arange(70) + 2**33])
def test_uniform_numbers_are_the_same_on_every_device_and_normal_ones_to_rounding(position: int | Tensor) -> None:
    """9,000 blocks: more than the CPU takes at a time."""
    places = torch.arange(70) * 2**25
    away = position if isinstance(position, int) else elsewhere(position)
    here = uniform_at(1, "noise", places, position, 515)
    assert torch.equal(back(uniform_at(1, "noise", elsewhere(places), away, 515)), here) and here.shape == (70, 515)
    here, there = normal_at(1, "noise", places, position, 515), normal_at(1, "noise", elsewhere(places), away, 515)
    torch.testing.assert_close(back(there), here, rtol=0, atol=4e-6)


def test_a_number_depends_on_its_place_and_not_on_how_many_are_drawn() -> None:
    rows = torch.arange(9)
    many = uniform_at(0, "draws", rows, 5, 40)
    assert all(torch.equal(uniform_at(0, "draws", rows, 5, count), many[:, :count]) for count in (1, 3, 4, 17))
    assert torch.equal(uniform_at(0, "draws", rows.flip(0), 5, 40), many.flip(0))
    assert many.unique().numel() > 0.999 * many.numel(), "no two blocks are the same"


@pytest.mark.parametrize("device", [Tensor.clone, elsewhere])
def test_any_part_of_a_batch_has_the_bits_of_the_whole(device: Callable[[Tensor], Tensor]) -> None:
    """Also of the normal numbers: they must not depend on where in a vector register a number comes to lie."""
    whole = normal_at(0, "noise", device(torch.arange(300)), 7, 150)
    for first, count in ((0, 1), (7, 13), (299, 1), (100, 200)):
        part = normal_at(0, "noise", device(torch.arange(first, first + count)), 7, 150)
        assert torch.equal(part, whole[first : first + count])


def test_drawing_for_a_gpu_never_waits_for_it() -> None:
    """On a device that does not exist, anything that looks at a number fails."""
    with FakeTensorMode():
        rng = StepRandom.of_part(0, 3, total=64, parts=2, part=1)
        noise, share = rng.normal("noise", 4, 8, 8, device="cuda"), rng.uniform("sigma", device="cuda")
    assert noise.shape == (32, 4, 8, 8) and share.shape == (32,) and noise.device.type == share.device.type == "cuda"


def test_the_numbers_of_a_million_draws_are_normal_far_into_the_tails() -> None:
    drawn = normal_at(0, "noise", torch.arange(1000), 0, 1000).double().flatten()
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(bound / math.sqrt(2))
        share = (drawn.abs() > bound).double().mean().item()
        assert abs(share - expected) < 5 * math.sqrt(expected / len(drawn)), bound
    pairs = drawn.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / math.sqrt(len(pairs))
    assert abs((pairs[:, 0].square() * pairs[:, 1].square()).mean() - 1) < 15 / math.sqrt(len(pairs))


def test_the_kernel_gives_the_same_numbers() -> None:
    """By Triton's interpreter, in a process of its own: it is chosen when Triton is imported."""
    pytest.importorskip("triton")
    source = """
import torch
from ldm.philox.counter_based import normal_numbers, numbers_in_numpy, uniform_numbers
from ldm.philox.kernel import numbers_in_triton

key, rows = (0x12345678, 0x7FEDCBA9), torch.tensor([3, 0, 2**32 - 1, 77])
for position in (5, 2**40 + 3, torch.tensor([1, 2, 3, 2**33])):
    for count in (1, 6, 1500):
        uniform = [f(key, rows, position, count) for f in (lambda *a: numbers_in_numpy(uniform_numbers, *a),
                                                            lambda *a: numbers_in_triton("uniform", *a))]
        assert torch.equal(*uniform)
        normal = [f(key, rows, position, count) for f in (lambda *a: numbers_in_numpy(normal_numbers, *a),
                                                           lambda *a: numbers_in_triton("normal", *a))]
        assert torch.allclose(*normal, atol=2e-6), (normal[0] - normal[1]).abs().max()
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", source], check=True, env=environment)


def test_drawing_random_numbers_imported_the_compiler_of_torch():
    code = "import sys, ldm.randomness; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
