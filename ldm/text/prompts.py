"""Prompts: the tokens of what a person asks for, by the encoder that the captions were embedded with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.batch import LARGEST, Attribute, ClassLabels, Condition, ConditionSchema, TextAttribute
from ldm.errors import CheckpointError, RequestError
from ldm.text.encoder import TextEncoder, encoded, open_encoder

FOLDER = "text"  # in that of a denoiser; in it one folder for each text attribute, called by its name


class PromptEncoders:
    """The text encoders of a model, opened when they are first needed.

    One that an export brought along lies in the folder of the denoiser; another is found by its reference.
    """

    def __init__(
        self, schema: ConditionSchema, folder: Path | None = None, opened: Mapping[str, TextEncoder] | None = None
    ):
        self.schema, self.folder = schema, folder
        self.opened = dict(opened or {})

    def request(
        self,
        labels: ClassLabels | None = None,
        conditions: Mapping[str, Any] | Condition | None = None,
        prompt: str | Sequence[str] | None = None,
    ) -> Condition:
        """The condition of one image for each value that is asked for, of each one, which
        holds for all, or equally many. What is not asked for is left out; of a request for nothing at all the classes
        come in turn.

        `conditions` may be that condition already. A `prompt`, one or several, is of the first text attribute.
        RequestError for what the model does not know.
        """
        if isinstance(conditions, Condition):
            return conditions
        given = dict(conditions or {})
        if prompt is not None:
            if self.schema.text is None:
                raise RequestError("prompt", f"needs a model trained on captions; its conditions: {self.known}")
            if self.schema.text.name in given:
                raise RequestError("prompt", f"and {self.schema.text.name} are the same condition: give one of them")
            given[self.schema.text.name] = prompt
        if labels is None and not given:
            return self.schema.request(None)
        columns: dict[str, Tensor] = {}
        if labels is not None:
            indices, classes = self.schema.indices(labels), self.schema.classes
            if classes is not None:
                if classes.name in given:
                    raise RequestError("labels", f"and {classes.name} are the same condition: give one of them")
                columns[classes.name] = torch.tensor(indices, dtype=torch.int64)
        columns |= {name: self.values(self.attribute(name), value) for name, value in given.items()}
        return self.joined(columns)

    @property
    def known(self) -> str:
        """The names of the conditions, for messages."""
        return ", ".join(each.name for each in self.schema.attributes) or "none, it is unconditional"

    def attribute(self, name: str) -> Attribute:
        """The attribute of a name; RequestError if there is none."""
        found = next((each for each in self.schema.attributes if each.name == name), None)
        if found is None:
            raise RequestError(name, f"is no condition of this model; its conditions: {self.known}")
        return found

    def values(self, attribute: Attribute, given: Any) -> Tensor:
        """The value of an attribute for each that is given: one, or a sequence, an array or a tensor of several."""
        if attribute.kind == "class":
            labels = attribute.labels(given, attribute.name)
            return torch.tensor([attribute.index(label, attribute.name) for label in labels], dtype=torch.int64)
        found = given.reshape(-1).tolist() if isinstance(given, Tensor | np.ndarray | np.generic) else given
        several = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        if attribute.kind == "number":
            return torch.tensor([finite_number(attribute.name, each) for each in several], dtype=torch.float32)
        for each in several:
            if not isinstance(each, str):
                raise RequestError(attribute.name, f"{each!r} is not a text")
        return self(attribute, several)

    def joined(self, columns: Mapping[str, Tensor]) -> Condition:
        """The values of several attributes side by side, one of them for all, the others left out."""
        count = max(map(len, columns.values()))
        for name, column in columns.items():
            if not len(column):
                raise RequestError(name, "asks for nothing; leave it out")
            if len(column) not in (1, count):
                raise RequestError(name, f"has {len(column)} values beside {count} of another: give one, or as many")
        rows = torch.arange(count)
        nothing = {each.name: each.null(1) for each in self.schema.attributes}
        return Condition({name: value[rows % len(value)] for name, value in (nothing | dict(columns)).items()})

    def __call__(self, attribute: TextAttribute, texts: Sequence[str]) -> Tensor:
        """The tokens of texts, rounded as those of captions are; RequestError for a text of which no word is known."""
        found = encoded(self.encoder(attribute), texts, attribute.length).float()
        for text, tokens in zip(texts, found, strict=True):
            if text.strip() and bool(tokens.isnan().all()):
                raise RequestError("prompt", f"{text!r} has no word that the text encoder {attribute.encoder} knows")
        return found

    def encoder(self, attribute: TextAttribute) -> TextEncoder:
        """The encoder of an attribute; CheckpointError if it is not the one that the model was trained with."""
        if attribute.name not in self.opened:
            own = None if self.folder is None else self.folder / FOLDER / attribute.name
            place = str(own) if own is not None and own.is_dir() else attribute.encoder
            encoder = open_encoder(place)
            if encoder.sha256 != attribute.sha256:
                raise CheckpointError(
                    f"the text encoder {place} is another one than the model was trained with: put that one there"
                )
            self.opened[attribute.name] = encoder
        return self.opened[attribute.name]

    def save(self, folder: Path) -> None:
        """Write the small ones into the folder of a denoiser; of others the config has the reference."""
        for attribute in self.schema.attributes:
            if attribute.kind == "text" and (encoder := self.encoder(attribute)).is_small:
                (folder / FOLDER).mkdir(parents=True, exist_ok=True)
                encoder.save(folder / FOLDER / attribute.name)


def finite_number(name: str, given: Any) -> float:
    """A finite number, also one in words as the command line has it; RequestError for anything else."""
    try:
        number = float(given)
    except (TypeError, ValueError):
        raise RequestError(name, f"{given!r} is not a number") from None
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise RequestError(name, f"{number} must be a finite number, of at most {LARGEST:.1e}")
    return number
