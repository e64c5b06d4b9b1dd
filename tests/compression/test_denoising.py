"""The denoiser as a dequantizer: its guess, within the cell, in whatever units of the latents."""

import math
from pathlib import Path

import pytest
import torch

from ldm.compression.codec import Codec
from ldm.compression.denoising import DenoisingRefinement
from ldm.entropy.config import EntropyModelConfig
from ldm.errors import CheckpointError, ConfigError
from ldm.pipeline import LatentDiffusion
from tests.export.test_autoencoder import refusal
from tests.support.codecs import fitted_codec, small_images
from tests.support.diffusion_models import diffusion_model
from tests.support.scripts import ran


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return diffusion_model("residual")


@pytest.fixture(scope="module")
def codec(model: LatentDiffusion) -> Codec:
    config = EntropyModelConfig(kind="factorized")
    return Codec.fit(model.autoencoder, [small_images(16)], small_images(2), config=config, equal_steps=True)


def test_latents_move_to_the_denoisers_guess_and_never_out_of_their_cells(codec: Codec, model: LatentDiffusion) -> None:
    refine = DenoisingRefinement.of(codec, model)
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for size in (0.01, 0.5, 2.0):
        cells = torch.full((3, 2, 1, 1), size)
        mine, theirs = codec.autoencoder, model.autoencoder
        raw = latents * mine.latent_std + mine.latent_mean
        scale = mine.latent_std / theirs.latent_std
        sigma = float((size * scale).square().mean().sqrt()) / math.sqrt(12)
        with torch.no_grad():
            guess = model.denoiser((raw - theirs.latent_mean) / theirs.latent_std, sigma)
        moved = (guess * theirs.latent_std + theirs.latent_mean - mine.latent_mean) / mine.latent_std
        expected = moved.clamp(latents - size / 2, latents + size / 2)
        found = refine(latents, cells)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - latents).abs().max() <= size / 2 + 1e-6
    assert not found.equal(latents)


def test_several_steps_follow_the_flow_down_to_no_noise_and_stay_in_the_cells(codec: Codec, model: LatentDiffusion):
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    cells = torch.full((3, 2, 1, 1), 2.0)
    once, coarse, fine, finest = (
        DenoisingRefinement.of(codec, model, steps)(latents, cells) for steps in (1, 20, 40, 80)
    )
    assert (finest - fine).abs().mean() < 0.7 * (fine - coarse).abs().mean() < 0.1 * (once - coarse).abs().mean()
    assert (finest - latents).abs().max() <= 1 + 1e-6


def test_a_file_is_decoded_through_it_and_another_size_or_autoencoder_is_refused(
    codec: Codec, model: LatentDiffusion
) -> None:
    refine = DenoisingRefinement.of(codec, model)
    files = codec.compress(small_images(2, seed=1), step=1.0)
    plain, refined = (torch.stack(codec.decompress(files, each)) for each in (None, refine))
    assert plain.shape == refined.shape and not plain.equal(refined)
    with pytest.raises(ConfigError, match="takes latents of 2 x 8 x 8 alone, and the file has 2 x 12 x 12"):
        codec.decompress(codec.compress(small_images(1, 24), step=1.0), refine)
    with pytest.raises(CheckpointError, match="another autoencoder"):
        DenoisingRefinement.of(fitted_codec(), model)
    with pytest.raises(CheckpointError, match="another autoencoder"):
        DenoisingRefinement.of(codec, diffusion_model("pixels"))


def test_the_command_denoises_with_a_run_of_the_same_autoencoder(
    finished_vae: Path, finished_diffusion: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    def ldm(*arguments: object):
        return ran("ldm.cli.main", *arguments)

    codec, files, image = tmp_path / "codec", tmp_path / "files", shapes_folder / "disc" / "00.png"
    assert ldm("codec", "fit", finished_vae, "--model", "factorized", "--out", codec).code == 0
    assert ldm("compress", codec, image, "--step", 1, "--out", files).code == 0
    for name, flags in (("plain", ()), ("denoised", ("--denoise", finished_diffusion))):
        assert ldm("decompress", codec, files, "--out", tmp_path / name, *flags).code == 0
    plain, denoised = ((tmp_path / name / "00.png").read_bytes() for name in ("plain", "denoised"))
    assert plain != denoised
    refusal(ldm("decompress", codec, files, "--out", tmp_path / "out", "--denoise", finished_vae), 4)
