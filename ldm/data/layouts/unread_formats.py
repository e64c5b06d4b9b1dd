"""Formats of images that are not read: what each is, and how to convert it."""

from collections.abc import Iterable
from fnmatch import fnmatch

PICKLED = "and unpickling runs whatever code a file holds"
AS_FILES = "write the images as PNG files, one folder per class, or as a stack with np.savez(images=..., labels=...)"
CIFAR = "read it by --data.kind torchvision --data.name CIFAR10 --data.root FOLDER, or write the images as PNG files"

UNREAD = {
    ("data_batch_[0-9]*", "test_batch", "cifar-10-batches-py/*", "cifar-100-python/*"): (
        "a pickled batch of CIFAR",
        PICKLED,
        CIFAR,
    ),
    ("*.pkl", "*.pickle", "*.joblib"): ("a pickle", PICKLED, AS_FILES),
    ("*.pt", "*.pth", "*.ckpt"): ("a pickled file of PyTorch", PICKLED, AS_FILES),
    ("*.arrow", "dataset_dict.json", "state.json"): (
        "a data set saved by Hugging Face's datasets",
        "whose Arrow files are not read",
        'convert it: datasets.load_from_disk("FOLDER").to_parquet("images.parquet"), split by split',
    ),
    ("*.tfrecord", "*.tfrecord-*", "*.tfrecords"): ("a TFRecord file", "which is not read", AS_FILES),
    ("data.mdb", "*.lmdb"): ("an LMDB database", "which is not read", AS_FILES),
    ("*.h5", "*.hdf5", "*.mat"): ("a file of HDF5 or MATLAB", "which is not read", AS_FILES),
    ("*.beton", "*.rec"): ("a file of FFCV or MXNet", "which is not read", AS_FILES),
    ("*.rar", "*.7z"): ("an archive of a kind that is not read", "unlike zip and tar", "unpack it into a folder"),
    ("*.mp4", "*.mov", "*.avi", "*.mkv", "*.webm"): (
        "a video",
        "which is not read",
        "cut it into frames: ffmpeg -i VIDEO frames/%06d.png",
    ),
}


def unread_format(names: Iterable[str]) -> str:
    """What the first file of a known other format is, and how to convert it; empty if there is none."""
    names = list(names)
    for patterns, (what, why, advice) in UNREAD.items():
        for name in names:
            if any(fnmatch(name.lower(), pattern) or fnmatch(name.lower(), f"*/{pattern}") for pattern in patterns):
                return f"{name} is {what}, {why}: {advice}"
    return ""
