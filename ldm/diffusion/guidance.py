"""Guidance, as functions from denoiser to denoiser: classifier-free guidance and autoguidance.

Both move the answer away from that of a worse denoiser, D_worse + weight · (D − D_worse): weight 1 is D itself, 0 is
the worse one, and above 1 the samples become more typical and less varied.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ldm.batch import Condition, ConditionSchema
from ldm.errors import RequestError
from ldm.shapes import Latents, NoiseLevels

ConditionalDenoise: TypeAlias = Callable[[Latents, NoiseLevels, Condition | None], Latents]
GuidanceInterval: TypeAlias = tuple[float, float]

EVERYWHERE: GuidanceInterval = (0.0, math.inf)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Guidance by the same denoiser without its condition (Ho and Salimans 2022).

    Outside the interval of noise levels the denoiser is left alone (Kynkäänniemi et al. 2024). `rescale` is the share
    in which the answer gets back the standard deviation that it has without guidance (Lin et al. 2024).
    """

    weight: float
    interval: GuidanceInterval = EVERYWHERE  # lowest and highest σ
    rescale: float = 0.0
    kind: Literal["classifier-free"] = "classifier-free"

    def around(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """The guided denoiser."""
        guided = classifier_free(denoiser, guidance=self.weight, rescale=self.rescale)
        return within(self.interval, guided, denoiser)


@dataclass(frozen=True)
class Autoguidance:
    """Guidance by a weaker version of the denoiser, smaller or less trained (Karras et al. 2024)."""

    weight: float
    guide: ConditionalDenoise
    interval: GuidanceInterval = EVERYWHERE
    rescale: float = 0.0
    kind: Literal["autoguidance"] = "autoguidance"

    def around(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """The guided denoiser."""
        guided = autoguidance(denoiser, self.guide, guidance=self.weight, rescale=self.rescale)
        return within(self.interval, guided, denoiser)


@dataclass(frozen=True)
class PerConditionGuidance:
    """Classifier-free guidance with a weight of its own for each condition, in this order (Brooks et al. 2023).

    D(∅) + Σ w_k (D(c_1 ... c_k) − D(c_1 ... c_{k-1})): each weight enlarges what its condition adds to those before it.
    With all weights 1 this is D with all conditions, and with equal ones classifier-free guidance.
    """

    weights: tuple[tuple[str, float], ...]  # by name, of all conditions of the model
    interval: GuidanceInterval = EVERYWHERE
    rescale: float = 0.0
    kind: Literal["per-condition"] = "per-condition"

    @property
    def weight(self) -> float:
        """The largest of the weights; 1 of a model without conditions."""
        return max((weight for _, weight in self.weights), default=1.0)

    def around(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """The guided denoiser."""
        if all(weight == self.weight for _, weight in self.weights):
            return ClassifierFreeGuidance(self.weight, self.interval, self.rescale).around(denoiser)
        return within(self.interval, per_condition(denoiser, self.weights, rescale=self.rescale), denoiser)


Guidance: TypeAlias = ClassifierFreeGuidance | PerConditionGuidance | Autoguidance


def classifier_free(denoiser: ConditionalDenoise, *, guidance: float, rescale: float = 0.0) -> ConditionalDenoise:
    """Classifier-free guidance.

    Both answers come from one call with a batch of twice the size; guidance 0 and 1 need one answer and compute only
    that.
    """
    if guidance == 1:
        return denoiser
    joined: list[tuple[Condition, Condition]] = []  # the condition of the last call, and what was made of it

    def guided(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        if condition is None:
            raise ValueError("classifier-free guidance needs a condition, and there is none")
        if guidance == 0 and not rescale:
            return denoiser(noisy, sigma, condition.null())
        sigmas = torch.as_tensor(sigma, device=noisy.device).reshape(-1).expand(len(noisy))
        if not joined or joined[0][0] is not condition:
            joined[:] = [(condition, condition.joined(condition.null()))]
        both = denoiser(torch.cat([noisy, noisy]), torch.cat([sigmas, sigmas]), joined[0][1])
        conditional, unconditional = both.chunk(2)
        return rescaled(unconditional + guidance * (conditional - unconditional), conditional, rescale)

    return guided


def per_condition(
    denoiser: ConditionalDenoise, weights: Sequence[tuple[str, float]], *, rescale: float = 0.0
) -> ConditionalDenoise:
    """Classifier-free guidance with a weight for each condition; all answers come from one call with a larger batch.

    Summed by parts: the answer with the first k conditions counts w_k - w_{k+1} times, and is not computed where that
    is zero.
    """
    names, numbers = [name for name, _ in weights], [1.0, *(weight for _, weight in weights), 0.0]
    counts = {tuple(names[:k]): numbers[k] - numbers[k + 1] for k in range(len(names) + 1)}
    needed = {kept: count for kept, count in counts.items() if count or (rescale and len(kept) == len(names))}

    def guided(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        if condition is None:
            raise ValueError("classifier-free guidance needs a condition, and there is none")
        sigmas = torch.as_tensor(sigma, device=noisy.device).reshape(-1).expand(len(noisy))
        parts = [condition.only(kept) for kept in needed]
        times = len(parts)
        joined = reduce(Condition.joined, parts)
        answers = denoiser(torch.cat([noisy] * times), torch.cat([sigmas] * times), joined).chunk(times)
        total = sum((count * answer for count, answer in zip(needed.values(), answers, strict=True)), start=0 * noisy)
        return rescaled(total, answers[-1], rescale)

    return guided


def autoguidance(
    denoiser: ConditionalDenoise, weaker: ConditionalDenoise, *, guidance: float, rescale: float = 0.0
) -> ConditionalDenoise:
    """Guidance by a weaker version of the denoiser, of which guidance 1 takes nothing."""
    if guidance == 1:
        return denoiser

    def guided(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        worse, better = weaker(noisy, sigma, condition), denoiser(noisy, sigma, condition)
        return rescaled(worse + guidance * (better - worse), better, rescale)

    return guided


def within(interval: GuidanceInterval, guided: ConditionalDenoise, denoiser: ConditionalDenoise) -> ConditionalDenoise:
    """`guided` at the noise levels of an interval, its ends included, and outside it `denoiser` and nothing else."""
    low, high = interval
    if guided is denoiser or (low <= 0 and high == math.inf):
        return guided

    def limited(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        levels = torch.as_tensor(sigma, device=noisy.device).reshape(-1).expand(len(noisy))
        inside = (levels >= low) & (levels <= high)
        if not inside.any():
            return denoiser(noisy, sigma, condition)
        if inside.all():
            return guided(noisy, sigma, condition)
        chosen = inside.view(-1, *[1] * (noisy.ndim - 1))
        return torch.where(chosen, guided(noisy, sigma, condition), denoiser(noisy, sigma, condition))

    return limited


def rescaled(guided: Tensor, plain: Tensor, share: float) -> Tensor:
    """The guided answer with the standard deviation of the plain one, image by image, in that share."""
    if not share:
        return guided
    over = tuple(range(1, guided.ndim))
    factor = plain.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return guided * (1 + share * (factor - 1))


def checked_guidance(
    guidance: float | Mapping[str, float] | None,
    schema: ConditionSchema,
    dropout: bool,
    *,
    interval: GuidanceInterval | None = None,
    rescale: float | None = None,
    guide: ConditionalDenoise | None = None,
) -> Guidance:
    """The guidance that is asked for, or else 2 where it is possible; RequestError for one that the model cannot give.

    A mapping has weights by condition, in its order; conditions that it does not name come last, with weight 1. By
    itself a model needs conditions, and that in training they were sometimes left out (`dropout`); a `guide` needs
    neither.
    """
    if isinstance(guidance, Mapping):
        weights = checked_weights(guidance, schema, guided=guide is not None)
    else:
        default = 2.0 if guide or (schema.attributes and dropout) else 1.0
        weights = (("", checked_number("guidance", default if guidance is None else guidance)),)
    guides = any(weight != 1 for _, weight in weights)
    if guide is None and guides and not schema.attributes:
        raise RequestError("guidance", "needs a model with classes or other conditions, and this one has none")
    if guide is None and guides and not dropout:
        raise RequestError(
            "guidance",
            "needs a model trained with objective.condition_dropout, and this one had none (a model tuned for few steps"
            " has its guidance baked in: objective.guidance)",
        )
    for name, given in (("guidance_interval", interval), ("guidance_rescale", rescale)):
        if given is not None and not guides:
            raise RequestError(name, "says nothing without guidance: give a guidance other than 1, or leave it out")
    low, high = checked_interval(interval)
    share = checked_number("guidance_rescale", rescale or 0.0)
    if not 0 <= share <= 1:
        raise RequestError("guidance_rescale", f"{share:g} must be at least 0 and at most 1")
    if isinstance(guidance, Mapping):
        return PerConditionGuidance(weights, (low, high), share)
    weight = weights[0][1]
    if guide is None:
        return ClassifierFreeGuidance(weight, (low, high), share)
    return Autoguidance(weight, guide, (low, high), share)


def checked_interval(given: GuidanceInterval | None) -> GuidanceInterval:
    """The same, or everywhere; RequestError for what is no interval of noise levels."""
    if given is None:
        return EVERYWHERE
    try:
        low, high = given
        if 0 <= low < high:
            return low, high
        shown = f"{low:g},{high:g}"
    except (TypeError, ValueError):  # another number of them, or words
        shown = repr(given)
    raise RequestError("guidance_interval", f"{shown} must be two noise levels, the lower one first")


def checked_weights(
    given: Mapping[str, float], schema: ConditionSchema, *, guided: bool
) -> tuple[tuple[str, float], ...]:
    """The weights of all conditions, those that are given first; RequestError for a condition that is not there."""
    known = [each.name for each in schema.attributes]
    for name in given:
        if name not in known:
            raise RequestError("guidance", f"{name} is no condition of this model; its conditions: {', '.join(known)}")
    if guided:
        raise RequestError("guidance", "has one weight where a guide is given, and not one for each condition")
    chosen = {name: checked_number("guidance", weight) for name, weight in given.items()}
    return (*chosen.items(), *((name, 1.0) for name in known if name not in chosen))


def checked_number(name: str, value: float) -> float:
    """The same; RequestError for what is no finite number."""
    try:
        is_finite = math.isfinite(value)
    except (TypeError, ValueError):  # a string, a tensor of several
        raise RequestError(name, f"{value!r} is not a number") from None
    if not is_finite:
        raise RequestError(name, f"{value} must be a finite number")
    return value
