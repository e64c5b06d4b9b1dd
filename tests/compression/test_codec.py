"""The codec: images to files and back at any size and rate, the same symbols everywhere, and clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ldm
from ldm.compression.codec import Codec
from ldm.compression.container import header_size, unpack
from ldm.entropy.config import EntropyModelConfig
from ldm.entropy.tables import POSITIONS, steps_of
from ldm.errors import CheckpointError, CodecError, ConfigError, DataError, RequestError
from ldm.evaluation.metrics import psnr
from ldm.shapes import rounded
from tests.support.codecs import fitted_codec, pixel_codec, small_images
from tests.support.mutations import crafted, mutated
from tests.support.scripts import ROOT

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return fitted_codec()


@pytest.fixture(scope="module")
def folder(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("codec") / "codec"
    codec.save(found)
    return found


def test_images_of_any_size_come_back_at_their_size(codec: Codec) -> None:
    images = [
        small_images(1, side)[0][:, :height] for side, height in ((16, 16), (16, 16), (13, 11), (40, 25), (15, 1))
    ]
    files = codec.compress(images, step=0.1)
    decoded = codec.decompress(files)
    assert [image.shape for image in decoded] == [image.shape for image in images]
    with torch.no_grad():
        for image, found in list(zip(images, decoded, strict=True))[:4]:
            best = psnr(image[None], codec.autoencoder.reconstruct(image[None]))
            assert psnr(image[None], found[None]) > best - 1
    assert codec.decompress(files[2:3])[0].equal(decoded[2])


def test_a_finer_step_costs_more_and_gives_more(codec: Codec) -> None:
    images = small_images(4, seed=3)
    found = []
    for step in (0.05, 0.2, 0.8, 3.2):
        files = codec.compress(images, step=step)
        found.append((sum(map(len, files)), float(psnr(images, torch.stack(codec.decompress(files))).mean())))
    assert found == sorted(found, reverse=True)


def test_a_rate_is_met_with_its_header_and_as_fine_a_step_as_that_allows(codec: Codec) -> None:
    for image in small_images(2, seed=4):
        (file,) = codec.compress([image], rate=1.5)
        assert 8 * len(file) <= 1.5 * 256
        finer = unpack(file)[0].step - 1
        assert 8 * len(codec.compress([image], step=finer / POSITIONS)[0]) > 1.5 * 256
    (loose,) = codec.compress(small_images(1), rate=1000)
    assert unpack(loose)[0].step == 1


def test_a_psnr_is_met_once_the_image_is_stored_in_8_bits(codec: Codec) -> None:
    image = small_images(1, seed=5)
    most = float(psnr(image, rounded(torch.stack(codec.decompress(codec.compress(image, step=1 / POSITIONS))))))
    files = codec.compress(image, psnr=most - 3)
    assert float(psnr(image, rounded(torch.stack(codec.decompress(files))))) >= most - 3
    assert len(files[0]) < len(codec.compress(image, psnr=most - 1)[0])


def test_what_is_out_of_reach_is_refused_with_what_is_in_reach(codec: Codec) -> None:
    with pytest.raises(
        RequestError, match=r"rate 0\.01 is out of reach: this image takes from .* to .* bits per pixel"
    ):
        codec.compress(small_images(1), rate=0.01)
    with pytest.raises(RequestError, match=r"psnr 99 is out of reach: the autoencoder gives this image from .* dB"):
        codec.compress(small_images(1), psnr=99)
    for wrong in (
        {},
        {"rate": 1.0, "psnr": 20.0},
        {"step": 0.0},
        {"step": 9.0},
        {"rate": float("nan")},
        {"psnr": -1.0},
    ):
        with pytest.raises(RequestError):
            codec.compress(small_images(1), **wrong)


def test_payload_is_as_long_as_the_entropy_model_says_headers_counted_apart(codec: Codec) -> None:
    for image, file in zip(images := small_images(6, 48, seed=6), codec.compress(images, step=0.1), strict=True):
        step = unpack(file)[0].step
        bits = codec.bits(codec.quantized(codec.latents(image[None])[0], step), step)
        assert abs(8 * (len(file) - header_size(file)) - bits) <= 0.01 * bits + 64


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 16, 16), "1 x 16 x 16.*takes 3 x height x width"),
        (torch.zeros(16, 16), "image 0 is of 16 x 16"),
        (torch.zeros(3, 0, 16), "3 x 0 x 16"),
        (torch.full((3, 16, 16), torch.nan), "NaN"),
    ],
)
def test_an_image_of_another_kind_is_refused(codec: Codec, image: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        codec.compress([image], step=0.5)


def test_a_file_of_another_codec_is_refused_by_name(codec: Codec) -> None:
    (file,) = pixel_codec("factorized").compress(torch.zeros(1, 1, 12, 12), step=0.5)
    with pytest.raises(CodecError, match=f"another codec .*{codec.id[:8]}"):
        codec.decompress([file])


def test_a_saved_codec_decodes_the_same_symbols_and_nothing_is_overwritten(codec: Codec, folder: Path) -> None:
    again = ldm.Codec.load(folder)
    assert again.id == codec.id and again.measured == codec.measured
    files = codec.compress(images := small_images(3, seed=7), step=0.2)
    for file in files:
        assert (again.symbols(file).values == codec.symbols(file).values).all()
    for one, other in zip(again.decompress(files), codec.decompress(files), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert again.compress(images, step=0.2) == files
    with pytest.raises(ConfigError, match="exists"):
        codec.save(folder)


def test_a_damaged_codec_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no codec"):
        Codec.load(tmp_path)
    for name in ("entropy.safetensors", "codec.json"):
        broken = tmp_path / name.partition(".")[0]
        broken.mkdir()
        for file in folder.rglob("*"):
            target = broken / file.relative_to(folder)
            target.mkdir() if file.is_dir() else target.write_bytes(file.read_bytes())
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 2] ^= 64
        (broken / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            Codec.load(broken)


OTHERWISE = """
import sys, json, torch
from ldm import Codec
folder, file, threads, batch = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.backends.mkldnn.enabled = False
codec = Codec.load(folder)
codec.autoencoder.to(memory_format=torch.channels_last)
files = [bytes.fromhex(line) for line in open(file)] * int(batch)
with torch.autocast("cpu", torch.bfloat16):
    symbols = [codec.symbols(each) for each in files]
    codec.images(symbols)
