"""Denoisers of every network, kind of condition and weighting: two processes equal one, and resume is bit-exact."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.conditioned_runs import conditioned_stage
from tests.support.runs import in_float64, lose_everything_after, newest_checkpoint, train_alike
from tests.support.scripts import Stage, forked, metrics, script

CONDITIONS = "{label: {kind: class}, angle: {kind: number, period: 360}, size: {kind: number, column: angle}}"
UNET2D = "{kind: unet2d, widths: [4, 8], blocks: 1, attention: [1], head_channels: 4, norm_groups: 2}"
RUNS = {
    "unet, every condition, learned": (
        "{kind: unet, widths: [4, 8], blocks: 1, attention: [1], head_channels: 4, qk_norm: true}",
        ("--objective.weighting.kind", "learned", "--objective.weighting.channels", 8),
    ),
    "dit, every condition, min-snr": (
        "{kind: dit, width: 8, depth: 1, heads: 1, patch: 4}",
        ("--objective.weighting.kind", "min-snr", "--denoiser.parametrization", "eps"),
    ),
    "edm2, numbers, learned": (
        "{kind: edm2, widths: [4, 8], blocks: 1, attention: [1], head_channels: 4}",
        ("--objective.weighting.kind", "learned", "--data.conditions", CONDITIONS),
    ),
    "unet2d, numbers, soft-min-snr": (
        UNET2D,
        ("--objective.weighting.kind", "soft-min-snr", "--data.conditions", CONDITIONS, "--optim.kind", "muon"),
    ),
}
SETTINGS = ("--run.steps", 4, "--run.checkpoint-every", 2, "--run.log-every", 1, "--run.precision", "fp32")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return conditioned_stage(tmp_path_factory.mktemp("conditioned"))


@pytest.mark.parametrize("what", RUNS)
def test_two_processes_equal_one_and_a_restart_is_bit_exact(what: str, stage: Stage, tmp_path: Path) -> None:
    network, flags = RUNS[what]
    config, file = Path(str(stage.arguments[0])).read_text(), tmp_path / "config.yaml"
    file.write_text(re.sub("network: .*", f"network: {network}", config))
    arguments = (file, *SETTINGS, *flags, "--optim.clip", 1e6)
    train_alike(tmp_path, stage.name, *arguments)
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=2)
    outcome = forked(in_float64(script(stage.name, *arguments, "--out", tmp_path / "again")))[1]()
    assert outcome.code == 0 and "resuming from step 2" in outcome.out, outcome
    whole, again = newest_checkpoint(tmp_path / "one").tensors, newest_checkpoint(tmp_path / "again").tensors
    assert whole.keys() == again.keys() and ("uncertainty-model" in whole) == ("learned" in what)
    for file, tensors in whole.items():
        for name, value in tensors.items():
            assert value.equal(again[file][name]), f"{file} {name}"
    assert metrics(tmp_path / "one") == metrics(tmp_path / "again")
