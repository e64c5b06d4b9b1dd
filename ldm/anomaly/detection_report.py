"""Report of a detector on labeled images: metrics of images, of pixels where there are masks, of each kind of anomaly
and of each score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.anomaly.detector import AnomalyScores
from ldm.anomaly.metrics import aupro, auroc, average_precision, pixel_auroc
from ldm.evaluation.formatting import format_metric


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of the images that were scored, row by row."""

    anomalous: Tensor  # bool
    kinds: list[str]  # what each image is called in the data
    masks: Tensor | None  # bool, B 1 H W; None without masks


def measure(scores: AnomalyScores, labels: Tensor, truth: Truth) -> dict[str, Any]:
    """The metrics, ready for JSON; `labels` are the verdicts. DataError where all images are normal, or all anomalous.

    Pixels count where images have masks and the detector gives maps.
    """
    anomalous, verdicts = truth.anomalous, labels.bool()
    found: dict[str, Any] = {
        **of_images(scores.pred_score, anomalous),
        "false_alarm_rate": float(verdicts[~anomalous].double().mean()),
        "detection_rate": float(verdicts[anomalous].double().mean()),
    }
    if truth.masks is not None and scores.anomaly_map is not None:
        found["pixel_auroc"] = pixel_auroc(scores.anomaly_map, truth.masks)
        found["aupro"] = aupro(scores.anomaly_map, truth.masks)
    return {
        "metrics": found,
        "by_kind": by_kind(scores.pred_score, verdicts, truth),
        "by_score": by_score(scores, truth),
    }


def of_images(scores: Tensor, anomalous: Tensor) -> dict[str, float]:
    """AUROC and average precision."""
    return {"image_auroc": auroc(scores, anomalous), "average_precision": average_precision(scores, anomalous)}


def by_kind(scores: Tensor, verdicts: Tensor, truth: Truth) -> dict[str, dict[str, Any]]:
    """Each kind of anomaly by itself, beside all normal images."""
    found = {}
    for kind in sorted({kind for kind, is_one in zip(truth.kinds, truth.anomalous, strict=True) if is_one}):
        own = torch.tensor([each == kind for each in truth.kinds])
        beside = own | ~truth.anomalous
        found[kind] = {
            "count": int(own.sum()),
            "image_auroc": auroc(scores[beside], own[beside]),
            "detection_rate": float(verdicts[own].double().mean()),
        }
    return found


def by_score(scores: AnomalyScores, truth: Truth) -> dict[str, dict[str, float]]:
    """Each score by itself, where there are several."""
    return {name: of_images(raw, truth.anomalous) for name, raw in scores.parts.items() if len(scores.parts) > 1}


TITLES = {
    "image_auroc": "image AUROC",
    "average_precision": "average precision",
    "false_alarm_rate": "false alarms",
    "detection_rate": "detected",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO@0.3",
}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a person reads it."""
    counts, metrics = report["count"], report["metrics"]
    rows = [("images", f"{counts['normal']} normal, {counts['anomalous']} anomalous")]
    if counts["unreadable"]:
        rows.append(("unreadable", f"{counts['unreadable']}, not measured"))
    for name, value in metrics.items():
        note = f" (at most {report['detector']['alpha']:g} is promised)" if name == "false_alarm_rate" else ""
        rows.append((TITLES[name], format_metric(value) + note))
    for kind, of_kind in report["by_kind"].items() if len(report["by_kind"]) > 1 else ():
        detected = format_metric(of_kind["detection_rate"])
        rows.append((f"  {kind}", f"AUROC {format_metric(of_kind['image_auroc'])}, detected {detected}"))
    for name, of_score in report["by_score"].items():
        rows.append((f"  by {name} alone", f"AUROC {format_metric(of_score['image_auroc'])}"))
    width = max(len(title) for title, _ in rows)
    return [f"{title:{width}}  {text}" for title, text in rows]