print(json.dumps([each.values.tolist() for each in symbols]))
"""


def test_another_process_with_other_threads_kernels_and_precision_decodes_the_same_symbols(
    codec: Codec, folder: Path, tmp_path: Path
) -> None:
    images = small_images(3, 24, seed=8)
    files = codec.compress(images, step=0.1)
    (tmp_path / "files").write_text("\n".join(file.hex() for file in files))
    command = [sys.executable, "-c", OTHERWISE, str(folder), str(tmp_path / "files"), "2", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert len(found) == 6
    for image, values in zip([*images, *images], found, strict=True):
        coded = codec.quantized(codec.latents(image[None])[0], unpack(files[0])[0].step)
        assert coded.tolist() == values


@pytest.mark.parametrize("kind", ["factorized", "channel-checkerboard"])
def test_golden_files_decode(kind: str) -> None:
    """Written once, by a codec that integers alone define; they must decode on every machine and with every version."""
    codec = pixel_codec(kind)
    expected = np.load(GOLDEN / "symbols.npy", allow_pickle=False)
    decoded = codec.symbols((GOLDEN / f"{kind}.ldmc").read_bytes())
    assert decoded.header.step == 20 and (decoded.values == expected).all()
    assert (codec.entropy_model.encode(expected, steps_of(20, [1.0]))) == unpack(
        (GOLDEN / f"{kind}.ldmc").read_bytes()
    )[1]


def test_mutated_files_decode_to_an_image_or_are_refused_as_files() -> None:
    codec = pixel_codec("channel-checkerboard")
    images = [torch.linspace(-1, 1, side * 9).view(1, side, 9) for side in (2, 9, 12, 30)]
    codec.autoencoder.network.fixed_size = None  # the pixels themselves, of any size
    files = [file for step in (0.1, 0.7) for file in codec.compress(images, step=step)]
    outcomes = {"image": 0, "refused": 0}
    for file in mutated(files, 400):
        try:
            (image,) = codec.decompress([file])
        except CodecError:
            outcomes["refused"] += 1
        else:
            assert image.isfinite().all() and image.abs().max() <= 1
            outcomes["image"] += 1
    assert outcomes["refused"] > 300


def test_header_that_claims_more_than_its_bytes_can_hold_is_refused_before_anything_is_allocated(codec: Codec) -> None:
    (file,) = codec.compress(small_images(1), step=0.5)
    for numbers in ([8192, 8192, 100], [1, 100_000_000, 100], [2**16, 1000, 3]):
        with pytest.raises(CodecError, match="more than its 40 bytes can hold"):
            codec.decompress([crafted(file, numbers, bytes(40))])


def test_an_all_sure_image_is_not_taken_for_a_header_that_lies() -> None:
    codec = pixel_codec("factorized")
    codec.autoencoder.network.fixed_size = None
    (file,) = codec.compress(torch.zeros(1, 1, 300, 300), step=8.0)
    assert codec.decompress([file])[0].abs().max() == 0 and len(file) < 100


def test_a_fit_keeps_the_context_model_where_it_gains_and_leaves_the_autoencoder_alone(codec: Codec) -> None:
    assert codec.entropy_model.config.kind == "channel-checkerboard"
    gained = [each.bits_per_pixel < each.factorized_bits_per_pixel for each in codec.measured]
    assert sum(gained) > len(gained) / 2
    autoencoder = codec.autoencoder
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    config = EntropyModelConfig(kind="factorized")
    other = Codec.fit(autoencoder, [small_images(8) * 0.5], small_images(2), config=config, equal_steps=True)
    assert other.ratios == [1.0, 1.0] and other.entropy_model.network is None and other.id != codec.id
    assert all(value.equal(before[name]) for name, value in autoencoder.state_dict().items())
    with pytest.raises(DataError, match="no training image"):
        Codec.fit(autoencoder, [], small_images(2), config=config)


def test_a_refinement_sees_centers_and_sizes_of_cells(codec: Codec) -> None:
    files = codec.compress(small_images(3, seed=9), step=0.5)
    seen = []

    def refine(latents: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        seen.append((latents.shape, cells.shape, cells.mean()))
        return latents

    refined = torch.stack(codec.decompress(files, refine))
    centers = codec.dequantized([codec.symbols(file) for file in files], centers=True)
    with torch.no_grad():
        torch.testing.assert_close(refined, codec.autoencoder.decode(centers).clamp(-1, 1), rtol=0, atol=1e-5)
    assert seen[0][0][:2] == seen[0][1][:2] == (3, 2) and abs(seen[0][2] - 0.5) < 0.2
