"""Captions: embedded once, by an encoder that leaves the memory of the GPU to the training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.data.condition_columns import columns_of
from ldm.data.config import FolderConfig, TextConditionConfig
from ldm.data.layouts.listing import Entry
from ldm.text.captions import embedded
from ldm.text.encoder import StaticEncoder, open_encoder
from tests.support.word_vectors import word_vectors


class MovingEncoder(StaticEncoder):
    """An encoder that notes where it was sent."""

    places: list[str]

    def to(self, device: torch.device) -> "MovingEncoder":
        self.places.append(device.type)
        return self


@pytest.mark.parametrize("dry", [False, True])
def test_a_text_encoder_does_not_stay_on_the_gpu_once_the_captions_are_embedded(tmp_path: Path, dry: bool) -> None:
    encoder = MovingEncoder(**vars(open_encoder(str(word_vectors(tmp_path / "words")))))
    object.__setattr__(encoder, "places", [])
    config = TextConditionConfig(length=3)
    entries = [Entry("0", None, "0", row={"text": "a red cat"}), Entry("1", None, "1", row={"text": "a dog"})]
    (column,) = columns_of(FolderConfig(path="anywhere", conditions={"text": config}), entries, "anywhere")
    device = torch.device("cuda")  # where nothing is computed: looking up is done on the CPU
    run: Any = SimpleNamespace(dry=dry, device=device, on_main=lambda action: action(), print=lambda line: None)
    for _ in range(2):
        found = embedded(run, tmp_path, column, config, encoder)
    assert (~found.tokens[..., 0].isnan()).sum(1).tolist() == [2, 3]
    assert encoder.places == ["cuda", "cpu"] * (2 if dry else 1)
