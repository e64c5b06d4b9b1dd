"""A checkpoint is whole or it is named, whatever happens to the process, the disk or the bytes."""

import errno
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm import checkpoint
from ldm.checkpoint import JSON, _fingerprint, _manifest, newest, prune, save, steps, to_keep
from ldm.errors import CheckpointError, StopRequested

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
DTYPES += [torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2]


def contents(step: int) -> dict[str, dict[str, Tensor]]:
    """Small tensors that say which step they are of."""
    return {
        "model": {"weight": torch.full((2, 3), float(step)), "scale": torch.tensor(step)},
        "ema": {"weight": torch.full((4,), step + 0.5, dtype=torch.bfloat16)},
    }


def save_step(folder: Path, step: int, version: int | None = None) -> Path:
    version = step if version is None else version
    return save(folder, step, contents(version), {"version": version})


def silent(line: str) -> None:
    pytest.fail(f"a warning about whole checkpoints: {line}")


def version_of(found: checkpoint.Checkpoint | None) -> int:
    """Which version was saved, after a look at all of it."""
    assert found is not None
    version = found.state["version"]
    assert same(found.tensors, contents(version))
    return int(version)


def bits(tensor: Tensor) -> list[int]:
    return list(tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist())


def same(loaded: dict[str, dict[str, Tensor]], saved: dict[str, dict[str, Tensor]]) -> bool:
    """Equal files, names, dtypes, shapes and bits."""

    def content(tensors: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        return {
            file: {name: (tensor.dtype, tensor.shape, bits(tensor)) for name, tensor in entry.items()}
            for file, entry in tensors.items()
        }

    return content(loaded) == content(saved)


# What was saved is what is loaded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensor = raw > 127 if dtype == torch.bool else raw.view(dtype)
    half = {"all": tensor, "one": tensor[0], "none": tensor[:0], "strided": tensor[::2], "late": tensor[1:]}
    tensors = {"model": half | {"matrix": tensor.reshape(2, -1).T, "wide": tensor[:1].expand(5)}}
    found = checkpoint.load(save(tmp_path, 1, tensors, {}))
    assert same(found.tensors, tensors)
    assert found.tensors["model"]["one"].shape == ()


def test_parameters_conjugates_and_empty_files_come_back(tmp_path: Path) -> None:
    conjugate = torch.complex(torch.arange(3.0), torch.ones(3)).conj()
    tensors = {"model": {"p": torch.nn.Parameter(torch.ones(2)), "c": conjugate, "i": conjugate.imag}, "nothing": {}}
    found = checkpoint.load(save(tmp_path, 1, tensors, {}))
    assert torch.equal(found.tensors["model"]["c"], conjugate.resolve_conj())
    assert torch.equal(found.tensors["model"]["i"], -torch.ones(3))
    assert torch.equal(found.tensors["model"]["p"], torch.ones(2))
    assert found.tensors["nothing"] == {}


def test_the_state_comes_back_with_every_digit(tmp_path: Path) -> None:
    nested: JSON = {"none": None, "yes": True, "names": ["ä", "b"]}
    state: dict[str, JSON] = {"step": 2**60, "lr": 0.1 + 0.2, "loss": 5e-324, "nested": nested}
    found = checkpoint.load(save(tmp_path / "not" / "there" / "yet", 123456789, contents(1), state))
    assert found.state == state
    assert found.step == 123456789
    assert found.path.name == "step-123456789"


def test_loaded_tensors_can_be_changed_without_touching_one_another(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    tensors = checkpoint.load(save(tmp_path, 1, {"model": {"a": shared, "b": shared}}, {})).tensors["model"]
    tensors["a"] += 1
    assert tensors["b"].sum() == 0


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\n", "a\\b"])
def test_a_name_that_is_no_plain_file_name_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        save(tmp_path / "checkpoints", 1, {name: {}}, {})
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "checkpoints"]


# Crashes and full disks, at every file call


class Crash(BaseException):
    """The process is gone: nobody catches this."""


class Disk:
    """Stands between the code and the file system, and fails at the n-th call that matters.

    A crash is the end: no later call does anything, a file being written is half there, and a file that was not synced
    loses its second half, as after a power cut. A full disk fails once, or from then on for whatever needs space.
    """

    def __init__(self, failure: str, at: int) -> None:
        self.failure, self.at, self.calls = failure, at, 0
        self.unsynced: set[int] = set()  # files whose content, and folders whose names, may not be on the disk

    def fails(self, needs_space: bool) -> bool:
        self.calls += 1
        if self.failure == "full once":
            return self.calls == self.at
        return self.calls >= self.at and (needs_space or self.failure == "crash")

    def wrap(self, call: Callable[..., Any], needs_space: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self.fails(needs_space):
                raise self.error()
            result = call(*arguments, **options)
            if needs_space:
                self.unsynced.add(os.stat(Path(arguments[0]).parent).st_ino)
            return result

        return wrapped

    def error(self) -> BaseException:
        return Crash() if self.failure == "crash" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_bytes(self, path: Path, data: bytes) -> None:
        failing = self.fails(needs_space=True)
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2] if failing else data)
        self.unsynced |= {path.stat().st_ino, path.parent.stat().st_ino}
        if failing:
            raise self.error()

    def fsync(self, descriptor: int) -> None:
        if self.fails(needs_space=True):
            raise self.error()
        self.unsynced.discard(os.fstat(descriptor).st_ino)

    def lose_power(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, path.stat().st_size // 2)

    def run(self, action: Callable[[], object], folder: Path) -> BaseException | None:
        """What became of the action: None if it came through."""
        with pytest.MonkeyPatch.context() as patch:
            for name, needs_space in {
                "open": 0,
                "unlink": 0,
                "rmdir": 0,
                "mkdir": 1,
                "rename": 1,
                "replace": 1,
            }.items():
                patch.setattr(os, name, self.wrap(getattr(os, name), bool(needs_space)))
            patch.setattr(os, "fsync", self.fsync)
            patch.setattr(Path, "write_bytes", lambda path, data: self.write_bytes(path, data))
            try:
                action()
            except (Crash, OSError, CheckpointError) as error:
                outcome: BaseException | None = error
            else:
                outcome = None
        if isinstance(outcome, Crash):
            self.lose_power(folder)
        return outcome


def failures(
    failure: str, prepare: Callable[[], object], action: Callable[[], object], folder: Path
) -> Iterator[BaseException]:
    """Run the action, failing at its first call, its second, ... until it comes through; yield after each failure."""
    for at in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prepare()
        disk = Disk(failure, at)
        outcome = disk.run(action, folder)
        if disk.calls < at:
            assert at > 8, "the calls of the action were not seen"
            return
        if outcome is not None:  # to make a folder that is already there may fail: it does not matter
            yield outcome


FAILURES = ["crash", "full once", "stays full"]


def a_new_step(folder: Path) -> None:
    save_step(folder, 1)


def the_same_step(folder: Path) -> None:
    save_step(folder, 2, version=1)


def a_damaged_step(folder: Path) -> None:
    save_step(folder, 1)
    (save_step(folder, 2) / "ema.safetensors").write_bytes(b"noise")


def what_crashes_left(folder: Path) -> None:
    save_step(folder, 1)
    shutil.copytree(folder / "step-00000001", folder / "step-00000002.partial")
    (folder / "step-00000001").rename(folder / "step-00000001.replaced")


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("before", [a_new_step, the_same_step, a_damaged_step, what_crashes_left])
def test_a_save_that_fails_at_any_file_call_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, before: Callable[[Path], None], failure: str
) -> None:
    folder = tmp_path / "checkpoints"
    outcomes = set()
    for error in failures(failure, lambda: before(folder), lambda: save_step(folder, 2), folder):
        lines: list[str] = []
        version = version_of(newest(folder, lines.append))
        outcomes.add(version)
        assert version in (1, 2)
        assert not lines or before is a_damaged_step
        if failure != "crash":
            assert isinstance(error, CheckpointError)
            assert str(error) == f"could not write {folder / 'step-00000002'}: the disk is full"
            assert failure == "full once" or not list(folder.glob("*.partial"))
        save_step(folder, 3)
        assert version_of(newest(folder, silent)) == 3
        assert {path.suffix for path in folder.iterdir()} == {""}
    assert outcomes == {1, 2}


