"""Flags of conditions: which are suggested for one that is misspelled, and texts that look like files."""

import json
from pathlib import Path

import pytest

import sample
from ldm.cli.sample_settings import input_files
from ldm.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What the command line reads of a run: the conditions of its model."""
    (tmp_path / "run" / "unet").mkdir(parents=True)
    schema = {"attributes": [{"name": "tone", "kind": "class"}]}
    (tmp_path / "run" / "unet" / "config.json").write_text(json.dumps({"schema": schema}))
    return tmp_path / "run"


def test_a_misspelled_flag_of_a_condition_was_not_suggested(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ton is not understood; did you mean --tone\?$"):
        sample.parsed([str(run), "--out", "grid.png", "--ton", "dark"])


def test_a_flag_of_a_run_that_is_not_there_was_called_misspelled_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tone is not understood; .* known from a finished run, and none is named"):
        sample.parsed([str(tmp_path / "missing"), "--out", "grid.png", "--tone", "dark"])


def test_a_prompt_that_is_longer_than_the_name_of_a_file_may_be_ended_in_a_traceback(run: Path) -> None:
    long = "prompt:" + 300 * "a"
    options = sample.parsed([str(run), "--out", "grid.png", "--interpolate", long, "prompt:b"])
    assert input_files(options) == []
