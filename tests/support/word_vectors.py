"""A tiny text encoder: random embeddings of a few words."""

from pathlib import Path

import safetensors.torch
import torch

from ldm.randomness import generator

WORDS = ("a", "cat", "dog", "red", "blue", "disc", "square", "left", "of")


def word_vectors(folder: Path, seed: int = 0) -> Path:
    """The folder, with a table of embeddings 6 wide and its words."""
    folder.mkdir(parents=True, exist_ok=True)
    table = torch.randn(len(WORDS), 6, generator=generator(seed, "words"))
    safetensors.torch.save_file({"embedding": table}, folder / "vectors.safetensors")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    return folder
