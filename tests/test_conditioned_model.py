"""A model of several conditions: trained, resumed, exported, and asked for by flags, in Python and as a pipeline."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ldm.batch import NULL, Condition
from ldm.diffusion.losses.config import DenoisingObjectiveConfig
from ldm.diffusion.objective import drop_condition
from ldm.pipeline import LatentDiffusion
from ldm.randomness import StepRandom
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, ran, weights
from tests.support.word_vectors import word_vectors

CONFIG = """
data:
  kind: folder
  path: {data}
  size: 8
  conditions:
    label: {{kind: class}}
    tone: {{kind: class}}
    angle: {{kind: number, period: 360}}
    text: {{kind: text, encoder: {words}, length: 4, layers: 1, channels: 8}}
denoiser:
  network: {{kind: unet, widths: [4, 8], blocks: 1, attention: [1], head_channels: 4}}
optim: {{lr: 1e-2, warmup: 0}}
run: {{steps: 2, batch_size: 4, checkpoint_every: 1, sample_every: 100, snapshots: 0}}
"""
ASKED = {"labels": "cat", "prompt": ["a red cat", "a blue dog"], "conditions": {"tone": "dark", "angle": [0, 90]}}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("conditioned")
    (folder / "data").mkdir()
    lines = []
    for number in range(12):
        kind, color = ("cat", "dog")[number % 2], ("red", "blue")[number % 3 == 0]
        Image.new("RGB", (8, 8), (20 * number, 80, 0)).save(folder / "data" / f"{number}.png")
        row = {"file_name": f"{number}.png", "label": kind, "tone": ("dark", "light")[number // 6]}
        lines.append(json.dumps({**row, "angle": 30 * number, "text": f"a {color} {kind}"}))
    (folder / "data" / "metadata.jsonl").write_text("\n".join(lines))
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(data=folder / "data", words=word_vectors(folder / "words")))
    return Stage("train_diffusion", (file,))


@pytest.fixture(scope="module")
def run(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    outcome = stage.run(out)
    assert outcome.code == 0, outcome.err
    found = " ".join(outcome.out.split())
    assert "tone: 2 classes (dark 6, light 6); angle: numbers from 0 to 330, period 360" in found
    assert "text: 4 distinct captions" in found and "text: 4 captions of 3.0 tokens on average" in found
    return out


def test_a_resumed_run_with_conditions_of_every_kind_has_the_same_weights(run: Path, stage: Stage, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=1)
    outcome = stage.run(tmp_path / "again")
    assert outcome.code == 0 and "resuming from step 1" in outcome.out, outcome.err
    assert weights(tmp_path / "again") == weights(run)
    outcome = stage.run(tmp_path / "again", "--data.conditions", "{tone: {kind: class}}")
    assert outcome.code == 2 and "was started with another data.conditions" in outcome.err


def test_the_pipeline_and_the_flags_of_a_run_ask_for_the_same_as_python(run: Path, tmp_path: Path) -> None:
    given = {"steps": 2, "guidance": {"text": 3.0, "label": 2.0}}
    images = LatentDiffusion.load(run).sample(2, **given, **ASKED)
    pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    piped = pipe(**ASKED, num_inference_steps=2, guidance_scale=given["guidance"], output_type="pt").images
    assert torch.allclose(torch.as_tensor(piped), images / 2 + 0.5, rtol=0, atol=1e-5)
    flags = ("--label", "cat", "--tone", "dark", "--angle", "0,90", "--prompt", "a red cat", "--prompt", "a blue dog")
    settings = ("--num", 2, "--steps", 2, "--guidance", "text=3,label=2")
    outcome = ran("sample", run, "--out", tmp_path / "samples", *settings, *flags)
    assert outcome.code == 0, outcome.err
    files = sorted((tmp_path / "samples").glob("*.png"))
    assert [file.name for file in files] == ["00000-a red cat.png", "00001-a blue dog.png"]
    for file, image in zip(files, images, strict=True):
        drawn = torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)
        assert (drawn / 127.5 - 1 - image).abs().max() < 0.01


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tone", "gray"), "--tone gray is not a class of this model: dark, light"),
        (("--angle", "north"), "--angle 'north' is not a number"),
        (("--prompt", "zebra"), "--prompt 'zebra' has no word that the text encoder words knows"),
        (("--guidance", "size=2"), "--guidance size is no condition of this model"),
        (("--guidance", "text=x"), "--guidance: invalid"),
        (("--prompts", "nowhere.txt"), "--prompts nowhere.txt cannot be read"),
    ],
)
def test_an_impossible_flag_is_a_line(run: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    outcome = ran("sample", run, "--out", tmp_path / "no.png", "--steps", 2, *flags)
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_each_condition_is_left_out_by_itself_and_all_together_the_same_in_any_number_of_parts() -> None:
    total, config = 4000, DenoisingObjectiveConfig(condition_dropout=0.2)
    whole = Condition({"label": torch.zeros(total, dtype=torch.int64), "angle": torch.ones(total)})
    found = drop_condition(config, whole, StepRandom(0, 3, total)).values
    left_out = {"label": found["label"] == NULL, "angle": found["angle"].isnan()}
    counts = Counter(zip(left_out["label"].tolist(), left_out["angle"].tolist(), strict=True))
    alone, both = 0.8 * 0.2 * 0.8, 0.2 + 0.8 * 0.2 * 0.2
    expected: dict[Any, float] = {(True, False): alone, (False, True): alone, (True, True): both}
    for which, share in expected.items():
        assert abs(counts[which] / total - share) < 4 * (share * (1 - share) / total) ** 0.5
    parts = [StepRandom.of_part(0, 3, total=total, parts=2, part=part) for part in (0, 1)]
    halves = [drop_condition(config, whole[range(2000)], part).values for part in parts]
    for name in ("label", "angle"):
        assert torch.cat([half[name] for half in halves]).nan_to_num(-7).equal(found[name].nan_to_num(-7))
