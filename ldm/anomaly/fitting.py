"""Fits a detector to normal images: densities, then scales, then the calibration scores of its threshold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ldm.anomaly.combination import LogisticTail, combined
from ldm.anomaly.config import SCORES
from ldm.anomaly.conformal import check_enough
from ldm.anomaly.maps import pooled
from ldm.anomaly.scorer import BatchScores, ComponentWeights, Scorer, ScoreScale
from ldm.anomaly.scores import DENSITY_INPUTS, shrunken
from ldm.anomaly.splits import NormalParts, split_normal
from ldm.data.datasets import Subset
from ldm.diffusion.gaussian import LatentGaussian, fit_gaussian
from ldm.errors import DataError
from ldm.latents import MOST_FITTED, groups_of
from ldm.shapes import Images
from ldm.training.processes import Processes

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FittedScores:
    """Scores with all that was learned from normal images."""

    scorer: Scorer
    scales: dict[str, ScoreScale]
    calibration: Tensor  # the combined scores of the calibration images
    map_calibration: Tensor  # the highest places of their maps; empty without maps
    counts: dict[str, int]  # of normal images by what they were for


@dataclass(frozen=True, eq=False)
class Fitting:
    """The work of fitting, shared between processes in batches whose results do not depend on who computes them."""

    processes: Processes
    batch_size: int
    on_images: Callable[[int], object]

    def over(self, images: Subset, work: Callable[[Images], T]) -> list[T]:
        """What `work` makes of each batch, in order, on every process."""
        parts, found = list(images.chunks(self.batch_size)), []
        device = self.processes.device
        results = self.processes.map(len(parts), lambda number: work(parts[number].images().to(device)))
        for part, result in zip(parts, results, strict=True):
            self.on_images(len(part))
            found.append(result)
        return found

    def run(self, scorer: Scorer, normal: Subset, say: Callable[[str], None]) -> FittedScores:
        """The scores, fitted to the normal images; `say` is told which of them are for what."""
        config, subject = scorer.config, scorer.subject
        fits = subject.needs_fitting or any(SCORES[name].fits for name in scorer.names)
        parts = split_normal(normal, subject.source, fits=fits, seed=config.seed)
        counts = counted(parts, fits)
        uses = f"{len(normal)} normal images: " + ", ".join(f"{count} for {name}" for name, count in counts.items())
        check_enough(len(parts.calibration), config.alpha, uses)
        say(uses)
        scorer.to(self.processes.device)
        if fits:
            scorer = self.with_densities(scorer, parts.fitting)
        scales = self.scales(scorer, parts.standardization)
        weights = {name: scale.components for name, scale in scales.items()}
        measured = self.over(parts.calibration, lambda images: with_peaks(scorer.measure(images, weights), scales))
        values = {name: torch.cat([scores[name] for scores, _ in measured]) for name in scorer.names}
        for name, found in values.items():
            check_finite(found, name, parts.calibration)
        calibration = combined(values, {name: scale.tail for name, scale in scales.items()})
        return FittedScores(scorer, scales, calibration, torch.cat([peaks for _, peaks in measured]), counts)

    def with_densities(self, scorer: Scorer, images: Subset) -> Scorer:
        """The same with what is fitted in closed form, by the main process for all."""
        subject = scorer.subject
        if subject.needs_fitting:

            def fit() -> dict[str, Tensor]:
                subject.fit(images, scorer.config.variance)
                return {name: value.cpu() for name, value in subject.state().items()}

            subject.load_state(self.processes.on_main(fit))
        inputs = {name: DENSITY_INPUTS[name] for name in scorer.names if name in DENSITY_INPUTS}
        chosen, groups = images.evenly_spaced(MOST_FITTED), groups_of(images.evenly_spaced(MOST_FITTED))

        @torch.no_grad()
        def inputs_of(batch: Images) -> dict[str, Tensor]:
            view = subject.view(batch)
            return {name: of(view, scorer.config.blur).float().cpu() for name, of in inputs.items()}

        batches = self.over(chosen, inputs_of) if inputs else []
        densities: dict[str, LatentGaussian] = {}
        for name in inputs:
            whole = torch.cat([batch[name] for batch in batches])
            gaussian = self.processes.on_main(partial(fit_gaussian, whole, groups=groups))
            densities[name] = shrunken(gaussian).to(self.processes.device)
        return replace(scorer, parts=replace(scorer.parts, densities=densities))

    def scales(self, scorer: Scorer, images: Subset) -> dict[str, ScoreScale]:
        """The weights of each score's components, then the tail of the score and the moments of its maps."""
        means = self.over(images, scorer.component_means)
        weights = {}
        for name in scorer.names:
            found = torch.cat([batch[name] for batch in means])
            check_finite(found.sum(1), name, images)
            weights[name] = ComponentWeights.fit(name, found)
        measured = self.over(images, lambda batch: with_moments(scorer.measure(batch, weights)))
        return {name: scale_of(weights[name], [batch[name] for batch in measured]) for name in scorer.names}


def scale_of(weights: ComponentWeights, measured: Sequence[tuple[Tensor, Tensor]]) -> ScoreScale:
    """The scale of a score from its values, and from the count, sum and sum of squares over its maps, by batch."""
    tail = LogisticTail.fit(torch.cat([values for values, _ in measured]))
    count, total, squares = torch.stack([moments for _, moments in measured]).sum(0).tolist()
    if not count:
        return ScoreScale(weights, tail)
    mean = total / count
    return ScoreScale(weights, tail, mean, max(squares / count - mean**2, 1e-24) ** 0.5)


def with_moments(scores: BatchScores) -> dict[str, tuple[Tensor, Tensor]]:
    """Each score, and the count, the sum and the sum of squares over its maps: small enough to travel."""
    found = {}
    for name, values in scores.values.items():
        places = scores.maps[name].double() if name in scores.maps else torch.zeros(0, dtype=torch.float64)
        moments = [float(places.numel()), float(places.sum()), float(places.square().sum())]
        found[name] = values, torch.tensor(moments, dtype=torch.float64)
    return found


def with_peaks(scores: BatchScores, scales: dict[str, ScoreScale]) -> tuple[dict[str, Tensor], Tensor]:
    """The scores of calibration images, and the highest places of their joint maps, if there are any."""
    joint = joint_map(scores, scales)
    return scores.values, torch.zeros(0, dtype=torch.float64) if joint is None else pooled(joint, "max")


def joint_map(scores: BatchScores, scales: dict[str, ScoreScale]) -> Tensor | None:
    """One map for all scores: that of the only one, or the mean of those there are, each in units of its own spread."""
    if len(scores.values) == 1:
        return next(iter(scores.maps.values()), None)
    standardized = [(found - scales[name].map_mean) / scales[name].map_std for name, found in scores.maps.items()]
    return torch.stack(standardized).mean(0) if standardized else None


def check_finite(values: Tensor, name: str, images: Subset) -> None:
    """Raise DataError, with one of them, where the scores of normal images are not finite numbers."""
    places = torch.nonzero(~values.isfinite()).flatten().tolist()
    if places:
        first = images.dataset.names[images.indices[places[0]]]
        raise DataError(
            f"the score {name} of {len(places)} of {len(images)} normal images is not a finite number, for instance of"
            f" {first}: remove them, or leave the score out"
        )


def counted(parts: NormalParts, fits: bool) -> dict[str, int]:
    """How many normal images are for what."""
    fitted = {"densities": len(parts.fitting)} if fits else {}
    return fitted | {"standardization": len(parts.standardization), "calibration": len(parts.calibration)}
