"""The embedding of a condition: classes, numbers and texts as the vector and the tokens that a network is given."""

import math

import torch
from torch import Tensor, nn

from ldm.batch import Condition, ConditionSchema
from ldm.diffusion.config import ATTRIBUTE_EMBEDDINGS


class ConditionEmbedding(nn.Module):
    """Embeds a condition as a vector, batch x channels, and tokens, batch x length x token_channels.

    The vector is a sum over the attributes. A class has a table of embeddings, the last row being that of the null
    label; a number is embedded by its Fourier features, a text by the mean of its tokens. Without any attribute there
    is no vector, and without a text there are no tokens; those of several texts stand one behind the other.
    """

    def __init__(self, schema: ConditionSchema, channels: int):
        super().__init__()
        self.tables, self.numbers, self.texts = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for each in schema.attributes:
            if each.kind == "class":
                self.tables[each.name] = nn.Embedding(len(each.classes) + 1, channels)
            else:
                part = ATTRIBUTE_EMBEDDINGS[each.kind].load()(each, channels, schema.token_channels)
                (self.numbers if each.kind == "number" else self.texts)[each.name] = part

    def forward(self, condition: Condition | None, noise_condition: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Vector and tokens; without a condition those of the null labels, one for each of `noise_condition`."""
        vector: Tensor | None = None
        tokens: list[Tensor] = []
        for name, table in self.tables.items():
            rows = table.get_parameter("weight").shape[0]
            if condition is None:
                labels = noise_condition.new_full(noise_condition.shape, rows - 1).long()
            else:
                labels = condition.values[name] % rows  # NULL is the last row
            embedded = table(labels)
            vector = embedded if vector is None else vector + embedded
        for name, number in self.numbers.items():
            nothing = noise_condition.new_full(noise_condition.shape, math.nan)
            embedded = number(nothing if condition is None else condition.values[name])
            vector = embedded if vector is None else vector + embedded
        for name, text in self.texts.items():
            embedded, words = text(None if condition is None else condition.values[name], len(noise_condition))
            vector = embedded if vector is None else vector + embedded
            tokens.append(words)
        return vector, torch.cat(tokens, dim=1) if tokens else None
