"""Ownership of the run folder: a run takes an empty or new one, or one that a run has made, and no other."""

import json
import re
from pathlib import Path

from ldm.config.yaml_file import read_yaml
from ldm.errors import ConfigError

LOCK = ".lock"
RECORDS = ("data", "processes", "precision", "packages")  # what environment.json has said in every version
# What a run writes under fixed names, so that another's of the same name would be lost.
WRITES = {
    "cache.json",  # the folder of a shared cache of latents has a lock of its own
    "checkpoints",
    "command.txt",
    "config.yaml",
    "curves.png",
    "environment.json",
    "finished.json",
    "latents",
    "metrics.jsonl",
    "moments.npy",
    "model_index.json",
    "objective.png",
    "pipeline.py",
    "report.json",
    "samples",
    "scheduler",
    "snapshots",
    "unet",
    "vae",
}
OF_THE_SYSTEM = {"lost+found", "Thumbs.db", "desktop.ini"}
OF_CACHE = re.compile(
    r"\.lock|(cache|building)\.json(\.partial)?|moments\.npy|shards|captions-\w+\.npy|\.captions-\w+\.npy\.\d+"
)
LOGS = (".log", ".out", ".err")  # where a shell or a cluster sends what the run itself will print


def in_the_way(folder: Path) -> str | None:
    """The name of what a run in `folder` might overwrite, or would be mixed with; None if it may begin or go on there.

    Hidden files, logs and empty files are in nobody's way. Until a run has described itself in environment.json, it
    has left a lock, perhaps the cache of latents, and, in earlier versions, its settings.
    """
    if not folder.is_dir() or is_run(folder):
        return None
    begun = (folder / LOCK).is_file()
    for path in sorted(folder.iterdir()):
        if path.name in WRITES:
            harmless = begun and is_of_an_interrupted_start(path)
        else:
            harmless = begun or path.name[0] == "." or path.name in OF_THE_SYSTEM or is_log(path)
        if not harmless and not is_cache(path):
            return path.name + "/" * path.is_dir()
    return None


def is_run(folder: Path) -> bool:
    """Whether a run has described itself in `folder`, or saved a checkpoint there."""
    try:
        environment = json.loads((folder / "environment.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        environment = None
    if isinstance(environment, dict) and all(name in environment for name in RECORDS):
        return True
    return any(folder.glob("checkpoints/step-*/manifest.json"))


def is_of_an_interrupted_start(path: Path) -> bool:
    """Whether that is what a run leaves which ended before its first step."""
    if path.name == "config.yaml":
        return is_run_config(path)
    if path.name == "command.txt":
        return is_run_config(path.with_name("config.yaml"))
    if path.name == "samples":
        return path.is_dir() and all(
            re.fullmatch(r"\..*|(step|features)-\d+\.png", each.name) for each in path.iterdir()
        )
    return False


def is_run_config(file: Path) -> bool:
    """Whether the settings of a run are in there."""
    try:
        given = read_yaml(file)
    except ConfigError:
        return False
    return isinstance(given, dict) and isinstance(given.get("run"), dict) and "steps" in given["run"]


def is_cache(path: Path) -> bool:
    """Whether that is a folder with a cache of latents and captions, finished or not, and nothing else."""
    return path.name == "latents" and path.is_dir() and all(OF_CACHE.fullmatch(each.name) for each in path.iterdir())


def is_log(path: Path) -> bool:
    """Whether that is a file that is being written to from outside, or has nothing in it."""
    return path.is_file() and (path.suffix in LOGS or path.stat().st_size == 0)