def test_a_first_save_that_crashes_leaves_nothing_or_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for _ in failures("crash", lambda: None, lambda: save_step(folder, 1), folder):
        found = newest(folder, silent)
        assert found is None or version_of(found) == 1


@pytest.mark.parametrize("what", ["save", "the same step again", "file", "folder", "prune"])
def test_what_has_returned_is_on_the_disk_with_every_file_and_every_name(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "checkpoints"
    if what != "save":
        save_step(folder, 1)
        save_step(folder, 2)
    actions: dict[str, Callable[[], object]] = {
        "save": lambda: save_step(folder, 2),
        "the same step again": lambda: save_step(folder, 2),
        "file": lambda: checkpoint.write_atomically(tmp_path / "config.yaml", b"seed: 0"),
        "folder": lambda: checkpoint.replace_folder(folder / "step-00000002", folder / "vae"),
        "prune": lambda: prune(folder, keep=()),
    }
    disk = Disk("crash", at=10**9)
    assert disk.run(actions[what], tmp_path) is None
    assert disk.calls > 3
    assert [path for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino in disk.unsynced] == []


@pytest.mark.parametrize("failure", FAILURES)
def test_a_file_written_atomically_holds_the_old_or_the_new(tmp_path: Path, failure: str) -> None:
    path = tmp_path / "config.yaml"

    def both() -> None:
        checkpoint.write_atomically(path, b"new" * 100)
        checkpoint.write_atomically(tmp_path / "other.yaml", b"new")

    seen = set()
    for error in failures(failure, lambda: path.write_bytes(b"old" * 100), both, tmp_path):
        seen.add(path.read_bytes())
        assert failure == "crash" or str(error).startswith(f"could not write {tmp_path}")
        assert failure == "crash" or not list(tmp_path.glob("*.partial"))
    assert seen == {b"old" * 100, b"new" * 100}


def test_a_device_that_is_really_full_is_reported_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"could not write .*config\.yaml: the disk is full"):
        checkpoint.write_atomically(tmp_path / "config.yaml", b"seed: 0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", FAILURES)
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, failure: str) -> None:
    new, final = tmp_path / "vae.new", tmp_path / "vae"

    def prepare() -> None:
        for folder, text in ((final, b"old" * 100), (new, b"new" * 100)):
            (folder / "decoder").mkdir(parents=True)
            (folder / "decoder" / "weights").write_bytes(text)

    def write_and_replace() -> None:
        (new / "decoder" / "weights").write_bytes(b"new" * 100)
        checkpoint.replace_folder(new, final)

    seen = set()
    for error in failures(failure, prepare, write_and_replace, tmp_path):
        aside = tmp_path / "vae.replaced"
        weights = (final if final.exists() else aside) / "decoder" / "weights"
        seen.add(weights.read_bytes())
        assert not isinstance(error, OSError) or new.exists(), "an OSError can only be from before the exchange"
        assert final.exists() or failure != "full once"
        (tmp_path / "again").mkdir()
        checkpoint.replace_folder(tmp_path / "again", final)
        assert list(final.iterdir()) == []
        assert not aside.exists()
    assert seen == {b"old" * 100, b"new" * 100}


