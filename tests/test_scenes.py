"""benchmarks/scenes.py: the measurement of text to image is right before it judges any model."""

import runpy

import numpy as np
import pytest

from tests.support.scripts import ROOT

SCENES = runpy.run_path(str(ROOT / "benchmarks" / "scenes.py"))


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_a_drawn_scene_is_right_in_all_that_its_prompt_says(seen: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(80):
        scene = SCENES["random_scene"](rng, seen=seen)
        assert SCENES["scene_of"](str(scene)) == scene and scene.is_seen == seen
        found = SCENES["judged"](SCENES["draw_scene"](scene, rng), scene)
        assert all(found.values()), (str(scene), found)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a small red circle right of a large white square", {"relation"}),
        ("a small red circle above a large white square", {"relation"}),
        ("a small red triangle left of a large white square", {"shapes"}),
        ("a small red square left of a large white circle", {"shapes"}),
        ("a large red circle left of a white square", {"sizes"}),
        ("a small white circle left of a large red square", {"shapes", "sizes", "relation"}),
        ("a small green circle left of a large white square", {"colors", "shapes", "sizes", "relation"}),
    ],
)
def test_of_another_prompt_exactly_the_other_words_are_wrong(prompt: str, wrong: set[str]) -> None:
    scene = SCENES["scene_of"]("a small red circle left of a large white square")
    image = SCENES["draw_scene"](scene, np.random.default_rng(2))
    found = SCENES["judged"](image, SCENES["scene_of"](prompt))
    assert {name for name, right in found.items() if not right} == wrong | {"all"}


def test_a_third_object_makes_the_colors_wrong() -> None:
    scene = SCENES["scene_of"]("a small red circle left of a small white square")
    image = SCENES["draw_scene"](scene, np.random.default_rng(0))
    image[28:32, 28:32] = (40, 205, 60)
    assert not SCENES["judged"](image, scene)["colors"]
