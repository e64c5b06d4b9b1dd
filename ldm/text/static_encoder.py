"""Static embeddings: a text encoder that is one table, with a row for every token or word.

A folder of one holds the table in a .safetensors file and, beside it, `tokenizer.json` of the package tokenizers, or
`words.txt`, one word a line: so word vectors of any origin can be used, and those of model2vec are such a folder.
"""

import hashlib
import importlib
import importlib.util
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ldm.errors import CheckpointError, ConfigError

EMBEDDING_FILE = "embedding.safetensors"
TOKENIZER = "tokenizer.json"
WORDS = "words.txt"
INSTALL = "pip install 'latent-diffusion-trainer[text]'"


@dataclass(frozen=True, eq=False)
class StaticEncoder:
    """A table of embeddings and what cuts a text into rows of it."""

    table: Tensor  # tokens x width
    rows: Callable[[str], list[int]]
    vocabulary: Path  # the file that `rows` was made of
    sha256: str
    is_small = True

    @property
    def width(self) -> int:
        """Of a token."""
        return self.table.shape[1]

    def tokens(self, text: str, length: int) -> Tensor:
        """The embeddings of the first tokens of a text; unknown words are left out."""
        return self.table[torch.tensor(self.rows(text)[:length], dtype=torch.int64)].float()

    def to(self, device: torch.device) -> "StaticEncoder":
        """The same: looking up is done on the CPU."""
        return self

    def save(self, folder: Path) -> None:
        """Write table and vocabulary."""
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({"embedding": self.table.contiguous()}, folder / EMBEDDING_FILE)
        shutil.copyfile(self.vocabulary, folder / (WORDS if self.vocabulary.name == WORDS else TOKENIZER))


def open_wordllama() -> StaticEncoder:
    """The 32,000 embeddings, 256 wide, that the package wordllama ships, read without its own loader."""
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the text encoder wordllama is not installed: {INSTALL}")
    package = Path(found.submodule_search_locations[0])
    vocabulary = package / "tokenizers" / "l2_supercat_tokenizer_config.json"
    return static_encoder(package / "weights" / "l2_supercat_256.safetensors", vocabulary)


def is_static(folder: Path) -> bool:
    """Whether a folder holds static embeddings."""
    if (folder / EMBEDDING_FILE).is_file() or (folder / WORDS).is_file():
        return True
    return (
        (folder / TOKENIZER).is_file() and len(tables := tables_in(folder)) == 1 and "embeddings" in names_in(tables[0])
    )


def open_static(folder: Path) -> StaticEncoder:
    """The static embeddings in a folder."""
    files = tables_in(folder)
    vocabulary = folder / (WORDS if (folder / WORDS).is_file() else TOKENIZER)
    if len(files) != 1 or not vocabulary.is_file():
        raise ConfigError(f"{folder} must hold one .safetensors with a table of embeddings, and {TOKENIZER} or {WORDS}")
    return static_encoder(files[0], vocabulary)


def tables_in(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def names_in(file: Path) -> list[str]:
    """The tensors of a safetensors file; none of a damaged one."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            names: list[str] = list(opened.keys())
    except (OSError, safetensors.SafetensorError):  # for whoever reads them to say
        return []
    return names


def static_encoder(file: Path, vocabulary: Path) -> StaticEncoder:
    """The encoder of a table and a vocabulary."""
    try:
        tensors = safetensors.torch.load_file(file)
        content = vocabulary.read_bytes()
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the text encoder cannot be read: {file.parent}: {error}") from error
    tables = [value for value in tensors.values() if value.ndim == 2]
    if len(tables) != 1:
        raise CheckpointError(f"{file} holds {len(tables)} tables of embeddings instead of one")
    (table,) = tables
    if vocabulary.name == WORDS:
        rows = rows_of_words(words_in(content, vocabulary, len(table)))
    else:
        rows = rows_of_tokenizer(vocabulary)
    digest = hashlib.sha256(content + str((table.dtype, tuple(table.shape))).encode())
    digest.update(table.contiguous().view(torch.uint8).numpy().tobytes())
    return StaticEncoder(table, rows, vocabulary, digest.hexdigest())


def words_in(content: bytes, file: Path, rows: int) -> list[str]:
    """The words of a file, one a line and for each row of a table, or CheckpointError."""
    try:
        words = content.decode().removesuffix("\n").split("\n")  # at nothing else, for a word may be of any letters
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not in UTF-8: {error.reason} at byte {error.start}") from error
    if len(words) != rows:
        raise CheckpointError(
            f"{file} has {len(words):,} lines, and the table of embeddings beside it {rows:,} rows: give each row its"
            " word, one a line, without a heading"
        )
    return words


def rows_of_words(words: Sequence[str]) -> Callable[[str], list[int]]:
    """Cuts a text at whatever is no letter or digit, and finds its words, in lower case, in a list.

    Of a word in several cases the one in lower case is taken, or else the first.
    """
    places: dict[str, int] = {}
    for row, word in enumerate(map(str.strip, words)):
        if word == word.lower() or word.lower() not in places:
            places[word.lower()] = row
    return lambda text: [places[word] for word in re.findall(r"\w+", text.lower()) if word in places]


def rows_of_tokenizer(file: Path) -> Callable[[str], list[int]]:
    """What a file of the package tokenizers does, without the marks of beginning and end."""
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(f"the text encoder in {file.parent} needs the package tokenizers: {INSTALL}") from error
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
