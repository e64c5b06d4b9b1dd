"""Expected failures: an exit code each, one line, never a traceback; everything else is a bug and looks like one."""

import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm import errors
from ldm.errors import (
    CheckpointError,
    CodecError,
    ConfigError,
    DataError,
    DivergedError,
    LDMError,
    RequestError,
    StopRequested,
)
from ldm.terminal import exit_code_of
from tests.support.scripts import Stage

CODES = {
    LDMError: 1,
    ConfigError: 2,
    DataError: 3,
    CodecError: 3,
    CheckpointError: 4,
    DivergedError: 5,
    StopRequested: 75,
}


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def main(arguments: list[str]) -> None:
        raise error

    return main


def test_the_table_of_codes_has_every_failure_there_is() -> None:
    there = {thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, LDMError)}
    assert there - {RequestError} == set(CODES)  # a RequestError is a ConfigError that knows the argument
    assert exit_code_of(raising(RequestError("num", "0 must be at least 1")), []) == CODES[ConfigError]
    assert all(failure.__doc__ for failure in there)


@pytest.mark.parametrize("failure", CODES)
def test_a_failure_is_its_exit_code_and_one_line(failure: type[LDMError], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(failure("the file x is\n  two lines long")), []) == CODES[failure]
    assert capsys.readouterr() == ("", "error: the file x is two lines long\n")


def test_a_failure_that_another_process_reported_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError("no images")
    error.was_reported = True
    assert exit_code_of(raising(error), []) == 3
    assert capsys.readouterr() == ("", "")
    assert not DataError("another").was_reported


def test_success_is_zero_and_gets_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[list[str]] = []
    assert exit_code_of(given.append, ["--num", "3"]) == 0
    assert given == [["--num", "3"]]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_exits_4_and_names_the_file(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(OSError(number, "No space left on device", "/runs/a/metrics.jsonl")), []) == 4
    said = capsys.readouterr().err
    assert "full" in said and "/runs/a/metrics.jsonl" in said and said.count("\n") == 1
    assert exit_code_of(raising(OSError(number, "No space left on device")), []) == 4
    assert "None" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is the disk that is always full")
def test_a_disk_that_is_really_full_is_recognized(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"1")

    assert exit_code_of(main, []) == 4
    assert "full" in capsys.readouterr().err


@pytest.mark.parametrize("bug", [ValueError("x"), OSError(errno.EIO, "Input/output error")])
def test_a_bug_keeps_its_traceback(bug: BaseException) -> None:
    with pytest.raises(type(bug)):
        exit_code_of(raising(bug), [])


def test_ctrl_c_outside_the_training_loop_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(KeyboardInterrupt()), []) == 75
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("messages", [("x", "y", "--num 3 is wrong", "--seed is wrong: use 4")])
def test_messages_survive_word_for_word(messages: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for message in messages:
        exit_code_of(raising(ConfigError(message)), [])
        assert capsys.readouterr().err == f"error: {message}\n"


# The same through the scripts, with what a person would do wrong.

WRONG_SETTINGS = {
    ("--run.stpes", 5): (2, "did you mean --run.steps?"),
    ("--run.steps", "many"): (2, "--run.steps is many; expected a whole number"),
    ("--run.batch-size", 10_000): (2, "run.batch_size 10000"),
    ("--run.accumulation", 3): (2, "not divisible by 3"),
}


@pytest.mark.parametrize("arguments", WRONG_SETTINGS)
def test_a_wrong_setting_is_one_line(stage: Stage, tmp_path: Path, arguments: tuple[object, ...]) -> None:
    code, says = WRONG_SETTINGS[arguments]
    outcome = stage.run(tmp_path / "run", *arguments)
    assert outcome.code == code, outcome
    assert says in only_line(outcome.err)


def test_missing_data_exit_3(stage: Stage, tmp_path: Path) -> None:
    outcome = stage.run(tmp_path / "run", "--data.kind", "folder", "--data.path", tmp_path / "nowhere")
    assert outcome.code == 3, outcome
    assert str(tmp_path / "nowhere") in only_line(outcome.err)


@pytest.mark.parametrize("made", ["nothing", "an empty folder", "a folder of something else"])
def test_a_missing_autoencoder_is_one_line(stage_two: Stage, shapes_folder: Path, tmp_path: Path, made: str) -> None:
    """The data are given, so that nothing else is missing."""
    source = tmp_path / "vae"
    if made != "nothing":
        source.mkdir()
    if made == "a folder of something else":
        (source / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    config, _, _ = stage_two.arguments
    data = ("--data.kind", "folder", "--data.path", shapes_folder, "--data.size", 16)
    outcome = Stage("train_diffusion", (config, "--autoencoder", source)).run(tmp_path / "run", *data)
    assert outcome.code == 4, outcome
    assert str(source) in only_line(outcome.err)


def test_an_out_that_is_a_file_is_one_line(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    outcome = stage.run(tmp_path / "run")
    assert outcome.code == 2, outcome
    assert f"--out {tmp_path / 'run'}" in only_line(outcome.err)


def only_line(said: str) -> str:
    """The one error on stderr; progress bars may stand before it, a traceback may not."""
    assert "Traceback" not in said, said
    lines = [line for line in re.split(r"[\r\n]", said) if line.startswith("error: ")]
    assert len(lines) == 1 and said.rstrip("\n").endswith(lines[0]), said
    return lines[0]


def test_a_gpu_out_of_memory_is_one_line_with_a_way_out(capfd) -> None:
    import torch

    def main(_: list[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    assert exit_code_of(main, []) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "run.batch_size" in err


def test_any_other_runtime_error_is_a_bug_and_shows_itself() -> None:
    def main(_: list[str]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        exit_code_of(main, [])


def test_an_interrupt_in_the_middle_of_a_librarys_own_work_is_no_traceback(capsys):
    """A signal may come where a lock is taken; its release then raises an error of another kind."""

    def main(_: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    assert exit_code_of(main, []) == StopRequested.exit_code
    assert capsys.readouterr().err.startswith("error: stopped at once")
