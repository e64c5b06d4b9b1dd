"""Captions: embedded once, by an encoder that leaves the memory of the GPU to the training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ldm.data.condition_columns import EmbeddedCaptions, columns_of
from ldm.data.config import FolderConfig, TextConditionConfig
from ldm.data.layouts.listing import Entry
from ldm.errors import CheckpointError
from ldm.text.captions import embedded
from ldm.text.encoder import StaticEncoder, open_encoder
from tests.support.word_vectors import word_vectors


class MovingEncoder(StaticEncoder):
    """An encoder that notes where it was sent."""

    places: list[str]

    def to(self, device: torch.device) -> "MovingEncoder":
        self.places.append(device.type)
        return self


def captions_on(device: str, folder: Path, encoder: Any, dry: bool = False) -> EmbeddedCaptions:
    """Two captions, embedded for a run on a device, on which nothing is computed: looking up is done on the CPU."""
    config = TextConditionConfig(length=3)
    entries = [Entry("0", None, "0", row={"text": "a red cat"}), Entry("1", None, "1", row={"text": "a dog"})]
    (column,) = columns_of(FolderConfig(path="anywhere", conditions={"text": config}), entries, "anywhere")
    run: Any = SimpleNamespace(dry=dry, device=torch.device(device), on_main=lambda do: do(), print=lambda line: None)
    return embedded(run, folder, column, config, encoder)


@pytest.mark.parametrize("dry", [False, True])
def test_a_text_encoder_does_not_stay_on_the_gpu_once_the_captions_are_embedded(tmp_path: Path, dry: bool) -> None:
    encoder = MovingEncoder(**vars(open_encoder(str(word_vectors(tmp_path / "words")))))
    object.__setattr__(encoder, "places", [])
    for _ in range(2):
        found = captions_on("cuda", tmp_path, encoder, dry)
    assert (~found.tokens[..., 0].isnan()).sum(1).tolist() == [2, 3]
    assert encoder.places == ["cuda", "cpu"] * (2 if dry else 1)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr'", None], ids=["empty", "cut short", "smaller"]
)
def test_damaged_captions_are_no_traceback(tmp_path: Path, content: bytes | None) -> None:
    encoder = open_encoder(str(word_vectors(tmp_path / "words")))
    captions_on("cpu", tmp_path, encoder)
    (file,) = tmp_path.glob("captions-*.npy")
    if content is None:
        np.save(file, np.zeros((1, 3, 6), np.float16))
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"captions-\w+\.npy is damaged .*: delete it and run again"):
        captions_on("cpu", tmp_path, encoder)
