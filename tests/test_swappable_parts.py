"""Swappable parts: one new part of every kind in a copy of the project; the files it takes, its training, its checks.

This is CONTRIBUTING's recipe, executed. All of them share one copy: one training of an autoencoder, one of a
denoiser, one set of samples, and one `ldm verify` of the miniatures.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.scripts import ROOT, metrics

CONFIG = "ldm/autoencoder/config.py"
DIFFUSION = "ldm/diffusion/config.py"
LOSSES = "ldm/diffusion/losses/config.py"


@dataclass(frozen=True)
class Edit:
    """A file that is changed: `old` becomes `new`; without `old`, `new` goes to the end, or makes the file."""

    file: str
    new: str
    old: str = ""


CORRUPTION = [
    Edit(
        "ldm/corruption.py",
        '''@dataclass(frozen=True)
class Negative(CorruptionBase):
    """Black becomes white."""

    kind: Literal["negative"] = "negative"
    strength: Strength = 1.0  # 1: as negative as can be

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        return Corrupted((1 - 2 * self.strength) * clean)


Corruption: TypeAlias = Negative | ''',
        "Corruption: TypeAlias = ",
    )
]

PENALTY = [
    Edit(
        "ldm/autoencoder/penalty.py",
        '''@dataclass(frozen=True)
class Quiet(Penalty):
    """The largest absolute value of each code."""

    weight: Weight = 0.1  # of its mean over the batch

    def __call__(self, forward: ForwardPass) -> "Tensor":
        return forward.code.abs().flatten(1).amax(1).mean()


@dataclass(frozen=True)
class PenaltiesConfig(Checked):
    """Each is left out until its section is there; several may be."""

    quiet: Quiet | None = None  # null: none
''',
        '''@dataclass(frozen=True)
class PenaltiesConfig(Checked):
    """Each is left out until its section is there; several may be."""

''',
    )
]

DISTANCE = [
    Edit(
        CONFIG,
        'DISTANCES = {\n    "charbonnier": DistanceFacts("ldm.autoencoder.losses.distance:charbonnier"),',
        "DISTANCES = {",
    ),
    Edit(
        "ldm/autoencoder/losses/distance.py",
        '''

def charbonnier(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """√(d² + 0.01²) - 0.01 of the difference d."""
    return ((images - reconstruction).square() + 1e-4).sqrt() - 0.01
''',
    ),
]

BOTTLENECK = [
    Edit(
        CONFIG,
        '''@dataclass(frozen=True)
class BoundedConfig(Checked):
    """Codes between -1 and 1."""

    kind: Literal["bounded"] = "bounded"
    channels: Count = 4  # latent channels


BottleneckConfig: TypeAlias = BoundedConfig | ''',
        "BottleneckConfig: TypeAlias = ",
    ),
    Edit(
        CONFIG,
        'BOTTLENECKS = {\n    "bounded": BottleneckFacts("ldm.autoencoder.bottleneck:BoundedBottleneck"),',
        "BOTTLENECKS = {",
    ),
    Edit(
        "ldm/autoencoder/bottleneck.py",
        '''

class BoundedBottleneck(Bottleneck):
    """tanh of the encoder's output; large codes cost something."""

    def __init__(self, config: BottleneckConfig):
        super().__init__(config, config.channels)

    def posterior(self, moments: Tensor) -> Posterior:
        return Posterior(full_precision(moments).tanh())

    def costs(self, posterior: Posterior) -> dict[str, Scalars]:
        return {"size": posterior.mean.square().flatten(1).sum(1)}
''',
    ),
]

NETWORK = [
    Edit(
        CONFIG,
        '''@dataclass(frozen=True)
class PatchesConfig(Checked):
    """One matrix per patch."""

    kind: Literal["patches"] = "patches"
    patch: Count = 4  # pixels wide