def test_a_crash_while_pruning_leaves_no_half_checkpoint_with_a_good_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def prepare() -> None:
        for step in (1, 2, 3):
            save_step(folder, step)

    for _ in failures("crash", prepare, lambda: prune(folder, keep=[2]), folder):
        assert {2, 3} <= set(steps(folder))
        for step in steps(folder):
            assert checkpoint.load(folder / f"step-{step:08d}").step == step
        prune(folder, keep=[2])
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]


def test_twenty_kills_in_the_middle_of_saving_lose_nothing(tmp_path: Path) -> None:
    moments = random.Random(0)
    last = 0
    for _ in range(20):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            for step in itertools.count(last + 1):
                save_step(tmp_path, step)
                prune(tmp_path, keep=to_keep(steps(tmp_path), total=10**6))
                os.write(writable, step.to_bytes(8, "big"))
        os.close(writable)
        confirmed = int.from_bytes(os.read(readable, 8), "big")
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while record := os.read(readable, 8):
            confirmed = int.from_bytes(record, "big")
        os.close(readable)
        last = version_of(newest(tmp_path, silent))
        assert last >= confirmed
        assert confirmed > 0


# Damage


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole checkpoints of steps 1 and 2; a test that damages one repairs it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_step(folder, 1)
    save_step(folder, 2)
    return folder


def assert_damage_is_named(folder: Path, file: Path, damaged: bytes | None) -> None:
    """With these bytes in the file, or without it, the older checkpoint is used and the file is named."""
    whole = file.read_bytes()
    assert damaged != whole
    file.unlink() if damaged is None else file.write_bytes(damaged)
    lines: list[str] = []
    found = newest(folder, lines.append)
    file.write_bytes(whole)
    assert found is not None and found.step == 1, f"unnoticed: {file.name}: {damaged!r}"
    assert len(lines) == 1 and lines[0].startswith(f"{file} is damaged: "), lines
    assert lines[0].endswith(f"; using {folder / 'step-00000001'} instead") and "\n" not in lines[0]


def test_a_thousand_random_damages_are_all_noticed_and_named(two: Path) -> None:
    chance = random.Random(0)
    files = sorted((two / "step-00000002").iterdir())
    assert len(files) == 4
    for _ in range(1200):
        file = chance.choice(files)
        whole = file.read_bytes()
        position = chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chance.randrange(8)
        appended = whole + chance.choice([b"\n", b" ", b"\0", b"{}", chance.randbytes(9)])
        assert_damage_is_named(two, file, chance.choice([bytes(flipped), whole[:position], appended, None]))
    assert version_of(newest(two, silent)) == 2


def test_every_single_byte_of_a_manifest_counts(two: Path) -> None:
    file = two / "step-00000002" / "manifest.json"
    whole = file.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        assert_damage_is_named(two, file, bytes(flipped))


