"""The report of a detector: which images and pixels its numbers are of."""

import pytest
import torch

from ldm.anomaly.detection_report import Truth, measure, report_lines
from ldm.anomaly.detector import AnomalyScores
from ldm.anomaly.metrics import aupro, auroc, average_precision, pixel_auroc
from ldm.errors import DataError

ANOMALOUS = torch.tensor([False, False, False, False, True, True, True])
SCORES = torch.tensor([0.0, 1, 2, 6, 5, 7, 3], dtype=torch.float64)
KINDS = ["good"] * 4 + ["scratch", "hole", "scratch"]


def scored(*, several: bool = False, maps: torch.Tensor | None = None) -> AnomalyScores:
    parts = {"reconstruction": SCORES, "denoising": -SCORES} if several else {"reconstruction": SCORES}
    return AnomalyScores(SCORES, torch.ones(7), SCORES > 4, maps, None, parts)


def test_rates_are_those_of_the_verdicts_among_normal_images_and_among_anomalies() -> None:
    found = measure(scored(), SCORES > 4, Truth(ANOMALOUS, KINDS, None))
    assert found["metrics"] == {
        "image_auroc": auroc(SCORES, ANOMALOUS),
        "average_precision": average_precision(SCORES, ANOMALOUS),
        "false_alarm_rate": 0.25,
        "detection_rate": pytest.approx(2 / 3),
    }
    assert found["by_score"] == {}


def test_each_kind_of_anomaly_is_measured_beside_all_normal_images() -> None:
    found = measure(scored(), SCORES > 4, Truth(ANOMALOUS, KINDS, None))["by_kind"]
    assert list(found) == ["hole", "scratch"]
    assert found["hole"] == {"count": 1, "image_auroc": 1.0, "detection_rate": 1.0}
    assert found["scratch"] == {"count": 2, "image_auroc": 0.75, "detection_rate": 0.5}


def test_each_of_several_scores_is_measured_by_itself() -> None:
    found = measure(scored(several=True), SCORES > 4, Truth(ANOMALOUS, KINDS, None))["by_score"]
    right = auroc(SCORES, ANOMALOUS)
    assert found["reconstruction"]["image_auroc"] == right and found["denoising"]["image_auroc"] == pytest.approx(
        1 - right
    )


def test_pixels_are_measured_where_there_are_masks_and_maps() -> None:
    masks = torch.zeros(7, 1, 4, 4, dtype=torch.bool)
    masks[4:, :, 1:3, 1:3] = True
    maps = masks * 2.0 + torch.arange(16).reshape(4, 4) / 10
    found = measure(scored(maps=maps), SCORES > 4, Truth(ANOMALOUS, KINDS, masks))["metrics"]
    assert found["pixel_auroc"] == pixel_auroc(maps, masks) and found["aupro"] == aupro(maps, masks)
    for truth in (Truth(ANOMALOUS, KINDS, None), Truth(ANOMALOUS, KINDS, masks)):
        kept = scored(maps=maps if truth.masks is None else None)
        assert "aupro" not in measure(kept, SCORES > 4, truth)["metrics"]


@pytest.mark.parametrize("value", [True, False])
def test_labels_of_one_class_are_refused(value: bool) -> None:
    with pytest.raises(DataError, match=f"all 7 images are {'anomalous' if value else 'normal'}"):
        measure(scored(), SCORES > 4, Truth(torch.full((7,), value), KINDS, None))


def test_a_person_reads_what_is_promised_beside_the_false_alarms() -> None:
    found = measure(scored(several=True), SCORES > 4, Truth(ANOMALOUS, KINDS, None))
    count = {"normal": 4, "anomalous": 3, "unreadable": 2, "left_out": 0}
    lines = "\n".join(report_lines({**found, "count": count, "detector": {"alpha": 0.05}}))
    for words in (
        "4 normal, 3 anomalous",
        "0.25 (at most 0.05 is promised)",
        "2, not measured",
        "by denoising alone",
        "hole",
    ):
        assert words in lines
