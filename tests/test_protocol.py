"""The protocol on autoencoders whose figures are known."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.bottleneck import Gaussian
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.settings import Gaussian as GaussianSettings
from ldm.data.datasets import open_dataset
from ldm.data.settings import Folder
from ldm.errors import CheckpointError
from ldm.judges import open_distance, open_extractor
from ldm.protocol import Pictures, evaluate
from ldm.training.processes import Processes

CPU = torch.device("cpu")


class Squares(nn.Module):
    """Moves every 2 x 2 square of pixels into 12 channels and back, and the decoder adds an error."""

    factor, image_channels = 2, 3

    def __init__(self, error: float):
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))

    def encode(self, images: Tensor) -> Tensor:
        means = F.pixel_unshuffle(images, 2)
        return torch.cat([means, torch.full_like(means, -30.0)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, 2) + self.error


def squares(error: float) -> Autoencoder:
    return Autoencoder(Squares(error), Gaussian(GaussianSettings(channels=12)), 12)  # type: ignore[arg-type]


@pytest.fixture
def processes() -> Iterator[Processes]:
    yield Processes("cpu")
    PartialState._reset_state()


@pytest.fixture(scope="module")
def pictures(shapes_folder: Path) -> Pictures:
    settings = Folder(path=str(shapes_folder), size=16)
    return Pictures(open_dataset(settings), settings, "all", list(range(60)), [])


def figures(error: float, pictures: Pictures, processes: Processes) -> dict:
    judges = open_distance("random", "", CPU), open_extractor("random", "", 3, CPU)
    return evaluate(squares(error), pictures, processes, distance=judges[0], extractor=judges[1])["figures"]


def test_an_autoencoder_that_loses_nothing_has_the_best_figures(pictures, processes):
    """Nothing, that is, of 8 bits: an error below half a level is rounded away."""
    for error in (0.0, 0.9 / 255):
        found = figures(error, pictures, processes)
        assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1, abs=1e-9)
        assert found["feature_distance_random"] == pytest.approx(0, abs=1e-9)
        assert found["frechet_random"] == pytest.approx(0, abs=1e-6)


def test_one_level_too_many_everywhere_is_a_known_psnr(pictures, processes):
    """20 log10(255): the drawings have no pixel so bright that it is clipped."""
    found = figures(2 / 255, pictures, processes)
    assert found["psnr"] == pytest.approx(48.1308, abs=1e-3)
    assert 0.9 < found["ssim"] < 1 and found["frechet_random"] > 0


def test_a_constant_code_of_the_pixels_moves_with_them(pictures, processes):
    """Each latent is a pixel: a unit of noise moves it by one over the standard deviation of the pixels."""
    report = evaluate(squares(0.0), pictures, processes)["figures"]
    expected = sum(std**-2 for std in report["latent_std"]) / 12
    assert report["encoder_jacobian"] == pytest.approx(expected**0.5, rel=0.1)  # on fewer images


def test_the_cut_into_batches_changes_nothing(pictures, processes):
    whole, cut = (evaluate(squares(0.01), pictures, processes, batch_size=size) for size in (60, 7))
    assert cut["reference"] == whole["reference"] and cut["count"] == whole["count"] == 60
    for name, value in whole["figures"].items():
        if value is not None:  # no anchors
            assert cut["figures"][name] == pytest.approx(value, rel=1e-6), name


def test_the_weights_are_named_by_their_hash(pictures, processes):
    first, again, other = (
        evaluate(squares(error), pictures, processes)["autoencoder"]["sha256"] for error in (0.0, 0.0, 0.5)
    )
    assert first == again != other


def test_an_autoencoder_that_gives_no_numbers_is_refused(pictures, processes):
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate(squares(float("nan")), pictures, processes)
