"""Captions: the texts of a data set, each embedded once and kept in a memory-mapped file beside the latents."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ldm.batch import TextAttribute
from ldm.data.condition_columns import ConditionColumn, EmbeddedCaptions
from ldm.data.config import DataConfig, FolderConfig, TextConditionConfig
from ldm.data.datasets import Dataset
from ldm.errors import CheckpointError, ConfigError
from ldm.text.encoder import TextEncoder, encoded, open_encoder
from ldm.training.run import Run
from ldm.training.run_folder import check_cache_folder

AT_A_TIME = 256  # texts


def open_encoders(data: DataConfig) -> dict[str, TextEncoder]:
    """The text encoders of the conditions of a data set; ConfigError for one that cannot be reached."""
    conditions = data.conditions if isinstance(data, FolderConfig) else {}
    texts = {name: each for name, each in conditions.items() if isinstance(each, TextConditionConfig)}
    return {name: open_encoder(each.encoder) for name, each in texts.items()}


def embed_captions(run: Run, folder: Path, dataset: Dataset, encoders: Mapping[str, TextEncoder]) -> None:
    """Embed the texts among the conditions of a data set, and keep them in `folder`, where they may be already.

    ConfigError if that lies among images.
    """
    for column in dataset.columns:
        if isinstance(column.config, TextConditionConfig):
            check_cache_folder(folder, dataset.config)
            encoder = encoders[column.name]
            dataset.captions[column.name] = embedded(run, folder, column, column.config, encoder)


def embedded(
    run: Run, folder: Path, column: ConditionColumn, config: TextConditionConfig, encoder: TextEncoder
) -> EmbeddedCaptions:
    """The tokens of the distinct captions of a condition."""
    file = folder / f"captions-{fingerprint(encoder, config.length, column.names)[:16]}.npy"

    def build() -> None:
        if not file.is_file():
            with on_device(encoder, run.device):
                write(file, encoder, column.names, config.length)

    if not run.dry:
        run.on_main(build)
        tokens = read(file, (len(column.names), config.length, encoder.width))
    else:
        with on_device(encoder, run.device):
            tokens = encoded(encoder, column.names, config.length)
    counts = (~tokens[..., 0].isnan()).sum(1)
    if not int(counts.max()):
        raise ConfigError(f"the text encoder {config.encoder} knows no word of the captions of {column.name}")
    cut = int((counts == config.length).sum())
    run.print(
        f"{column.name}: {len(column.names):,} captions of {counts.float().mean():.1f} tokens on average,"
        f" {encoder.width} wide, by {config.encoder}"
        + (f"; {cut:,} of {config.length} or more, where they are cut" if cut else "")
        + ("" if encoder.is_small else "; exports name that encoder, and do not bring it along")
    )
    return EmbeddedCaptions(attribute_of(column.name, config, encoder), tokens)


@contextmanager
def on_device(encoder: TextEncoder, device: torch.device) -> Iterator[None]:
    """Within this block the encoder is on a device, whose memory training needs afterwards."""
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to(torch.device("cpu"))


def attribute_of(name: str, config: TextConditionConfig, encoder: TextEncoder) -> TextAttribute:
    """What a model knows of it; of an encoder that exports bring along not where it lay."""
    is_folder = encoder.is_small and Path(config.encoder).expanduser().is_dir()
    reference = Path(config.encoder).name if is_folder else config.encoder
    return TextAttribute(name, reference, encoder.sha256, encoder.width, config.length, config.layers, config.channels)


def fingerprint(encoder: TextEncoder, length: int, texts: Sequence[str]) -> str:
    """SHA-256 of all that the tokens depend on."""
    return hashlib.sha256(json.dumps([encoder.sha256, length, list(texts)]).encode()).hexdigest()


def read(file: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """The tokens in a file, which is mapped into memory; CheckpointError if it does not hold so many."""
    try:
        tokens = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): delete it and run again") from error
    if tokens.shape != shape:
        raise CheckpointError(f"{file} is damaged (of {tokens.shape} instead of {shape}): delete it and run again")
    return torch.from_numpy(tokens)


def write(file: Path, encoder: TextEncoder, texts: Sequence[str], length: int) -> None:
    """Embed the texts and write their tokens, in float16; the file has its name once it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(texts), length, encoder.width)}
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as out, tqdm(total=len(texts), desc="embedding", unit="text", delay=1) as bar:
            np.lib.format.write_array_header_1_0(out, header)
            for start in range(0, len(texts), AT_A_TIME):
                part = texts[start : start + AT_A_TIME]
                out.write(encoded(encoder, part, length).numpy().astype("<f2").tobytes())
                bar.update(len(part))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
