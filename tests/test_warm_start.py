"""Runs of stage two that start from a finished one, with a learned weighting, and whose EMA is chosen afterwards."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm import checkpoint
from ldm.batch import ClassAttribute, Condition, ConditionSchema, NumberAttribute, TextAttribute
from ldm.diffusion.config import DiTConfig
from ldm.diffusion.losses.config import DenoisingObjectiveConfig
from ldm.diffusion.model import create_denoiser, load_denoiser
from ldm.export.warm_start import WarmStart, start_fingerprint
from ldm.randomness import generator
from tests.support.diffusion_models import diffusion_model
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, metrics, ran, weights

LEARNED = ("--objective.weighting.kind", "learned", "--objective.weighting.channels", 8)
SHORT = ("--run.steps", 2, "--run.checkpoint-every", 1, "--run.snapshots", 0)


@pytest.fixture(scope="module")
def learned(stage_two: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a learned weighting and snapshots."""
    out = tmp_path_factory.mktemp("learned") / "run"
    outcome = stage_two.run(out, *LEARNED)
    assert outcome.code == 0, outcome.err
    return out


def test_a_learned_weighting_is_trained_logged_saved_and_not_exported(learned: Path) -> None:
    saved = checkpoint.load(learned / "checkpoints" / "step-00000006").tensors
    assert saved["uncertainty-model"]["linear.weight"].any() and "uncertainty-optimizer" in saved
    assert not [name for name in load_denoiser(learned / "unet")[0].state_dict() if "uncertainty" in name]
    assert all({"denoising", "uncertainty"} <= line.keys() for line in metrics(learned) if "lr" in line)
    assert (learned / "objective.png").stat().st_size > 1000


def test_a_resumed_run_has_the_same_weights_log_and_snapshots(learned: Path, stage_two: Stage, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=3)
    outcome = stage_two.run(tmp_path / "again", *LEARNED)
    assert outcome.code == 0 and "resuming from step 3" in outcome.out, outcome.err
    assert weights(tmp_path / "again") == weights(learned) and metrics(tmp_path / "again") == metrics(learned)
    files = sorted(path.relative_to(learned) for path in (learned / "snapshots").rglob("*.safetensors"))
    assert len(files) == 12
    assert all((learned / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_samples_of_another_average_are_others_and_an_impossible_one_is_a_line(learned: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, more in {"exported": (), "same": ("--ema", 0.05), "longer": ("--ema", 0.12)}.items():
        out = tmp_path / f"{name}.png"
        outcome = ran("sample", learned, "--out", out, "--num", 2, "--steps", 2, *more)
        assert outcome.code == 0, outcome.err
        drawn[name] = load_pixels(out)
    assert (drawn["exported"] - drawn["same"]).abs().max() <= 3  # half precision
    assert not torch.equal(drawn["same"], drawn["longer"])
    outcome = ran("sample", learned, "--out", tmp_path / "no.png", "--ema", 0.5)
    assert outcome.code == 2 and "--ema 0.5 is outside" in outcome.err and "Traceback" not in outcome.err


def load_pixels(path: Path) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.asarray(Image.open(path)).astype(int))


def config_without_denoiser(folder: Path, data: Path, more: str = "") -> Path:
    file = folder / "more.yaml"
    file.write_text(
        f'''data: {{kind: folder, path: "{data}", size: 16{more}}}
optim: {{lr: 1e-9, warmup: 0}}
run: {{batch_size: 8, sample_every: 100, precision: fp32}}
'''
    )
    return file


def test_a_run_starts_where_another_ended_with_its_classes_by_name(
    finished_diffusion: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_folder / "square", data / "square")
    shutil.copytree(shapes_folder / "disc", data / "a new one")
    file = config_without_denoiser(tmp_path, data)
    outcome = ran("train_diffusion", file, "--from", finished_diffusion, "--out", tmp_path / "run", *SHORT)
    assert outcome.code == 0, outcome.err
    said = outcome.out + outcome.err
    assert "the optimizer and the EMA start anew" in said
    assert "1 of 2 classes are taken over by name; new, and at first as the null label: a new one" in said
    assert "not in these data any more: disc" in said
    before, after = (load_denoiser(run / "unet")[0].state_dict() for run in (finished_diffusion, tmp_path / "run"))
    for name, value in before.items():
        if name.startswith("embedding."):
            rows = {"a new one": 2, "square": 1, "null": 2}  # of disc, square, null
            value = value[list(rows.values())]
        assert torch.allclose(after[name], value, atol=1e-6), name
    assert not (tmp_path / "run" / "snapshots").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--denoiser.network.widths", "[16,16]"), 2, ("denoiser.network.widths", "[16, 16]", "[8, 16]")),
        (("--data.size", 32), 2, ("--from", "Gaussian skip knows no other", "2 x 8 x 8")),
        (("--from", "OTHER"), 4, ("is not a finished run of train_diffusion.py",)),
    ],
)
def test_what_cannot_be_taken_over_is_one_line(
    finished_diffusion: Path, shapes_folder: Path, tmp_path: Path, arguments, code, words
) -> None:
    file = config_without_denoiser(tmp_path, shapes_folder)
    given = (tmp_path / "nothing", ()) if "--from" in arguments else (finished_diffusion, arguments)
    outcome = ran("train_diffusion", file, "--from", given[0], "--out", tmp_path / "run", *SHORT, *given[1])
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    assert all(word in errors[0] for word in words), errors[0]


