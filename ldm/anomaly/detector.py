"""The anomaly detector: scores with a conformal threshold, fitted to normal images alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ldm.anomaly.combination import combined
from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.conformal import conformal_p_values, conformal_threshold, rate_spread
from ldm.anomaly.detector_folder import read_detector, write_detector
from ldm.anomaly.fitting import FittedScores, Fitting, joint_map
from ldm.anomaly.scorer import Scorer
from ldm.anomaly.subject import Subject, open_subject
from ldm.data.datasets import Subset
from ldm.shapes import Images, Scalars
from ldm.training.devices import choose_device
from ldm.training.processes import Processes


@dataclass(frozen=True, eq=False)
class AnomalyScores:
    """What a detector says of images, in rows that can be joined; all on the CPU."""

    pred_score: Scalars  # float64; infinite where a score is not a finite number
    p_value: Scalars  # float64: how likely a normal image is to have such a score, at most
    pred_label: Tensor  # bool: an anomaly
    anomaly_map: Tensor | None  # batch x 1 x H x W
    pred_mask: Tensor | None  # bool: the places above what a normal image reaches anywhere, but for a share of alpha
    parts: dict[str, Tensor]  # each score as it is, float64

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several batches, one behind the other."""
        maps = [part.anomaly_map for part in parts if part.anomaly_map is not None]
        masks = [part.pred_mask for part in parts if part.pred_mask is not None]
        return cls(
            torch.cat([part.pred_score for part in parts]),
            torch.cat([part.p_value for part in parts]),
            torch.cat([part.pred_label for part in parts]),
            torch.cat(maps) if maps else None,
            torch.cat(masks) if masks else None,
            {name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts},
        )

    def without_maps(self) -> Self:
        """The same without what takes the room."""
        return replace(self, anomaly_map=None, pred_mask=None)

    @property
    def not_finite(self) -> list[list[str]]:
        """For each image, the scores that are not finite numbers; it counts as an anomaly for each."""
        bad = {name: (~values.isfinite()).tolist() for name, values in self.parts.items()}
        return [[name for name, flags in bad.items() if flags[row]] for row in range(len(self.pred_score))]


class AnomalyDetector:
    """Scores of images, combined, and the threshold above which one is an anomaly.

    Made by `fit` or `load`. `threshold` is that of `pred_score`, `map_threshold` that of the map: a normal image has a
    place above it with probability alpha at most.
    """

    def __init__(self, fitted: FittedScores, device: torch.device):
        self.fitted, self.scorer, self.device = fitted, fitted.scorer, device
        self.scorer.to(device)
        self.threshold = conformal_threshold(fitted.calibration, self.config.alpha)
        peaks = fitted.map_calibration
        self.map_threshold = conformal_threshold(peaks, self.config.alpha) if len(peaks) else None

    @classmethod
    def fit(
        cls,
        model: Subject | str | Path,
        normal: Subset,
        config: DetectorConfig | None = None,
        *,
        processes: Processes | None = None,
        batch_size: int = 32,
        say: Callable[[str], None] = lambda line: None,
        on_images: Callable[[int], object] = lambda count: None,
    ) -> Self:
        """A detector of what is not like the normal images.

        `model` is what `open_subject` gives or takes. The images are divided by group: into those that densities are
        fitted to, those that put the scores on one scale, and those that set the threshold. `say` is told how many
        these are, `on_images` the number of images of each batch as it is done; an image may be seen twice. The result
        is the same on every process, and for any number of them.
        """
        processes = processes or Processes()
        subject = model if isinstance(model, Subject) else open_subject(model)
        scorer = Scorer.create(subject, config or DetectorConfig(), normal.shape)
        return cls(Fitting(processes, batch_size, on_images).run(scorer, normal, say), processes.device)

    @property
    def config(self) -> DetectorConfig:
        """How it was fitted."""
        return self.scorer.config

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that it takes."""
        return self.scorer.shape

    @property
    def scores(self) -> list[str]:
        """The names of the scores that it combines."""
        return self.scorer.names

    @torch.no_grad()
    def score(self, images: Images) -> AnomalyScores:
        """What it says of images, float B C H W in [-1, 1].

        An image's result depends on the image alone, but for float rounding: not on the batch, nor on its place in it.
        Raises DataError for images of another shape.
        """
        self.scorer.check(images)
        weights = {name: scale.components for name, scale in self.fitted.scales.items()}
        found = self.scorer.measure(images.to(self.device), weights)
        total = combined(found.values, {name: scale.tail for name, scale in self.fitted.scales.items()})
        anomaly_map = joint_map(found, self.fitted.scales)
        return AnomalyScores(
            total,
            conformal_p_values(total, self.fitted.calibration),
            total > self.threshold,
            anomaly_map,
            None if anomaly_map is None or self.map_threshold is None else anomaly_map > self.map_threshold,
            found.values,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it, ready for JSON."""
        count, alpha = len(self.fitted.calibration), self.config.alpha
        spread = rate_spread(count, alpha)
        return {
            "model": self.scorer.subject.source,
            "scores": self.scores,
            "pool": self.config.pool,
            "shape": list(self.shape),
            "normal_images": self.fitted.counts,
            "alpha": alpha,
            "threshold": self.threshold,
            "map_threshold": self.map_threshold,
            "guarantee": (
                f"a normal image is called an anomaly with probability {alpha:g} at most, if it is exchangeable with"
                f" the {count} calibration images; over such calibration sets the rate varies by about {spread:.2g}"
            ),
        }

    def save(self, folder: str | Path) -> None:
        """Write it to a new folder; ConfigError if there is something. The model stays where it is."""
        write_detector(self.fitted, self.facts, Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, *, model: Subject | str | Path | None = None, device: str | torch.device | None = None
    ) -> Self:
        """What `save` wrote; with the model from elsewhere, if it has moved.

        Raises CheckpointError for a damaged folder, and for a model of other weights than it was fitted with.
        """
        return cls(read_detector(Path(folder), model), choose_device(device))
