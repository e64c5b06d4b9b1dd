"""The small things around a run: its log, its signals, its devices."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from ldm.errors import ConfigError, DivergedError
from ldm.training import signals
from ldm.training.config import RunConfig
from ldm.training.devices import resolve_precision
from ldm.training.metrics_log import MetricsLog
from ldm.training.run_folder import RunFolder
from ldm.training.signals import catch_signals


class OneProcess:
    """As much of an Accelerator as the history of one process asks for."""

    num_processes, is_main_process, scaler, device = 1, True, None, torch.device("cpu")


def history(folder: Path, **config: int) -> MetricsLog:
    return MetricsLog(RunFolder(folder), OneProcess(), RunConfig(**config), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["l1", "kl", "gradient"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_bad_number_is_named_with_its_step(tmp_path, bad, name, accumulation):
    log = history(tmp_path, accumulation=accumulation, batch_size=4)
    for step in range(1, 6):
        for _ in range(accumulation):
            values = {"l1": 0.5, "kl": 0.1, "gradient": 1.0} | ({name: bad} if step >= 3 else {})
            terms = {key: torch.tensor(value) for key, value in values.items()}
            log.keep(terms)
    with pytest.raises(DivergedError, match=f"{name} was not a finite number at step 3; there is no checkpoint yet"):
        log.read(5, lr=0.1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_line_of_the_log_is_the_mean_since_the_one_before(tmp_path):
    log = history(tmp_path, accumulation=2, batch_size=4)
    for value in (1.0, 2.0, 3.0, 6.0):
        gradient = {"gradient": torch.tensor(2 * value)} if value in (2.0, 6.0) else {}
        log.keep({"l1": torch.tensor(value)} | gradient)
    log.read(2, lr=0.1)
    (line,) = RunFolder(tmp_path).lines()
    assert line["step"] == 2 and line["images"] == 8 and line["l1"] == 3.0
    assert line["gradient"] == (4 + 12) / 2, "only the last micro-batch of a step has the whole gradient"


def test_a_log_cut_short_by_a_crash_is_read_and_cut_back(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "l1": 1 / step})
    with open(folder.metrics, "a") as file:
        file.write('{"step": 4, "l1": 0.')
    assert [line["step"] for line in folder.lines()] == [1, 2, 3]
    folder.forget_after(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


def test_the_first_signal_raises_the_flag_and_a_later_one_interrupts(monkeypatch):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as flag:
        assert not flag.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_that_a_launcher_passes_on_does_not_tear_the_step_down():
    """The terminal tells every process, and torchrun tells its workers once more a moment later."""
    with catch_signals() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.name == "SIGINT"


def test_half_precision_that_would_silently_be_single_is_refused():
    if torch.cuda.is_available():
        pytest.skip("a GPU does train in float16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16")
    assert resolve_precision("auto") in ("fp32", "bf16") and resolve_precision("bf16") == "bf16"
