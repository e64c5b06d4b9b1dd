"""The embedding of a condition: from class labels to the vector that a denoiser network is conditioned on."""

from torch import Tensor, nn

from ldm.batch import Condition, ConditionSchema


class ConditionEmbedding(nn.Module):
    """Embeds a condition as a vector, batch x channels, and tokens, batch x length x channels.

    Each attribute of the schema has a table of embeddings, the last row being that of the null label; their sum is the
    vector. Without any attribute there is no vector, and so far there are no tokens.
    """

    def __init__(self, schema: ConditionSchema, channels: int):
        super().__init__()
        self.tables = nn.ModuleDict(
            {each.name: nn.Embedding(len(each.classes) + 1, channels) for each in schema.attributes}
        )

    def forward(self, condition: Condition | None, noise_condition: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Vector and tokens; without a condition those of the null labels, one for each of `noise_condition`."""
        vector: Tensor | None = None
        for name, table in self.tables.items():
            rows = table.get_parameter("weight").shape[0]
            if condition is None:
                labels = noise_condition.new_full(noise_condition.shape, rows - 1).long()
            else:
                labels = condition.values[name] % rows  # NULL is the last row
            embedded = table(labels)
            vector = embedded if vector is None else vector + embedded
        return vector, None
