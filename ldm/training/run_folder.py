"""The run folder: which run owns it, what it was started with, and what it has logged."""

import errno
import json
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldm import checkpoint
from ldm.checkpoint import read_entry, read_json, write_atomically
from ldm.component.versions import versions_of
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.data.layouts.file_tree import is_image
from ldm.errors import CheckpointError, ConfigError, DataError
from ldm.pictures import curves
from ldm.training import locks
from ldm.training.config import RUN_FORMAT, check_run_format
from ldm.training.ownership import LOCK, OF_CACHE, in_the_way

MAY_CHANGE = {
    "run.steps",
    "run.log_every",
    "run.sample_every",
    "run.checkpoint_every",
    "run.checkpoint_seconds",
    "run.snapshots",
    "run.workers",
    "run.store",
    "run.report_to",
    "data.cache_gb",
    "data.path",  # where the images lie; that they are the same is told by their content
    "data.root",
}
SCRIPTS = {"autoencoder": "train_vae.py", "denoiser": "train_diffusion.py"}  # by a section that only its configs have
EXPORTS = ("vae", "unet")  # the folders that the end of a run writes
PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "pillow", "latent-diffusion-trainer")


def check_not_among_images(option: str, folder: Path, data: Any) -> None:
    """Raise ConfigError if what is written to `folder`, which `option` names, would become images of the data."""
    images = getattr(data, "path", "")
    if images and folder.resolve().is_relative_to(Path(images).expanduser().resolve()):
        raise ConfigError(f"{option} {folder} lies in data.path {images}, among the images: choose another {option}")


def check_cache_folder(folder: Path, data: Any) -> None:
    """Raise ConfigError if a cache of latents in `folder` would become images of the data, or of others there."""
    check_not_among_images("--cache", folder, data)
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    if image := next((name for name in names if is_image(name) and not OF_CACHE.fullmatch(name)), None):
        raise ConfigError(
            f"--cache {folder} holds {image}, and arrays beside images would be read as some: choose another folder"
        )