NetworkConfig: TypeAlias = (
    PatchesConfig
    | KLNetworkConfig''',
        "NetworkConfig: TypeAlias = (\n    KLNetworkConfig",
    ),
    Edit(
        CONFIG, 'NETWORKS = {\n    "patches": Part("ldm.autoencoder.networks.patches:PatchesNetwork"),', "NETWORKS = {"
    ),
    Edit(
        "ldm/autoencoder/networks/patches.py",
        '''"""A linear map of each patch."""

from torch import Tensor, nn

from ldm.autoencoder.config import PatchesConfig
from ldm.autoencoder.network import AutoencoderNetwork


class PatchesNetwork(AutoencoderNetwork):
    """One convolution as wide as its stride, and its transpose."""

    def __init__(
        self, config: PatchesConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        p = config.patch
        self.image_channels, self.downsampling = image[0], (p, p)
        self.downsampling_setting = f"autoencoder.network.patch {p}"
        self.encoder = nn.Conv2d(image[0], encoder_channels, p, stride=p)
        self.decoder = nn.ConvTranspose2d(latent_channels, image[0], p, stride=p)

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(latents)

    @property
    def output_layer(self) -> nn.Module:
        return self.decoder

    @property
    def decoder_in_weight(self) -> Tensor:
        return self.decoder.get_parameter("weight").transpose(0, 1)
''',
    ),
]

SOURCE = [
    Edit(
        "ldm/data/config.py",
        '''@dataclass(frozen=True, kw_only=True)
class StripesConfig(DataConfig):
    """Stripes of many widths."""

    kind: Literal["stripes"] = "stripes"
    count: Annotated[int, AtLeast(1)] = 32  # images


DataSourceConfig: TypeAlias = StripesConfig | ''',
        "DataSourceConfig: TypeAlias = ",
    ),
    Edit("ldm/data/config.py", 'SOURCES = {\n    "stripes": SourceFacts("ldm.data.stripes:stripes"),', "SOURCES = {"),
    Edit(
        "ldm/data/stripes.py",
        '''"""Stripes, without a file."""

import numpy as np

from ldm.data.config import StripesConfig
from ldm.data.datasets import Dataset


def stripes(config: StripesConfig) -> Dataset:
    """Image i has stripes of i + 1 pixels; its class is whether that is odd."""
    names = [f"{index:04d}" for index in range(config.count)]
    labels = np.arange(config.count, dtype=np.int64) % 2

    def image(index: int) -> np.ndarray:
        columns = np.arange(config.sides[1]) // (index + 1) % 2 * 255
        return np.broadcast_to(columns.astype(config.depth), config.shape).copy()

    return Dataset(config, names, labels, ["odd", "even"], names.copy(), f"stripes {config}", image)
''',
    ),
]

SAMPLER = [
    Edit(
        DIFFUSION,
        'SAMPLERS = {\n    "midpoint": SamplerFacts("ldm.diffusion.samplers.multistep:midpoint", order=2, calls=2),',
        "SAMPLERS = {",
    ),
    Edit(
        "ldm/diffusion/samplers/multistep.py",
        '''

def midpoint(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Second order: the slope in the geometric middle of the step."""
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        if lower > 0:
            middle = math.sqrt(sigma * lower)
            halfway = torch.lerp(denoised, noisy, middle / sigma)
            slope = (halfway - denoise(halfway, expand_sigma(middle, halfway))) / middle
            noisy = noisy + (lower - sigma) * slope
        else:
            noisy = denoised
        noisy = after_step(on_step, step, noisy)
    return noisy
''',
    ),
]

PARAMETRIZATION = [
    Edit(
        DIFFUSION,
        'PARAMETRIZATIONS = {\n    "v": ParametrizationFacts("ldm.diffusion.denoiser:V"),',
        "PARAMETRIZATIONS = {",
    ),
    Edit(
        "ldm/diffusion/denoiser.py",
        """
# v of Salimans and Ho 2022, which at σ_data = 1 is EDM with the other sign.
V = Parametrization(
    c_skip=lambda sigma, sigma_data: sigma_data**2 / (sigma**2 + sigma_data**2),
    c_out=lambda sigma, sigma_data: -((sigma**-2 + sigma_data**-2) ** -0.5),
    c_in=unit_variance,
)
""",
    ),
]

NOISE_DISTRIBUTION = [
    Edit(
        LOSSES,
        '''@dataclass(frozen=True)
class ConstantNoiseConfig(Checked):
    """One noise level."""

    kind: Literal["constant"] = "constant"
    sigma: Annotated[float, Above(0)] = 0.5  # that level


NoiseDistributionConfig: TypeAlias = ConstantNoiseConfig | ''',
        "NoiseDistributionConfig: TypeAlias = ",
    ),
    Edit(
        LOSSES,
        'NOISE_DISTRIBUTIONS = {\n    "constant": Part("ldm.diffusion.losses.noise_distribution:Constant"),',
        "NOISE_DISTRIBUTIONS = {",
    ),
    Edit(
        "ldm/diffusion/losses/noise_distribution.py",
        '''

class Constant(NoiseDistribution):
    """The same level every time."""

    def quantile(self, share: Tensor) -> NoiseLevels:
        return torch.full_like(share, self.config.sigma)
''',
    ),
]

WEIGHTING = [
    Edit(
        LOSSES,
        '''@dataclass(frozen=True)
class MediumWeightingConfig(Checked):
    """A weight that falls faster than 1 / σ² at large σ."""

    kind: Literal["medium"] = "medium"
    power: Annotated[float, Above(0)] = 3.0  # of σ


WeightingConfig: TypeAlias = (
    MediumWeightingConfig
    | PredictionWeightingConfig''',
        "WeightingConfig: TypeAlias = (\n    PredictionWeightingConfig",
    ),
    Edit(
        LOSSES,
        'WEIGHTINGS = {\n    "medium": WeightingFacts("ldm.diffusion.losses.weighting:medium", formula="1 / σ^power"),',
        "WEIGHTINGS = {",
    ),
    Edit(
        "ldm/diffusion/losses/weighting.py",
        '''

def medium(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """σ^(power / 2)."""
    return sigma ** (config.power / 2)
''',
    ),
]

DENOISER_NETWORK = [
    Edit(
        DIFFUSION,
        '''@dataclass(frozen=True)
class PerceptronConfig(Checked):
    """Two layers over the channels of each position."""

    kind: Literal["perceptron"] = "perceptron"
    width: Annotated[int, AtLeast(1)] = 16  # of the layer between


DenoiserNetworkConfig: TypeAlias = PerceptronConfig | ''',
        "DenoiserNetworkConfig: TypeAlias = ",
    ),
    Edit(
        DIFFUSION,
        'DENOISER_NETWORKS = {\n    "perceptron": Part("ldm.diffusion.networks.perceptron:Perceptron"),\n    ',
        "DENOISER_NETWORKS = {",
    ),
    Edit(
        "ldm/diffusion/networks/perceptron.py",
        '''"""Each latent position by itself."""

from typing import Self

import torch
from torch import Tensor, nn

from ldm.diffusion.config import PerceptronConfig
from ldm.diffusion.network import DenoiserNetwork


class Perceptron(DenoiserNetwork):
    """1 x 1 convolutions, shifted by the noise level and the condition."""

    def __init__(self, config: PerceptronConfig, *, channels: int):
        super().__init__()
        self.vector_channels = config.width
        self.first, self.last = nn.Conv2d(channels, config.width, 1), nn.Conv2d(config.width, channels, 1)
        self.noise = nn.Linear(1, config.width)

    @classmethod
    def create(cls, config: PerceptronConfig, *, latent_shape: tuple[int, int, int]) -> Self:
        return cls(config, channels=latent_shape[0])

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        shift = self.noise(noise_condition[:, None]) + (0 if vector is None else vector)
        return self.last(torch.tanh(self.first(x) + shift[:, :, None, None]))
''',
    ),
]

# What a part takes, and how many files that may be (CONTRIBUTING).
PARTS = {
    "corruption": (CORRUPTION, 1),
    "penalty": (PENALTY, 1),
    "distance": (DISTANCE, 2),
    "bottleneck": (BOTTLENECK, 2),
    "autoencoder network": (NETWORK, 2),
    "data source": (SOURCE, 2),
    "sampler": (SAMPLER, 2),
    "parametrization": (PARAMETRIZATION, 2),
    "noise distribution": (NOISE_DISTRIBUTION, 2),
    "weighting": (WEIGHTING, 2),
    "denoiser network": (DENOISER_NETWORK, 2),
}

VAE = """
data: {kind: stripes, size: 16}
autoencoder:
  network: {kind: patches}
  bottleneck: {kind: bounded, channels: 2}
objective:
  distance: charbonnier
  corruption: {kind: negative, strength: 0.1}
  penalties: {quiet: {}}
optim: {warmup: 1}
run: {steps: 2, batch_size: 8, log_every: 1, precision: fp32}
"""
DENOISER = """
denoiser: {network: {kind: perceptron}, parametrization: v}
objective: {noise_distribution: {kind: constant, sigma: 0.3}, weighting: {kind: medium}}
optim: {warmup: 1}
run: {steps: 2, batch_size: 8, log_every: 1, precision: fp32}
"""


@pytest.mark.parametrize("kind", PARTS)
def test_part_touches_as_few_files_as_contributing_says(kind: str) -> None:
    edits, most = PARTS[kind]
    assert len({edit.file for edit in edits}) <= most


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with one new part of every kind."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "ldm", folder / "ldm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_vae.py", "train_diffusion.py", "sample.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for edits, _ in PARTS.values():
        for edit in edits:
            file = folder / edit.file
            before = file.read_text() if file.exists() else ""
            assert before.count(edit.old) == 1 or not edit.old, f"{edit.file} has another form: {edit.old}"
            file.write_text(before.replace(edit.old, edit.new) if edit.old else before + edit.new)
    (folder / "vae.yaml").write_text(VAE)
    (folder / "denoiser.yaml").write_text(DENOISER)
    return folder


def typed(folder: Path, *command: object) -> str:
    """What `python COMMAND` prints, with the package in `folder`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


COMMANDS = """
import sys
from tests.support.scripts import ran
for command in sys.argv[1:]:
    outcome = ran(*command.split())
    sys.stdout.write(outcome.out)
    if outcome.code:
        sys.exit(outcome.err)
"""


@pytest.fixture(scope="module")
def verified(project: Path) -> str:
    """What `ldm verify` prints after two runs and a picture; one process imports the package of the project for all."""
    return typed(
        project,
        "-c",
        COMMANDS,
        "train_vae vae.yaml --out vae",
        "train_diffusion denoiser.yaml --autoencoder vae --out denoiser",
        "sample denoiser --out grid.png --num 2 --steps 3 --sampler midpoint",
        "ldm.cli.main verify --small contracts denoiser samplers score",
    )


def test_parts_train_two_steps_and_are_sampled(project: Path, verified: str) -> None:
    line = metrics(project / "vae")[-1]
    assert {"charbonnier", "quiet", "size", "size_per_latent_element"} <= line.keys()
    assert (project / "denoiser" / "unet" / "config.json").read_text().count("perceptron") == 1
    assert (project / "grid.png").is_file()


def test_parts_are_verified_by_their_tables(verified: str) -> None:
    """A new part is checked by existing: no side dictionary knows the names of the old ones."""
    for part in (
        "data source stripes",
        "autoencoder network patches",
        "bottleneck bounded",
        "distance charbonnier",
        "corruption negative",
        "penalty quiet",
        "denoiser network perceptron",
        "noise distribution constant",
        "weighting medium",
        "midpoint, order 2",
        "v: variance of the target",
    ):
        rows = [line for line in verified.splitlines() if part in line]
        assert rows and all(line.endswith("pass") for line in rows), (part, rows)


def test_parts_are_in_the_help_without_torch(project: Path) -> None:
    code = "import runpy, sys; sys.argv = ['{}', '--help']\ntry: runpy.run_path('{}', run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    for script, words in (
        ("train_vae.py", ("charbonnier", "bounded", "patches", "stripes", "negative", "penalties.quiet.weight")),
        ("train_diffusion.py", ("perceptron", "constant", "medium", "edm", "v|")),
        ("sample.py", ("midpoint",)),
    ):
        printed = typed(project, "-c", code.format(script, script))
        assert not [word for word in words if word not in printed], script
