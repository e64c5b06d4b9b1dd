"""Evaluates an autoencoder by a fixed protocol: the same metrics for any number of processes.

Each image is seen in its evaluation view, reconstructed from the mode of its posterior, and rounded to 8 bits, as is
the reconstruction, before anything is measured. Metrics are means over the images, in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Subset
from ldm.errors import CheckpointError
from ldm.evaluation.feature_networks import FeatureExtractor, PerceptualMetric
from ldm.evaluation.measurements import BatchMeasurements, EvaluationSet, measure_batch
from ldm.evaluation.probes import PROBES, ProbeInputs, accuracy, probe_inputs, protocol_entry
from ldm.evaluation.report import report
from ldm.evaluation.saved_images import SavedImages
from ldm.shapes import Images
from ldm.training.processes import Processes

T = TypeVar("T")


def evaluate(
    autoencoder: Autoencoder,
    evaluated: EvaluationSet,
    processes: Processes,
    *,
    metric: PerceptualMetric | None = None,
    extractor: FeatureExtractor | None = None,
    probe: str = "none",
    saved: SavedImages | None = None,
    batch_size: int = 32,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """The protocol, the metrics, and what they were measured on, ready for JSON; the same on every process.

    `probe` says what of a latent its probes are given: none, mean, flat. Images and reconstructions are written to
    `saved`. `on_images` is called with the number of images of each batch as it is done, those that probes are fitted
    to being counted too.
    """
    autoencoder.to(processes.device).eval()

    def of_batches(images: Subset, work: Callable[[Subset, Images], T]) -> Iterator[T]:
        parts = list(images.chunks(batch_size))
        results = processes.map(
            len(parts), lambda number: work(parts[number], parts[number].images().to(processes.device))
        )
        for part, result in zip(parts, results, strict=True):
            on_images(len(part))
            yield result

    def measure(part: Subset, images: Images) -> BatchMeasurements:
        write = None if saved is None else partial(saved.write, part.indices)
        batch = measure_batch(autoencoder, images, part.indices, metric, extractor, probe, write)
        return replace(batch, unreadable=evaluated.images.dataset.unreadable)

    batches: list[BatchMeasurements] = []
    for batch in of_batches(evaluated.images, measure):
        if batches:  # as large as an image: one for all
            batches[0].total.add_(batch.total)
            batch = replace(batch, total=batches[0].total)
        batches.append(batch)
    result = next(processes.map(1, lambda _: report(autoencoder, evaluated, batches, metric, extractor)))
    if probe != "none":
        training = of_batches(evaluated.for_probes, lambda _, images: probe_inputs_of(autoencoder, images, probe))
        measured = [batch.probe_inputs for batch in batches if batch.probe_inputs is not None]
        result["protocol"]["probe"], metrics = run_probes(evaluated, processes, list(training), measured, probe)
        result["metrics"] |= metrics
    return result


@torch.no_grad()
def probe_inputs_of(autoencoder: Autoencoder, images: Images, probe: str) -> ProbeInputs:
    """What probes are given of these images."""
    latents = autoencoder.encode(images).mode()
    if not latents.isfinite().all():
        raise CheckpointError("the autoencoder gives latents that are not finite numbers")
    return probe_inputs(latents, images, probe)


def run_probes(
    evaluated: EvaluationSet, processes: Processes, training: list[ProbeInputs], measured: list[ProbeInputs], probe: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the probes are, for the protocol, and how many of the measured images they get right."""
    device = processes.device if processes.device.type != "mps" else torch.device("cpu")  # it has no float64
    train, test = (ProbeInputs.joined(parts, device) for parts in (training, measured))
    labels, truth = (subset.labels.to(device) for subset in (evaluated.for_probes, evaluated.images))
    names = list(PROBES)
    values = processes.map(len(names), lambda number: accuracy(names[number], train, labels, test, truth))
    return protocol_entry(probe, train, evaluated.images.shape), dict(zip(names, values, strict=True))