@pytest.mark.parametrize("error", [MemoryError(), StopRequested("stopped")], ids=repr)
def test_to_run_out_of_memory_or_to_be_stopped_is_not_damage(
    two: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(type(error)):
        newest(two, silent)


def forged(step: int, files: dict[str, bytes]) -> bytes:
    return _manifest(step, {name: _fingerprint(data) for name, data in files.items()})


def test_manifests_that_are_not_ours_are_refused(two: Path) -> None:
    path = two / "step-00000002"
    files = {name: (path / name).read_bytes() for name in ("state.json", "model.safetensors", "ema.safetensors")}
    own = (path / "manifest.json").read_bytes()
    assert forged(2, files) == own
    twice = own.replace(b'"files": {', b'"files": {"state.json": {},')
    assert json.loads(twice) == json.loads(own)
    strangers = [
        forged(1, files),
        own.replace(b'"format": 1', b'"format": 2'),
        twice,
        b"",
        b"[]",
        b"null",
        b"[" * 10**5,
    ]
    for name in ("../step-00000001/model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.pt", ".."):
        strangers.append(forged(2, files | {name: b""}))
    strangers.append(forged(2, {"model.safetensors": files["model.safetensors"]}))
    for stranger in strangers:
        assert_damage_is_named(two, path / "manifest.json", stranger)


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1)
    for name, message in (("step-00000007", "not a manifest of step 7"), ("best", "is not a checkpoint")):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(path.rename(tmp_path / name))
        (tmp_path / name).rename(path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: it is missing"):
        checkpoint.load(tmp_path / "step-00000009")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("with_a_matching_manifest", [False, True])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_runs(
    tmp_path: Path, file: str, with_a_matching_manifest: bool
) -> None:
    path = save_step(tmp_path, 1)
    torch.save(Payload(tmp_path / "ran"), tmp_path / "payload.pt")
    for payload in (pickle.dumps(Payload(tmp_path / "ran")), (tmp_path / "payload.pt").read_bytes()):
        (path / file).write_bytes(payload)
        if with_a_matching_manifest:
            files = {name: (path / name).read_bytes() for name in ("state.json", "model.safetensors")}
            (path / "manifest.json").write_bytes(forged(1, files))
        with pytest.raises(CheckpointError, match=file):
            checkpoint.load(path)
        assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the payload of this test does not work"


def test_a_half_written_newer_folder_is_not_preferred(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    shutil.copytree(save_step(tmp_path, 2), tmp_path / "step-00000003.partial")
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000004")
    (tmp_path / "step-00000004" / "manifest.json").unlink()
    lines: list[str] = []
    assert version_of(newest(tmp_path, lines.append)) == 2
    assert len(lines) == 1 and "step-00000004/manifest.json is damaged: it is missing" in lines[0]


def test_no_checkpoints_are_none_but_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere", silent) is None
    assert newest(tmp_path, silent) is None
    (save_step(tmp_path, 1) / "state.json").unlink()
    (save_step(tmp_path, 2) / "ema.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*ema\.safetensors is damaged.*state\.json is damaged"
    ):
        newest(tmp_path, silent)


# Which ones stay


def test_steps_are_numbers_in_order_and_other_names_do_not_count(tmp_path: Path) -> None:
    assert steps(tmp_path / "nowhere") == []
    for name in ("step-00000010", "step-00000009", "step-100000000", "step-00000011.partial", "step-12", "best"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [9, 10, 100000000]


def test_pruning_removes_all_but_the_kept_and_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_step(tmp_path, step)
    prune(tmp_path, keep={2, 77})
    assert steps(tmp_path) == [2, 4]
    prune(tmp_path, keep=())
    assert steps(tmp_path) == [4]
    prune(tmp_path, keep=())
    assert version_of(newest(tmp_path, silent)) == 4


def test_the_newest_two_and_the_first_after_a_sixteenth_and_an_eighth_are_kept() -> None:
    assert to_keep([], total=1600) == set()
    assert to_keep([50], total=1600) == {50}
    assert to_keep([90, 110, 190, 210, 300, 400, 500], total=1600) == {110, 210, 400, 500}
    assert to_keep([100, 200, 300, 400], total=1600) == {100, 200, 300, 400}
    assert to_keep([101, 201, 300, 400, 500], total=1601, newest=1) == {101, 201, 500}
    assert to_keep([300, 100, 500, 200], total=1600, newest=0) == {100, 200}


def test_pruning_as_one_goes_ends_with_what_pruning_at_the_end_would_keep() -> None:
    kept: set[int] = set()
    for step in range(7, 1600, 7):
        kept = to_keep({*kept, step}, total=1600)
    assert kept == to_keep(range(7, 1600, 7), total=1600) == {105, 203, 1589, 1596}