def test_another_autoencoder_than_the_denoiser_knows_is_refused_and_the_same_is_not(
    finished_diffusion: Path, finished_vae: Path, stage_two: Stage, stage_one: Stage, tmp_path: Path
) -> None:
    outcome = stage_two.run(tmp_path / "same", "--from", finished_diffusion, *SHORT)
    assert outcome.code == 0, outcome.err
    assert stage_one.run(tmp_path / "vae", "--run.seed", 1, "--run.steps", 2).code == 0
    other = Stage(stage_two.name, (*stage_two.arguments[:-1], tmp_path / "vae"))
    outcome = other.run(tmp_path / "other", "--from", finished_diffusion, *SHORT)
    assert outcome.code == 4 and "makes other latents than the autoencoder of --from" in outcome.err, outcome.err


def test_a_dry_run_says_what_weight_and_snapshots_there_will_be(stage_two: Stage, tmp_path: Path) -> None:
    outcome = stage_two.run(tmp_path / "dry", "--dry-run", "--objective.weighting.kind", "min-snr")
    said = outcome.out + outcome.err
    assert outcome.code == 0 and "min(1 / σ², gamma)" in said and "at most 8:" in said, outcome.err
    assert not any((tmp_path / "dry" / name).exists() for name in ("config.yaml", "objective.png", "snapshots"))


def test_a_run_with_more_conditions_begins_as_the_denoiser_it_starts_from_and_says_what_is_new() -> None:
    label, angle = ClassAttribute("label", ("disc", "square")), NumberAttribute("angle", 90.0, 50.0, 0.0, 180.0, 360.0)
    text = TextAttribute("text", "words", "", width=4, length=3, layers=1, channels=8)
    before, lines = ConditionSchema((label, angle)), []
    wider = ClassAttribute("label", ("disc", "square", "star"))
    after = ConditionSchema((wider, text, NumberAttribute("angle", 91.0, 52.0, 0.0, 190.0, 360.0)))
    first = diffusion_model("pixels")
    old_config = replace(first.config, schema=before)
    warm = WarmStart("RUN", awake(create_denoiser(old_config)), old_config)
    schema = warm.schema_of(after)
    new = create_denoiser(replace(old_config, schema=schema))
    warm.initialize(new, schema, lines.append)
    noisy, sigma = torch.randn(2, *first.config.latent_shape, generator=generator(0, "noisy")), torch.tensor([0.3, 2.0])
    values = {"label": torch.tensor([0, 1]), "angle": torch.tensor([10.0, math.nan])}
    words = torch.randn(2, 3, 4, generator=generator(0, "words"))
    found = new(noisy, sigma, Condition(values | {"text": words}))
    assert torch.allclose(found, warm.denoiser(noisy, sigma, Condition(values)), rtol=0, atol=1e-5)
    assert (
        "angle: the embedding is taken over" in lines
        and "text: this text is new, and starts without an effect" in lines
    )
    back = create_denoiser(old_config)
    WarmStart("NEW", new, replace(old_config, schema=schema)).initialize(back, before, lines.append)
    assert torch.allclose(back(noisy, sigma, Condition(values)), found, rtol=0, atol=1e-5)
    assert "text: the embedding of NEW is left out, as the data have no such attribute" in lines


def test_a_run_does_not_go_on_with_numbers_that_are_standardized_otherwise_where_from_is_left_out() -> None:
    angle = NumberAttribute("angle", 90.0, 50.0, 0.0, 180.0)
    of_data, of_start = (ConditionSchema((replace(angle, mean=mean),)) for mean in (91.0, 90.0))
    found = [start_fingerprint(DenoisingObjectiveConfig(), schema, None) for schema in (of_data, of_start, of_start)]
    assert found[0] != found[1] == found[2]


DIT = DiTConfig(patch=4, width=8, depth=1, heads=1)
TEXT = TextAttribute("text", "words", "one", width=4, length=3, layers=1, channels=8)


@pytest.mark.parametrize("network", [None, DIT], ids=["unet", "dit"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), (TEXT,)),
        ((TEXT,), ()),
        ((TEXT,), (replace(TEXT, sha256="another"),)),
        ((TEXT,), (replace(TEXT, channels=16),)),
        ((TEXT,), (TEXT, replace(TEXT, name="more", channels=16))),
    ],
    ids=["new", "gone", "another encoder", "wider", "one more"],
)
def test_a_text_that_a_run_did_not_know_is_neither_refused_as_other_latents_nor_attended_to_at_first(
    network: DiTConfig | None, before: tuple[TextAttribute, ...], after: tuple[TextAttribute, ...]
) -> None:
    label, config = ClassAttribute("label", ("disc", "square")), diffusion_model("pixels").config
    denoiser_config = replace(config.denoiser, network=network or config.denoiser.network)
    config = replace(config, denoiser=denoiser_config, schema=ConditionSchema((label, *before)))
    warm, schema = WarmStart("RUN", awake(create_denoiser(config)), config), ConditionSchema((label, *after))
    new = create_denoiser(replace(config, schema=schema)).eval()
    warm.initialize(new, schema, lambda _: None)
    noisy, sigma = torch.randn(2, *config.latent_shape, generator=generator(0, "noisy")), torch.tensor([0.3, 2.0])
    found = [
        new(
            noisy,
            sigma,
            Condition({"label": torch.tensor([0, 1])} | dict.fromkeys((each.name for each in after), words)),
        )
        for words in torch.randn(2, 2, 3, 4, generator=generator(0, "words"))
    ]
    assert torch.equal(found[0], found[1])


def test_a_text_that_both_runs_know_is_attended_to_as_before() -> None:
    config = replace(diffusion_model("pixels").config, schema=ConditionSchema((TEXT,)))
    warm, new = WarmStart("RUN", awake(create_denoiser(config)), config), create_denoiser(config).eval()
    warm.initialize(new, config.schema, lambda _: None)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in warm.denoiser.state_dict().items())


def awake(denoiser: torch.nn.Module) -> torch.nn.Module:
    """The same, no part of which is zero."""
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(0, "awake", number))
    return denoiser.eval()
