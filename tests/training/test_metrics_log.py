"""The metrics log: means of what was kept, and the first number that is not finite by name and step."""

import math
from pathlib import Path

import pytest
import torch

from ldm.errors import DivergedError
from ldm.training.config import RunConfig
from ldm.training.metrics_log import MetricsLog
from ldm.training.run_folder import RunFolder


class OneProcess:
    """As much of an Accelerator as the metrics log of one process asks for."""

    num_processes, is_main_process, scaler, device = 1, True, None, torch.device("cpu")


def metrics_log(folder: Path, **config: int) -> MetricsLog:
    return MetricsLog(RunFolder(folder), OneProcess(), RunConfig(**config), 0, list)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["l1", "kl", "gradient_norm"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_bad_number_is_named_with_its_step(tmp_path, bad, name, accumulation):
    log = metrics_log(tmp_path, accumulation=accumulation, batch_size=4)
    for step in range(1, 6):
        for _ in range(accumulation):
            values = {"l1": 0.5, "kl": 0.1, "gradient_norm": 1.0} | ({name: bad} if step >= 3 else {})
            terms = {key: torch.tensor(value) for key, value in values.items()}
            log.append(terms)
    with pytest.raises(DivergedError, match=f"{name} was not a finite number at step 3; there is no checkpoint yet"):
        log.read(5, lr=0.1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_line_of_the_log_is_the_mean_since_the_one_before(tmp_path):
    log = metrics_log(tmp_path, accumulation=2, batch_size=4)
    for value in (1.0, 2.0, 3.0, 6.0):
        norm = {"gradient_norm": torch.tensor(2 * value)} if value in (2.0, 6.0) else {}
        log.append({"l1": torch.tensor(value)} | norm)
    log.read(2, lr=0.1)
    (line,) = RunFolder(tmp_path).lines()
    assert line["step"] == 2 and line["images"] == 8 and line["l1"] == 3.0
    assert line["gradient_norm"] == (4 + 12) / 2, "only the last micro-batch of a step has the whole gradient"


def test_an_overflow_that_the_loss_scale_answers_is_no_word_that_json_does_not_have(tmp_path):
    class HalfPrecision(OneProcess):
        scaler = object()

    log = MetricsLog(RunFolder(tmp_path), HalfPrecision(), RunConfig(), 0, list)  # type: ignore[arg-type]
    for norm in (math.inf, 2.0, 4.0):
        log.append({"l1": torch.tensor(0.5), "gradient_norm": torch.tensor(norm)})
    log.read(3, lr=0.1)
    log.append({"l1": torch.tensor(0.5), "gradient_norm": torch.tensor(math.nan)})
    log.read(4, lr=0.1)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in text and "NaN" not in text
    first, second = RunFolder(tmp_path).lines()
    assert first["gradient_norm"] == 3.0 and "gradient_norm" not in second
