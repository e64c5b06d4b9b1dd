"""What `ldm verify` says holds: the miniature of each truth at once, each at full size among the slow tests."""

import sys
from pathlib import Path

import pytest
import torch

import ldm.truths
from ldm.verify.check import Check, at_least, at_most, info, skipped
from ldm.verify.table import CHECKS, run_checks
from ldm.verify.training import reproducible


def failures(name: str, *, small: bool) -> list[str]:
    """The figures on the wrong side of their bounds, of a truth that has some."""
    figures = list(run_checks(name, small=small))
    assert sum(figure.bound is not None for figure in figures) > 3
    return [
        f"{figure.name}: {figure.value:.4g}, not {figure.sense} {figure.bound}" for figure in figures if figure.fails
    ]


@pytest.mark.parametrize("name", CHECKS)
def test_a_miniature_of_each_truth_holds(name: str) -> None:
    assert not failures(name, small=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_each_truth_holds(name: str) -> None:
    assert not failures(name, small=False)


@pytest.mark.parametrize("name", ["contractive", "samplers", "variational"])
def test_a_truth_says_the_same_every_time_and_leaves_torch_as_it_was(name: str) -> None:
    """To the last bit, with whatever random numbers and whatever default type others have left behind."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = list(run_checks(name, small=True))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    torch.manual_seed(2)
    assert list(run_checks(name, small=True)) == once


def test_between_two_figures_torch_is_as_it_was() -> None:
    for _ in run_checks("contractive", small=True):
        assert torch.get_default_dtype() == torch.float32


def test_what_a_failing_measurement_changed_is_put_back() -> None:
    with pytest.raises(ZeroDivisionError), reproducible("test"):
        assert torch.zeros(1).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32


def test_every_file_with_figures_is_in_the_table() -> None:
    folder = Path(ldm.truths.__path__[0])
    assert {file.stem for file in folder.glob("*.py") if "\ndef figures(" in file.read_text()} == set(CHECKS)


OF_EACH_KIND = [
    (at_most("a", 1.0, 1), False, "holds"),
    (at_most("a", torch.tensor(1.1, requires_grad=True), 1), True, "FAILS"),
    (at_least("a", 1.0, 1), False, "holds"),
    (at_least("a", 0.9, 1), True, "FAILS"),
    (at_most("a", float("nan"), 1), True, "FAILS"),
    (at_least("a", float("nan"), 1), True, "FAILS"),
    (info("a", 3.0), False, "told"),
    (skipped("a", "needs scikit-learn"), False, "skipped: needs scikit-learn"),
]


@pytest.mark.parametrize(("figure", "fails", "verdict"), OF_EACH_KIND)
def test_a_figure_fails_on_the_wrong_side_of_its_bound_and_as_not_a_number(
    figure: Check, fails: bool, verdict: str
) -> None:
    assert (figure.fails, figure.verdict) == (fails, verdict)


@pytest.mark.parametrize("name", ["linear", "masked"])
def test_without_scikit_learn_real_digits_are_skipped_and_nothing_fails(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    figures = list(run_checks(name, small=True))
    assert [figure.verdict for figure in figures if figure.reason] == ["skipped: needs scikit-learn"]
    assert not any(figure.fails for figure in figures)
