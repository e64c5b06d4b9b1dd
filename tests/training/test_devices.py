"""The device of a run, and its precision there."""

import pytest
import torch

from ldm.errors import ConfigError
from ldm.training.devices import choose_device, resolve_precision, trains_on_cpu


def test_half_precision_that_would_silently_be_single_is_refused():
    if torch.cuda.is_available():
        pytest.skip("a GPU does train in float16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16")
    assert resolve_precision("auto") in ("fp32", "bf16") and resolve_precision("bf16") == "bf16"


def test_the_best_device_is_chosen_and_one_that_is_not_here_is_refused():
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").type == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="--device mps cannot be used"):
            choose_device("mps")


@pytest.mark.parametrize(("kind", "expected"), [("mps", True), ("cuda", False), ("xpu", False), (None, True)])
def test_training_on_a_mac_took_a_device_on_which_nobody_has_tested_the_optimizer(monkeypatch, kind, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
    assert trains_on_cpu() == expected
