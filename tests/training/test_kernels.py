"""Speed on a GPU, shown without one: few kernels, one graph, no number that the host looks at."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.autoencoder.model import create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ClassAttribute, ConditionSchema, ImageBatch, LatentBatch, Step
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.diffusion.config import DenoiserConfig, GaussianSkipConfig, SamplingConfig, UNetConfig
from ldm.diffusion.consistency import ConsistencyObjective
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import StepRandom
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from ldm.training.config import RunConfig
from ldm.training.kernels import training_kernels
from ldm.training.run import Run
from tests.support.scripts import ROOT

SCHEMA = ConditionSchema((ClassAttribute("label", ("disc", "square")),))


def denoiser() -> Denoiser:
    network = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_channels=8, dropout=0.1)
    config = DenoiserConfig(network=network, skip=GaussianSkipConfig(rank=4))
    return create_denoiser(DiffusionModelConfig((4, 8, 8), SCHEMA, config, SamplingConfig())).train()


def test_half_precision_weights_take_few_kernels():
    """1,107 by autocast when it was first counted, for the same U-Net of 9.8 million parameters."""
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "benchmarks/kernels.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.denoiser("9.8 M", "bf16-weights").total() <= 580


def test_the_denoising_loss_needs_no_number_on_the_host_and_no_other_device():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = denoiser()
        latents, condition = torch.randn(2, 4, 8, 8), SCHEMA.condition(torch.zeros(2, dtype=torch.int64))
        loss = DenoisingObjective(model)(LatentBatch(latents, latents, torch.ones(2), condition)).total
    assert loss.device.type == "cuda" and loss.shape == ()


CONFIGS = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").glob("*/*.yaml"))
NOT_ONE = {
    "autoencoder/contractive.yaml",
    "vae/kl-f8.yaml",
}  # a penalty and a discriminator differentiate inside
ALWAYS = {"autoencoder/stacked.yaml", "vae/mnist5k.yaml", "diffusion/few_steps.yaml", "diffusion/mnist5k.yaml"}


def autoencoder_loss(file: str) -> tuple[nn.Module, ImageBatch]:
    """The loss of an autoencoder's config, and what it is of."""
    config = reader.from_dict(TrainVAEConfig, read_yaml(ROOT / "configs" / file))
    shape = (config.data.channels, 32, 32)
    classes = 2 if config.objective.penalties.classification else 0
    autoencoder = create_trainable(config.autoencoder, image=shape, classes=classes)
    objective = ReconstructionObjective(autoencoder, config.objective, steps=10)
    return objective, ImageBatch(torch.rand(2, *shape), torch.tensor([0, 1]))


def denoiser_loss(file: str) -> tuple[nn.Module, LatentBatch]:
    """The same of a denoiser's."""
    config = reader.from_dict(TrainDiffusionConfig, read_yaml(ROOT / "configs" / file))
    model = DiffusionModelConfig((3, 16, 16), SCHEMA, config.denoiser, config.sampling)
    if config.objective.kind == "consistency":
        objective = ConsistencyObjective(create_denoiser(model), config.objective)
    else:
        objective = DenoisingObjective(create_denoiser(model), config.objective.weighting)
    latents, condition = torch.randn(2, 3, 16, 16), SCHEMA.condition(torch.zeros(2, dtype=torch.int64))
    return objective, LatentBatch(latents, latents, torch.ones(2), condition)


AUTOENCODERS = [file for file in CONFIGS if not file.startswith("diffusion") and file not in NOT_ONE]


@pytest.mark.parametrize("file", AUTOENCODERS)
def test_the_loss_of_an_autoencoder_needs_no_number_on_the_host_and_no_other_device(file):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        objective, batch = autoencoder_loss(file)
        for module in objective.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to("cuda"))  # where NumPy made it; Module.to cannot move fake tensors
        loss = objective(batch, Step(batch, StepRandom(0, 3, total=2))).total
    assert loss.device.type == "cuda" and loss.shape == ()


@pytest.mark.parametrize("file", [*AUTOENCODERS, *(file for file in CONFIGS if file.startswith("diffusion"))])
def test_gradients_need_no_number_on_the_host(file):
    """On a CPU: without a GPU the backward pass of its fake tensors does not work."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective, batch = (denoiser_loss if file.startswith("diffusion") else autoencoder_loss)(file)
        objective(batch, Step(batch, StepRandom(0, 3, total=2))).total.backward()
    assert any(each.grad is not None for each in objective.parameters())


@pytest.mark.filterwarnings("ignore")  # of dynamo's own
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=() if file in ALWAYS else pytest.mark.slow, id=file)
        for file in CONFIGS
        if file not in NOT_ONE
    ],
)
def test_the_loss_of_every_shipped_config_is_one_graph(file):
    torch._dynamo.reset()
    objective, batch = (denoiser_loss if file.startswith("diffusion") else autoencoder_loss)(file)
    found = torch._dynamo.explain(objective)(batch, Step(batch, StepRandom(0, 3, total=2)))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_only_the_steps_of_a_run_are_in_tf32():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with training_kernels(RunConfig(), torch.device("cuda")):
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, True, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (False, False, False)
    with training_kernels(RunConfig(deterministic=True), torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled() and cudnn.deterministic and not cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled() and not cudnn.deterministic


def test_panels_and_held_out_losses_between_two_steps_were_in_tf32():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found: list[tuple[bool, bool, bool]] = []

    class Looks:
        """A panel and held-out images, of which there are none."""

        def draw(self, *_: object) -> dict[str, float]:
            found.append((matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark))
            return {}

        groups = property(draw)

    step = SimpleNamespace(record=lambda: None, panel_path=None)
    with training_kernels(RunConfig(), torch.device("cuda")):
        Run.draw_panel(SimpleNamespace(ema_model=dict, print=print), Looks(), step)
        Run.validate(SimpleNamespace(), Looks(), step)
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, True, True)
    assert found == [(False, False, False)] * 2
