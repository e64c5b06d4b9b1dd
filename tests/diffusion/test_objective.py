"""The denoising objective: what an untrained denoiser scores, whom its gradient reaches, what a step costs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema, LatentBatch
from ldm.data.batches import BatchSampler, TrainingBatches
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import PARAMETRIZATIONS, UNetConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian, fit_gaussian
from ldm.diffusion.losses.config import LogNormalConfig
from ldm.diffusion.losses.noise_distribution import sample_sigmas
from ldm.diffusion.networks.unet import UNet
from ldm.diffusion.objective import DenoisingObjective, losses_by_sigma
from ldm.randomness import StepRandom, generator
from ldm.script_configs import TrainDiffusionConfig
from ldm.training.config import RunConfig
from ldm.training.run import Run
from ldm.training.step import TrainingStep

CPU = torch.device("cpu")
SCHEMA = ConditionSchema((ClassAttribute("label", ("a", "b", "c")),))
SIGMAS = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 80.0]
SMALL = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_channels=8)


def drawn(*shape: int, purpose: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, purpose))


def batch_of(count: int, dtype: torch.dtype = torch.float32) -> LatentBatch:
    """Standardized latents, noise, noise levels as in training, and all labels of three classes with the null label."""
    latents, noise = (drawn(count, 4, 8, 8, purpose=purpose).to(dtype) for purpose in ("latents", "noise"))
    sigma = sample_sigmas(LogNormalConfig(), count, generator(0, "sigma")).to(dtype)
    return LatentBatch(latents, noise, sigma, labels_of(count))


def labels_of(count: int) -> Condition:
    return Condition({"label": torch.arange(count) % 4 + NULL})


def denoiser_around(network: UNet, parametrization: str = "edm") -> Denoiser:
    return Denoiser(network, ConditionEmbedding(SCHEMA, network.vector_channels), parametrization=parametrization)


def denoiser_of(config: UNetConfig = SMALL, *, perturbed: bool = False, parametrization: str = "edm") -> Denoiser:
    """As at the start of training or, perturbed, with random weights and no zero left."""
    denoiser, rng = denoiser_around(UNet(config, channels=4), parametrization), generator(0, "weights")
    for parameter in denoiser.parameters() if perturbed else ():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    return denoiser.eval()


def held_out_losses(denoiser: Denoiser, latents: Tensor, sigmas: list[float], **options: Any) -> dict[float, float]:
    """The objective at fixed noise levels, with fixed noise and labels in turn."""
    each = losses_by_sigma(denoiser, latents, labels_of(len(latents)), sigmas, device=CPU, **{"seed": 0, **options})
    return {sigma: losses.mean().item() for sigma, losses in each.items()}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_an_untrained_denoiser_scores_the_variance_of_its_target_at_every_noise_level(parametrization: str) -> None:
    """Within four standard errors of the mean square."""
    expected, latents = PARAMETRIZATIONS[parametrization].target_variance, drawn(128, 4, 8, 8, purpose="latents")
    objective, noise = (
        DenoisingObjective(denoiser_of(parametrization=parametrization)),
        drawn(128, 4, 8, 8, purpose="n"),
    )
    batches = [LatentBatch(latents, noise, torch.full((128,), sigma), labels_of(128)) for sigma in SIGMAS]
    losses = [objective(batch).total.item() for batch in batches]
    assert max(abs(loss - expected) for loss in losses) < 4 * expected * (2 / latents.numel()) ** 0.5


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_objective_is_the_squared_error_of_the_network_itself(parametrization: str) -> None:
    """Karras et al. 2022, equation 8: the weight 1 / c_out² cancels the scale of the network's output."""
    batch, denoiser = batch_of(8, torch.float64), denoiser_of(perturbed=True, parametrization=parametrization).double()
    given: list[Tensor] = []
    denoiser.network.register_forward_hook(lambda _, __, output: given.append(output))
    loss = DenoisingObjective(denoiser)(batch).total
    noisy = batch.latents + batch.sigma.view(-1, 1, 1, 1) * batch.noise
    target = denoiser.target(noisy, batch.sigma, batch.latents)
    assert loss.item() == pytest.approx((given[0] - target).square().mean().item(), rel=1e-10)


def test_the_objective_of_a_batch_is_the_mean_over_its_samples() -> None:
    batch, objective = batch_of(6, torch.float64), DenoisingObjective(denoiser_of(perturbed=True).double())
    alone = [objective(LatentBatch(*(part[[i]] for part in batch))).total.item() for i in range(6)]
    assert objective(batch).total.item() == pytest.approx(sum(alone) / 6, rel=1e-12)


