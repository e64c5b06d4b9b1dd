"""A config with every kind of field, and what a refusal of them says."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ldm.errors import ConfigError


@dataclass(frozen=True)
class Shared:
    size: int = 8  # side of an image
    sharpness: float | None = None  # null leaves it alone


@dataclass(frozen=True)
class Disk(Shared):
    """Images of a folder."""

    kind: Literal["disk"] = "disk"
    place: str = "here"  # the folder


@dataclass(frozen=True)
class Dream(Shared):
    """Images that never were."""

    kind: Literal["dream"] = "dream"
    size: int = 16
    depth: int = field(
        default=3,  # how deep the sleep is
    )


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 50  # steps
    schedule: Literal["constant", "cosine"] = "cosine"
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError("lr is negative:\nuse at least 0")


@dataclass(frozen=True)
class ExampleConfig:
    images: Disk | Dream
    noise: Disk | Dream = field(default_factory=lambda: Dream(depth=7))
    extra: Disk | Dream | None = None
    optim: Optimizer = field(default_factory=lambda: Optimizer(warmup=9))
    widths: tuple[int, ...] = (32, 64)
    average: Literal["0.05", "0.10"] = "0.05"
    channels: Literal[1, 3] = 3
    title: str = ""
    remark: str | None = "none"


DISK = ExampleConfig(images=Disk())


def refusal(function: Any, *arguments: Any, **named: Any) -> str:
    """The message of a refusal, which is always one line."""
    with pytest.raises(ConfigError) as refused:
        function(*arguments, **named)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)