class RunFolder:
    """Paths and small files of one run. Only one process at a time may hold it."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        self.snapshots = path / "snapshots"
        self.metrics, self.finished = path / "metrics.jsonl", path / "finished.json"
        self.lock: FileLock | None = None
        self.has_command = False

    def claim(self, config: Any, warn: Callable[[str], None]) -> None:
        """Create the folder, or take it up again if it holds a run with the same settings, and lock it.

        Nothing in it is changed yet, as the data may turn out to be others. Only where a finished run was trained
        longer, and that is asked for no more, its settings are again those that it finished with.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = locks.acquire(self.path / LOCK, wait=False, warn=warn)
        except Timeout as error:
            raise ConfigError(f"{self.path} is in use by another run; wait for it, or choose another --out") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"--out {self.path} cannot be a run folder: {error.strerror}: {error.filename}"
            ) from error
        self.check_same_config(config)
        if self.is_finished(config.run.steps):
            self.restore_config(config)
        elif self.finished.exists() and not checkpoint.steps(self.checkpoints):
            raise CheckpointError(
                f"{self.path} is a run that finished {self.finished_steps()} steps, and its checkpoints/, from which it"
                " would go on, are gone: restore them, or choose another --out"
            )
        elif not checkpoint.steps(self.checkpoints) and (made := [n for n in EXPORTS if (self.path / n).exists()]):
            raise CheckpointError(
                f"{self.path} holds the {made[0]}/ of a run whose checkpoints/ are gone, and a new run would replace"
                " it: choose another --out"
            )
        else:
            self.check_steps(config.run.steps)

    def check_shared(self) -> None:
        """Raise ConfigError where this process does not see the folder that the main one has claimed."""
        if not (self.path / LOCK).exists():
            raise ConfigError(
                f"--out {self.path} is not the same folder for every process: several machines need one that all of"
                " them share"
            )

    def check_steps(self, steps: int) -> None:
        """Raise ConfigError if more steps were made: weights of those would be exported as of fewer."""
        if (newest := max(checkpoint.steps(self.checkpoints), default=0)) > steps:
            raise ConfigError(
                f"--run.steps {steps} is less than the {newest} steps of the newest checkpoint in {self.path}: give at"
                f" least {newest}, or choose another --out"
            )

    def record(self, config: Any) -> None:
        """Write the settings, and once add the command line to the others: a first new step of the run was made."""
        write_atomically(self.path / "config.yaml", reader.dump(config).encode())
        if self.has_command:
            return
        words = shlex.join(sys.argv).encode("utf-8", "surrogateescape")  # a path may be any bytes
        file = self.path / "command.txt"
        write_atomically(file, (file.read_bytes() if file.exists() else b"") + words + b"\n")
        self.has_command = True

    def restore_config(self, config: Any) -> None:
        """Where config.yaml asks for more steps than the run has finished, write it as it was."""
        old, done = self.recorded(config), self.finished_steps()
        if old is not None and old.run.steps > done:
            before = replace(config, run=replace(config.run, steps=done, graph=old.run.graph))
            write_atomically(self.path / "config.yaml", reader.dump(before).encode())

    def recorded(self, config: Any) -> Any:
        """The settings in the folder, of the same kind as `config`; None if there are none."""
        file = self.path / "config.yaml"
        return reader.load(type(config), file, {}) if file.exists() else None

    def graph_before(self, config: Any) -> str:
        """What `run.graph` was as the run began; empty if there is nothing to go on from."""
        old = self.recorded(config) if self.has_begun() else None
        return "" if old is None else str(old.run.graph)

    def check_usable(self, config: Any) -> None:
        """Raise ConfigError for a name that weights cannot have, for a folder that holds what could be lost, and where
        the run's panels would be training images.
        """
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"--out {self.path} is not in UTF-8, and safetensors opens no such file: choose another --out"
            ) from error
        check_not_among_images("--out", self.path, config.data)
        try:
            found = in_the_way(self.path)
        except OSError as error:
            raise ConfigError(
                f"--out {self.path} cannot be a run folder: {error.strerror}: {error.filename}"
            ) from error
        if found:
            raise ConfigError(
                f"--out {self.path} is no run's folder and holds {found}, which could be lost: choose an empty or a new"
                " folder"
            )

    def has_begun(self) -> bool:
        """Whether there is something to go on from; until then a wrong setting can still be put right."""
        return bool(checkpoint.steps(self.checkpoints)) or self.finished.exists()

    def check_same_config(self, new: Any) -> None:
        """Raise ConfigError if the folder was started with settings that a resumed run may not change."""
        if not self.has_begun() or not (self.path / "config.yaml").exists():
            return
        check_run_format(self.path, "its vae/ is still read; to train, choose another --out")
        given = read_yaml(self.path / "config.yaml")
        for section, script in SCRIPTS.items():
            if isinstance(given, dict) and section in given and not hasattr(new, section):
                raise ConfigError(f"--out {self.path} is a run of {script}: choose another --out")
        old = self.recorded(new)
        if new.run.graph == "auto":
            new = replace(new, run=replace(new.run, graph=old.run.graph))
        changed = [
            name for name in reader.differences(reader.to_dict(old), reader.to_dict(new)) if name not in MAY_CHANGE
        ]
        if changed:
            raise ConfigError(
                f"{self.path} was started with another {', '.join(changed[:3])}{' ...' if changed[3:] else ''}:"
                " give the settings it had (config.yaml in it), or choose another --out"
            )

    def describe_environment(self, fingerprint: str, perceptual_weights: str, **facts: Any) -> None:
        """Write environment.json once.

        Later, raise DataError if the data are not those the run was started with, and ConfigError if
        `perceptual_weights`, the hash of the pretrained network in the loss, is another one, or among the facts
        `start`, a hash of what else the steps depend on of the run that this one started from.
        """
        file = self.path / "environment.json"
        if file.exists() and self.has_begun():
            if self.images_before() == facts.get("images", "") and read_entry(file, "data", str) != fingerprint:
                raise DataError(
                    f"the images are those that the run in {self.path} began with, but --autoencoder, its weights or"
                    " the conditions of the images changed: restore them, or choose another --out"
                )
            self.check_same_data(fingerprint, "choose another --out")
            if read_entry(file, "perceptual_weights", str) != perceptual_weights:
                raise ConfigError(
                    f"the weights of objective.perceptual changed since the run in {self.path} began: restore them, or"
                    " choose another --out"
                )
            if read_json(file).get("start", facts.get("start")) != facts.get("start"):
                raise ConfigError(
                    f"--from is another, or other weights lie there, than as the run in {self.path} began: give the one"
                    " it had (command.txt in it), or choose another --out"
                )
            return
        environment = {
            "format": RUN_FORMAT,
            "data": fingerprint,
            "perceptual_weights": perceptual_weights,
            **facts,
            "python": platform.python_version(),
            "packages": versions_of(PACKAGES),
        }
        write_atomically(file, json.dumps(environment, indent=2).encode())

    def check_same_images(self, images: str) -> None:
        """Raise DataError, before they are encoded, if the images are not those that the run was started with."""
        if self.has_begun() and (self.images_before() or images) != images:
            raise DataError(
                f"the data changed since the run in {self.path} began: restore them, or choose another --out"
            )

    def images_before(self) -> str | None:
        """The fingerprint of the images that the run was started with, where it has been noted."""
        file = self.path / "environment.json"
        noted = read_json(file) if file.exists() else None
        return noted.get("images") if isinstance(noted, dict) else None

    def check_same_data(self, fingerprint: str, way_out: str) -> None:
        """Raise DataError if the data are not those the run was started with."""
        if read_entry(self.path / "environment.json", "data", str) != fingerprint:
            raise DataError(f"the data changed since the run in {self.path} began: restore them, or {way_out}")

    def log(self, line: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The objects of metrics.jsonl; a line that a crash cut short, or that something else damaged, is left out."""
        if not self.metrics.exists():
            return []
        found = []
        for text in self.metrics.read_bytes().splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
        return found

    def draw_curves(self) -> None:
        """curves.png, from metrics.jsonl."""
        curves(self.lines(), self.path / "curves.png")

    def forget_after(self, step: int) -> None:
        """Drop what was logged, and the snapshots made, after `step`: a resumed run will log and make them again."""
        kept = [json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step]
        write_atomically(self.metrics, "".join(kept).encode())
        made = checkpoint.steps(self.snapshots)
        checkpoint.prune(self.snapshots, [each for each in made if each <= step], keep_newest=False)

    def mark_finished(self, config: Any) -> None:
        """Remember that everything up to and including the final export is on disk."""
        # Where a run that was stopped ends with the steps that it had, no new step has written its settings.
        write_atomically(self.path / "config.yaml", reader.dump(config).encode())
        write_atomically(self.finished, json.dumps({"step": config.run.steps}).encode())

    def finished_steps(self) -> int:
        """How many steps the run had when it was finished; 0 if it never was."""
        return read_entry(self.finished, "step", int) if self.finished.exists() else 0

    def is_finished(self, steps: int) -> bool:
        """Whether a run of `steps` has nothing left to do."""
        return self.finished_steps() >= steps
