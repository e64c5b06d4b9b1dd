"""The closed-form checks of `ldm verify`: each in miniature here, and at full size among the slow tests."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import ldm.verify
from ldm.verify.check import Check, at_least, at_most, info, skipped
from ldm.verify.table import CHECKS, run_checks
from ldm.verify.training import reproducible


@cache
def miniature(name: str) -> list[Check]:
    """The values of a check in miniature, measured once; torch's random state and default type stay as they were."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = list(run_checks(name, small=True))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    return found


def failures(name: str, *, small: bool) -> list[str]:
    """The values on the wrong side of their bounds, of a check that has some."""
    checks = miniature(name) if small else list(run_checks(name, small=False))
    assert sum(check.bound is not None for check in checks) > 3
    return [f"{check.name}: {check.value:.4g}, not {check.sense} {check.bound}" for check in checks if check.fails]


@pytest.mark.parametrize("name", CHECKS)
def test_the_miniature_of_each_check_passes(name: str) -> None:
    assert not failures(name, small=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_each_check_passes(name: str) -> None:
    assert not failures(name, small=False)


@pytest.mark.parametrize("name", ["contractive", "samplers", "variational"])
def test_a_check_measures_the_same_every_time_and_leaves_torch_as_it_was(name: str) -> None:
    """To the last bit, with whatever random numbers and whatever default type others have left behind."""
    torch.manual_seed(2)
    again = []
    for check in run_checks(name, small=True):
        assert torch.get_default_dtype() == torch.float32  # between two values too
        again.append(check)
    assert again == miniature(name)


def test_what_a_failing_measurement_changed_is_put_back() -> None:
    with pytest.raises(ZeroDivisionError), reproducible("test"):
        assert torch.zeros(1).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32


def test_every_file_with_checks_is_in_the_table() -> None:
    folder = Path(ldm.verify.__path__[0])
    assert {file.stem for file in folder.glob("*.py") if "\ndef checks(" in file.read_text()} == set(CHECKS)


OF_EACH_KIND = [
    (at_most("a", 1.0, 1), False, "pass"),
    (at_most("a", torch.tensor(1.1, requires_grad=True), 1), True, "FAIL"),
    (at_least("a", 1.0, 1), False, "pass"),
    (at_least("a", 0.9, 1), True, "FAIL"),
    (at_most("a", float("nan"), 1), True, "FAIL"),
    (at_least("a", float("nan"), 1), True, "FAIL"),
    (info("a", 3.0), False, "info"),
    (skipped("a", "needs scikit-learn"), False, "skipped: needs scikit-learn"),
]


@pytest.mark.parametrize(("check", "fails", "verdict"), OF_EACH_KIND)
def test_a_check_fails_on_the_wrong_side_of_its_bound_and_as_not_a_number(
    check: Check, fails: bool, verdict: str
) -> None:
    assert (check.fails, check.verdict) == (fails, verdict)


@pytest.mark.parametrize("name", ["linear", "masked"])
def test_without_scikit_learn_real_digits_are_skipped_and_nothing_fails(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    checks = list(run_checks(name, small=True))
    assert [check.verdict for check in checks if check.reason] == ["skipped: needs scikit-learn"]
    assert not any(check.fails for check in checks)
