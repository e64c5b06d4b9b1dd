"""The precision of a run on this machine's device."""

import pytest
import torch

from ldm.errors import ConfigError
from ldm.training.devices import resolve_precision


def test_half_precision_that_would_silently_be_single_is_refused():
    if torch.cuda.is_available():
        pytest.skip("a GPU does train in float16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16")
    assert resolve_precision("auto") in ("fp32", "bf16") and resolve_precision("bf16") == "bf16"
