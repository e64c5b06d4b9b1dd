"""What every objective returns."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimized; `terms` are its weighted parts and anything else worth a line in the log.

    All are scalars on the device. `outputs` are tensors that a panel or a critic may want, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor] = field(default_factory=dict)