def test_after_one_step_the_gradient_reaches_every_parameter_of_the_denoiser() -> None:
    """At the start only the last layer has one, for it is zero; no step leaves a gradient on the batch."""
    denoiser, batch = denoiser_of(), batch_of(8)
    objective, optimizer = DenoisingObjective(denoiser), torch.optim.SGD(denoiser.parameters(), lr=0.1)
    objective(batch).total.backward()
    assert {name for name, p in denoiser.named_parameters() if p.grad.any()} == {
        "network.last.weight",
        "network.last.bias",
    }
    for _ in range(3):  # one for the last layer, one for the zeros inside the blocks, one for what lies before those
        optimizer.step()
        optimizer.zero_grad()
        objective(batch).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in denoiser.parameters())
    assert not any(part.requires_grad for part in batch[:3])


def test_the_loss_by_sigma_is_deterministic_and_the_same_for_any_batch_size() -> None:
    denoiser, latents = denoiser_of(perturbed=True), drawn(11, 4, 8, 8, purpose="latents")
    whole = held_out_losses(denoiser, latents, SIGMAS)
    assert whole == held_out_losses(denoiser, latents, SIGMAS)
    for batch_size in (1, 4, 11):
        assert held_out_losses(denoiser, latents, SIGMAS, batch_size=batch_size) == pytest.approx(whole)
    other = held_out_losses(denoiser, latents, SIGMAS, seed=1)
    assert all(other[sigma] != whole[sigma] for sigma in SIGMAS)
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_the_loss_by_sigma_is_the_objective_at_that_sigma() -> None:
    """With noise from (seed, place) it can be had by hand."""
    denoiser, latents = denoiser_of(perturbed=True), drawn(5, 4, 8, 8, purpose="latents")
    noise = torch.randn(latents.shape, generator=generator(7, "held-out noise", 1))
    by_hand = DenoisingObjective(denoiser)(LatentBatch(latents, noise, torch.full((5,), 0.5), labels_of(5))).total
    assert held_out_losses(denoiser, latents, [3.0, 0.5], seed=7)[0.5] == pytest.approx(by_hand.item())


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_loss_by_sigma_has_the_weight_of_edm_whatever_the_denoiser(parametrization: str) -> None:
    """So that the figures of runs with other parametrizations and skips can be compared."""
    denoiser, latents = (
        denoiser_of(perturbed=True, parametrization=parametrization),
        drawn(5, 4, 8, 8, purpose="latents"),
    )
    if parametrization == "edm":
        denoiser.gaussian = fit_gaussian(latents, rank=2)
    for place, sigma in enumerate(SIGMAS):
        noise = torch.randn(latents.shape, generator=generator(0, "held-out noise", place))
        denoised = denoiser(latents + sigma * noise, sigma, labels_of(5))
        by_hand = (1 + sigma**2) / sigma**2 * (denoised - latents).square().mean()
        assert held_out_losses(denoiser, latents, SIGMAS)[sigma] == pytest.approx(by_hand.item(), rel=1e-4)


# What a step of training costs outside the model.


