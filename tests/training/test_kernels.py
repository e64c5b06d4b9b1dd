"""Speed on a GPU, shown without one: few kernels, one graph, no number that the host looks at."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import explain
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.batch import ClassAttribute, ConditionSchema, LatentBatch
from ldm.diffusion.config import DenoiserConfig, GaussianSkipConfig, SamplingConfig, UNetConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
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


@pytest.mark.filterwarnings("ignore")  # of dynamo's own
def test_a_denoiser_network_compiles_as_one_graph():
    model, latents = denoiser(), torch.randn(2, 4, 8, 8)
    found = explain(model.network)(latents, torch.zeros(2), torch.zeros(2, 32), None)
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
