"""The run folder: what it says of itself stays true."""

import json
import shutil
from pathlib import Path

import pytest

from ldm.training.run_folder import RunFolder
from tests.support.scripts import Stage


def test_a_finished_run_started_with_fewer_steps_keeps_the_record_of_what_it_did(
    stage_one: Stage, finished_vae, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    outcome = stage_one.run(run, "--run.steps", 4)
    assert outcome.code == 0 and "is finished" in outcome.out, outcome
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("text", ['{"format": 2}', "[]", '{"format": 2, "data": 1, "step": null}'])
@pytest.mark.parametrize("name", ["environment.json", "finished.json"])
def test_a_note_that_lacks_its_entry_is_no_traceback(stage_one: Stage, finished_vae: Path, tmp_path, name, text):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / name).write_text(text)
    outcome = stage_one.run(run, "--run.steps", 8)
    assert outcome.code == 4 and f"{name} is damaged" in outcome.err and "Traceback" not in outcome.err, outcome


def test_a_log_cut_short_by_a_crash_is_read_and_cut_back(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "l1": 1 / step})
    with open(folder.metrics, "a") as file:
        file.write('{"step": 4, "l1": 0.')
    assert [line["step"] for line in folder.lines()] == [1, 2, 3]
    folder.forget_after(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]
