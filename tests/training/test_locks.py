"""Locks, also on a disk that has none, and a package that needs nothing that only Unix has."""

import errno
import fcntl
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from ldm.training import locks
from tests.support.scripts import Stage, forked


def test_a_lock_is_held_once_and_free_again(tmp_path: Path) -> None:
    said: list[str] = []
    first = locks.acquire(tmp_path / ".lock", wait=False, warn=said.append)
    with pytest.raises(Timeout):
        locks.acquire(tmp_path / ".lock", wait=False, warn=said.append)
    first.release()
    locks.acquire(tmp_path / ".lock", wait=False, warn=said.append).release()
    assert not said


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_a_disk_that_cannot_lock_could_hold_no_run(
    number: int, stage_two: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both locks of a run of stage two, on its folder and on the cache: one line for each, and on it goes."""

    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    if number != errno.ENOSYS:  # one whole run is enough
        said: list[str] = []
        locks.acquire(tmp_path / ".lock", wait=True, warn=said.append).release()
        assert len(said) == 1 and "cannot be locked" in said[0]
        return
    outcome = stage_two.run(tmp_path / "run", "--run.steps", 1)
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome
    assert outcome.out.count(f"{tmp_path / 'run'} cannot be locked") == 1
    assert outcome.out.count(f"{tmp_path / 'run' / 'latents'} cannot be locked") == 1


def test_the_package_could_not_be_imported_on_windows() -> None:
    """Every module again, in a child that has neither fcntl nor resource nor SIGHUP, as there."""

    def action() -> int:
        ours = [name for name in sys.modules if name.split(".")[0] == "ldm"]
        names = [*ours, "train_vae", "train_diffusion", "sample"]
        for name in ours:
            del sys.modules[name]
        for name in ("fcntl", "resource"):
            sys.modules[name] = None  # type: ignore[assignment]
        del signal.SIGHUP  # type: ignore[misc]
        for name in names:
            importlib.import_module(name)
        errors = importlib.import_module("ldm.errors")
        return 0 if errors.stopping_signals() == [signal.SIGINT, signal.SIGTERM] else 1

    for name in ("ldm.export.finalize", "ldm.latents", "ldm.cli.evaluate", "ldm.training.run"):
        importlib.import_module(name)
    outcome = forked(action)[1]()
    assert outcome.code == 0, outcome
