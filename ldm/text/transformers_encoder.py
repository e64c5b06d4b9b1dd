"""Text encoders of the package transformers, by folder or hub id: CLIP, T5, sentence encoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import ConfigError
from ldm.nn.pretrained_weights import sha256_of

SMALL = 200e6  # bytes of weights that an export brings along


@dataclass(frozen=True, eq=False)
class TransformersEncoder:
    """A text encoder of transformers with its tokenizer; a token is its last hidden state."""

    model: Any
    tokenizer: Any
    width: int
    sha256: str
    is_small: bool

    @torch.no_grad()
    def tokens(self, text: str, length: int) -> Tensor:
        """The last hidden states of a text, which is run by itself: no padding can change them."""
        ids = self.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        device = next(self.model.parameters()).device
        hidden: Tensor = self.model(input_ids=torch.tensor([ids], device=device)).last_hidden_state
        return hidden[0].float()

    def to(self, device: torch.device) -> "TransformersEncoder":
        """Move the model to a device."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def open_transformers(reference: str) -> TransformersEncoder:
    """The text encoder in a folder or on the hub; ConfigError if it cannot be reached."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"the text encoder {reference} is no folder of embeddings, and others need the package transformers: pip"
            " install transformers; or use the encoder wordllama"
        ) from error
    try:
        model = text_model(reference).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(reference)
    except Exception as error:  # of many types: no network, no such model, a damaged file, a package that is missing
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"the text encoder {reference} can be neither found nor downloaded ({reason}): give a folder or a hub id of"
            " a transformers text encoder, or wordllama"
        ) from error
    state = model.state_dict()
    size = sum(value.numel() * value.element_size() for value in state.values())
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return TransformersEncoder(model, tokenizer, model.config.hidden_size, sha256_of(state, words), size <= SMALL)


def text_model(reference: str) -> Any:
    """The encoder of texts alone, of whatever model it is a part."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, CLIPTextModel

    config = AutoConfig.from_pretrained(reference)
    if config.model_type == "clip":
        return CLIPTextModel.from_pretrained(reference)
    if type(config) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding.from_pretrained(reference)
    model = AutoModel.from_pretrained(reference)
    return model.get_encoder() if config.is_encoder_decoder else model
