"""A model of several conditions: trained, resumed, exported, and asked for by flags, in Python and as a pipeline."""

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
from ldm.editing.image_to_image import image_to_image
from ldm.pipeline import LatentDiffusion
from ldm.randomness import StepRandom
from ldm.shapes import to_float
from tests.support.conditioned_runs import CONFIG, conditioned_stage
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, ran, weights

ASKED = {"labels": "cat", "prompt": ["a red cat", "a blue dog"], "conditions": {"tone": "dark", "angle": [0, 90]}}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return conditioned_stage(tmp_path_factory.mktemp("conditioned"))


@pytest.fixture(scope="module")
def run(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    outcome = stage.run(out)
    assert outcome.code == 0, outcome.err
    found = " ".join(outcome.out.split())
    assert "tone: 2 classes (dark 6, light 6); angle: numbers from 0 to 330, period 360" in found
    assert "text: 4 distinct captions" in found and "text: 4 captions of 3.0 tokens on average" in found
    return out


def test_a_text_encoder_out_of_reach_was_named_once_all_images_were_decoded(tmp_path: Path) -> None:
    """Here there are none to decode: what is wrong with the encoder is said all the same."""
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(data=tmp_path / "no images", words=tmp_path / "no words"))
    outcome = ran("train_diffusion", file, "--out", tmp_path / "run")
    assert outcome.code == 2 and f"the text encoder {tmp_path / 'no words'}" in outcome.err, outcome
    assert outcome.err.count("\n") == 1


def test_a_cache_among_the_images_was_refused_once_captions_lay_there(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    outcome = stage.run(tmp_path / "run", "--cache", tmp_path / "photos")
    assert outcome.code == 2 and "photos holds a.png" in outcome.err, outcome
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


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


def test_every_way_to_draw_takes_every_condition(run: Path, tmp_path: Path) -> None:
    """An image edited by prompts, in Python, by flags and as a pipeline; ways between prompts, and between angles."""
    Image.new("RGB", (8, 8), (200, 80, 0)).save(tmp_path / "photo.png")
    model, asked = LatentDiffusion.load(run), {"prompt": ["a red cat", "a blue dog"], "conditions": {"tone": "dark"}}
    images = to_float(
        torch.from_numpy(np.array(Image.open(tmp_path / "photo.png"))).permute(2, 0, 1).expand(2, 3, 8, 8)
    )
    plan = model.plan(steps=2, strength=0.5, guidance={"text": 3.0})
    expected = image_to_image(model, images, model.prompts.request(**asked), plan)
    pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    edit = {"image": Image.open(tmp_path / "photo.png"), "strength": 0.5, "guidance_scale": {"text": 3.0}}
    piped = pipe(**asked, **edit, num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(torch.as_tensor(piped), expected / 2 + 0.5, rtol=0, atol=1e-4)
    prompts = ("--prompt", "a red cat", "--prompt", "a blue dog", "--tone", "dark", "--guidance", "text=3")
    drawn(run, tmp_path / "edited", "--image", tmp_path / "photo.png", "--strength", 0.5, *prompts)
    files = sorted((tmp_path / "edited").glob("*.png"))
    assert [file.name for file in files] == ["00000-a red cat.png", "00001-a blue dog.png"]
    for file, image in zip(files, expected, strict=True):
        assert (pixels(file) / 127.5 - 1 - image).abs().max() < 0.01
    for ends in (("prompt:a red cat", "prompt:a blue dog"), ("angle:0", "angle:90"), ("class:cat", "text:a blue dog")):
        drawn(run, tmp_path / f"way{ends[0]}", "--interpolate", *ends, "--num", 3, "--tone", "dark")
    way = sorted((tmp_path / "wayprompt:a red cat").glob("*.png"))
    for place, prompt in ((0, "a red cat"), (2, "a blue dog")):
        sample = model.sample(numbers=[0], prompt=prompt, conditions={"tone": "dark"}, steps=2)[0]
        assert (pixels(way[place]) / 127.5 - 1 - sample).abs().max() < 0.01
    drawn(run, tmp_path / "turned", "--angle", "0,90,180", "--num", 3, "--tone", "light")
    assert [file.name for file in sorted((tmp_path / "turned").iterdir())] == [
        "00000-0.png",
        "00001-90.png",
        "00002-180.png",
    ]


def test_a_picture_with_conditions_is_drawn_again_and_other_conditions_replace_its_own(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog")
    asked = (
        "--prompts",
        tmp_path / "prompts.txt",
        "--labels",
        "cat",
        "--angle",
        "0,90",
        "--guidance",
        "text=3,label=2",
    )
    drawn(run, tmp_path / "first.png", *asked, "--num", 2)
    like = ("sample", "--like", tmp_path / "first.png", "--out")
    assert ran(*like, tmp_path / "again.png").code == 0
    assert pixels(tmp_path / "again.png").equal(pixels(tmp_path / "first.png"))
    other = ("--prompt", "a blue cat", "--label", "dog", "--tone", "light")
    outcome = ran(*like, tmp_path / "other.png", *other)
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "other.png") as picture:
        found = picture.text  # type: ignore[attr-defined]
    assert found["condition of label"] == "dog" and found["prompt"] == '["a blue cat"]' and found["steps"] == "2"
    assert found["condition of angle"] == "0,90" and not found.keys() & {"labels", "prompts"}
    drawn(run, tmp_path / "direct.png", *asked[4:], *other, "--num", 2)
    assert pixels(tmp_path / "direct.png").equal(pixels(tmp_path / "other.png"))
    (tmp_path / "prompts.txt").write_text("a blue dog")
    outcome = ran(*like, tmp_path / "again.png")
    assert outcome.code == 2 and "which is not what it was then" in outcome.err


def drawn(run: Path, out: Path, *arguments: object) -> None:
    outcome = ran("sample", run, "--out", out, "--steps", 2, "--device", "cpu", *arguments)
    assert outcome.code == 0, outcome.err


def pixels(file: Path) -> torch.Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tone", "gray"), "--tone gray is not a class of this model: dark, light"),
        (("--angle", "north"), "--angle 'north' is not a number"),
        (("--prompt", "zebra"), "--prompt 'zebra' has no word that the text encoder words knows"),
        (("--guidance", "size=2"), "--guidance size is no condition of this model"),
        (("--guidance", "text=x"), "--guidance: text=x is neither a number"),
        (("--prompt", "a cat", "--text", "a dog"), "--prompt and text are the same condition: give one of them"),
        (
            ("--interpolate", "size:3", "1"),
            "a condition of this model (class:NAME of cat, dog; label:VALUE; tone:VALUE; angle:VAL",
        ),
        (("--interpolate", "angle:north", "1"), "--angle 'north' is not a number"),
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
