"""Work that processes share comes back in order, whole, or not at all."""

import os
import time

import pytest
from tqdm import tqdm

from ldm.errors import ConfigError, DataError
from ldm.terminal import exit_code_of
from ldm.training.processes import Processes
from tests.support.scripts import forked, together


def working(jobs: int, fails_at: int | None = None):
    """A script that squares numbers and says what came back, and who computed it."""

    def work(job: int) -> tuple[int, int]:
        if job == fails_at:
            raise DataError(f"job {job} cannot be done")
        return job**2, int(os.environ.get("RANK", 0))

    def main(_: list[str]) -> None:
        processes = Processes("cpu")
        results = list(processes.map(jobs, work))
        print([value for value, _ in results], len({rank for _, rank in results}))
        processes.end()

    return lambda: exit_code_of(main, [])


@pytest.mark.parametrize("jobs", [0, 1, 4, 5])
def test_every_process_has_every_result_in_order(jobs):
    expected = str([job**2 for job in range(jobs)])
    assert forked(working(jobs))[1]().out.startswith(expected)
    for outcome in together([working(jobs)] * 2):
        assert outcome.code == 0 and outcome.out.split("]")[0] + "]" == expected, outcome
        assert outcome.out.split()[-1] == str(min(jobs, 2))


def test_the_failure_of_one_ends_all_and_is_said_once():
    outcomes = together([working(5, fails_at=3)] * 2)
    assert [outcome.code for outcome in outcomes] == [3, 3], outcomes
    assert sum(outcome.err.count("error: job 3 cannot be done") for outcome in outcomes) == 1


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="--device abacus cannot be used"):
        Processes("abacus")


def test_the_main_process_goes_first_and_what_it_finds_is_there_for_the_others(tmp_path):
    def main(_: list[str]) -> None:
        processes = Processes("cpu")

        def action() -> str:
            found = (tmp_path / "downloaded").exists()
            time.sleep(0 if processes.rank else 0.5)
            (tmp_path / "downloaded").touch()
            return f"{processes.rank} {found}"

        print(processes.main_first(action))
        processes.end()

    outcomes = together([lambda: exit_code_of(main, [])] * 2)
    assert sorted(outcome.out.strip() for outcome in outcomes) == ["0 False", "1 True"], outcomes


def test_an_error_of_another_process_is_not_glued_to_the_main_ones_progress_bar():
    """The one that has the bar says it, once the bar's line has ended."""

    def main(_: list[str]) -> None:
        processes = Processes("cpu")

        def work(job: int) -> int:
            if job == 3:
                raise DataError("job 3 cannot be done")
            return job

        with tqdm(total=5, disable=not processes.is_main, mininterval=0) as bar:
            for _ in processes.map(5, work):
                bar.update()

    said = [outcome.err for outcome in together([lambda: exit_code_of(main, [])] * 2)]
    assert sorted(map(bool, said)) == [False, True], said
    assert max(said).endswith("\nerror: job 3 cannot be done\n") and "it/s" in max(said)