class Calls(TorchDispatchMode):
    """Counts the aten calls inside and outside the model, views (detach is one) and the profiler's marks left out.

    The model is the preconditioned denoiser. Its forward pass lies between two hooks of the module. Its backward pass
    begins when the gradient of its answer is there, and ends with `backward()`: what the objective does to the answer
    has then been run through already, and nothing but the denoiser stands before it, as the batch needs no gradient.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.inside, self.outside = Counter[str](), Counter[str]()
        self.halves: set[torch.dtype] = set()
        self.current = self.outside
        self.handles = [
            denoiser.register_forward_pre_hook(lambda *_: self.enter()),
            denoiser.register_forward_hook(lambda _, __, answer: self.leave_until_backward(answer)),
        ]

    def enter(self) -> None:
        self.current = self.inside

    def leave(self) -> None:
        self.current = self.outside

    def leave_until_backward(self, answer: Tensor) -> None:
        self.leave()
        answer.register_hook(lambda _: self.enter_until_the_end_of_backward())

    def enter_until_the_end_of_backward(self) -> None:
        self.enter()
        torch.autograd.Variable._execution_engine.queue_callback(self.leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not func.is_view:
            self.current[str(func)] += 1
        result = func(*args, **(kwargs or {}))
        if self.current is self.outside and isinstance(result, Tensor) and result.is_floating_point():
            self.halves |= {result.dtype} - {torch.float32, torch.float64}
        return result


class SameBatch(TrainingBatches[LatentBatch, LatentBatch]):
    """A batch that is made already, again and again."""

    def __getitem__(self, micro_batch: int) -> LatentBatch:
        return batch_of(4)

    def prepare(self, rows: LatentBatch, rng: StepRandom) -> LatentBatch:
        return rows


def step_of(denoiser: Denoiser, out: Path, precision: Any) -> Calls:
    """The calls of one step of `train_diffusion.py`, word by word, once the optimizer has its memory."""
    config = TrainDiffusionConfig(run=RunConfig(steps=9, batch_size=4, precision=precision))
    run = Run(config, out, dry=True)
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume("")
    made: list[Calls] = []

    def learn(step: TrainingStep) -> None:
        with Calls(denoiser) as calls:
            losses = objective(step.batch, step)
            step.update(losses.total)
            step.log(losses.terms)
        for handle in calls.handles:
            handle.remove()
        made.append(calls)

    for _ in run.steps(SameBatch(BatchSampler((0,), seed=0, batch_size=4)), learn):
        pass
    return made[-1]


class OneLayer(nn.Module):
    """The least that can be trained: one parameter and one product."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, scaled: Tensor, *_: Tensor | None) -> Tensor:
        return self.scale * scaled


DENOISERS = {
    "one layer": lambda: Denoiser(OneLayer()),
    "small": lambda: denoiser_around(UNet(SMALL, channels=4)),
    "Gaussian skip": lambda: Denoiser(OneLayer(), gaussian=LatentGaussian((4, 8, 8), 16)),
    "larger": lambda: denoiser_around(UNet(UNetConfig(widths=(8, 16, 16), blocks=2), channels=4)),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_makes_at_most_30_calls_outside_the_model_whatever_the_model(tmp_path, precision) -> None:
    counts = {}
    for name, create in DENOISERS.items():
        calls = step_of(create(), tmp_path, precision)
        counts[name] = calls.outside
        assert calls.inside, "no call was counted inside the model"
        assert not calls.halves, f"half precision outside the model: {calls.halves}"
    print(f"{precision}: {counts['small'].total()} aten calls outside the model: {dict(counts['small'])}")
    assert counts["small"] == counts["larger"] == counts["one layer"]
    assert counts["small"].total() <= 30
    assert counts["Gaussian skip"].total() <= counts["small"].total() + 8  # its c_out is a sum over components


@pytest.mark.parametrize("name", DENOISERS)
def test_what_counts_as_the_model_is_the_model_alone(tmp_path, name: str) -> None:
    """The marks are right: a step's calls inside the model are those of the denoiser run by itself, there and back."""
    denoiser, batch = DENOISERS[name](), batch_of(4)
    in_a_step = step_of(denoiser, tmp_path, "fp32").inside
    by_itself = Calls(nn.Module())
    with by_itself:
        denoiser(batch.latents, batch.sigma, batch.condition).backward(batch.noise)
    assert in_a_step == by_itself.outside


@pytest.mark.parametrize("name", DENOISERS)
def test_a_step_never_waits_for_the_device(tmp_path, name: str) -> None:
    """No number is brought to the host, inside the model or outside, and no shape depends on one."""
    calls = step_of(DENOISERS[name](), tmp_path, "fp32")
    waiting = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "allclose"}
    made = {str(call).split(".")[1] for call in calls.inside + calls.outside}
    assert not made & waiting


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_under_autocast_the_arithmetic_of_the_loss_stays_in_float32(parametrization: str) -> None:
    """The network rounds to bfloat16; the objective sees its answer, and nothing else, through that rounding."""
    batch, denoiser = batch_of(16), denoiser_of(perturbed=True, parametrization=parametrization)
    given: list[Tensor] = []
    denoiser.network.register_forward_hook(lambda _, __, output: given.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        total = DenoisingObjective(denoiser)(batch).total
    assert given[0].dtype == torch.bfloat16 and total.dtype == torch.float32
    noisy = batch.latents.double() + batch.sigma.view(-1, 1, 1, 1).double() * batch.noise.double()
    target = denoiser.target(noisy, batch.sigma.double(), batch.latents.double())
    assert total.item() == pytest.approx((given[0].double() - target).square().mean().item(), rel=1e-5)
