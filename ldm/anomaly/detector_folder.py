"""The folder of an anomaly detector: detector.json, and what was fitted as safetensors; the model is not in it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ldm.anomaly.combination import LogisticTail
from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.fitting import FittedScores
from ldm.anomaly.scorer import ComponentWeights, Scorer, ScoreScale, opened
from ldm.anomaly.scores import DENSITY_INPUTS, ScoreParts
from ldm.anomaly.subject import Subject, open_subject
from ldm.checkpoint import read_json, write_folder_atomically
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.diffusion.gaussian import LatentGaussian
from ldm.errors import CheckpointError, ConfigError, LDMError

FORMAT = 1
DESCRIPTION, TENSORS = "detector.json", "detector.safetensors"


def write_detector(fitted: FittedScores, facts: Mapping[str, Any], folder: Path) -> None:
    """Write a new folder, all of it or nothing; ConfigError if there is something in its place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and nothing is overwritten: choose another folder")
    scorer = fitted.scorer
    config = replace(scorer.config, backbone=absolute(scorer.config.backbone))
    description = {
        "format": FORMAT,
        **facts,
        "model": absolute(scorer.subject.source),
        "weights": scorer.identity,
        "config": to_dict(config),
        "scales": {name: asdict(scale) for name, scale in fitted.scales.items()},
    }
    tensors = {"calibration": fitted.calibration, "map_calibration": fitted.map_calibration, **scorer.subject.state()}
    for name, gaussian in scorer.parts.densities.items():
        tensors |= {f"{name}.{key}": value for key, value in gaussian.state_dict().items()}

    def write(new: Path) -> None:
        (new / DESCRIPTION).write_text(json.dumps(description, indent=2))
        safetensors.torch.save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, new / TENSORS)

    write_folder_atomically(folder, write)


def absolute(source: str) -> str:
    """What a person named, with the folder in it by its whole path, so that it is found from elsewhere."""
    kind, _, rest = source.partition(":")
    if kind == "features":
        return f"{kind}:{Path(rest).resolve()}"
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def read_detector(folder: Path, model: Subject | str | Path | None) -> FittedScores:
    """What `write_detector` wrote, around the model that it names, or around another place of it."""
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder} is not a detector: it has no {DESCRIPTION}")
    described = read_json(folder / DESCRIPTION)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(f"{folder / DESCRIPTION} is not a detector of this version: fit it again")
    try:
        tensors = safetensors.torch.load_file(folder / TENSORS)
        config: DetectorConfig = from_plain(DetectorConfig, described["config"])
        channels, height, width = described["shape"]
        names, counts, weights = described["scores"], described["normal_images"], described["weights"]
        scales = {name: scale_of(described["scales"][name]) for name in names}
        calibration, peaks = tensors["calibration"], tensors["map_calibration"]
        densities = {name: density_of(name, tensors) for name in names if name in DENSITY_INPUTS}
        source = described["model"]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the detector in {folder} is damaged: {' '.join(str(error).split())[:160]}") from error
    subject = opened_model(folder, source, model)
    perceptual = opened(config, "reconstruction-features" in names)
    scorer = Scorer(subject, config, (channels, height, width), names, ScoreParts(config, densities, perceptual))
    if not subject.has_given(tensors):
        raise CheckpointError(f"{folder} was fitted with another number of components than {subject.source} has")
    if scorer.identity != weights:
        raise CheckpointError(
            f"{folder} was fitted with other weights than those in {subject.source}: fit it again, or name the model"
            " that it was fitted with"
        )
    subject.load_state(tensors)
    return FittedScores(scorer, scales, calibration, peaks, counts)


def opened_model(folder: Path, source: str, model: Subject | str | Path | None) -> Subject:
    """The model of a detector; an error that names the detector where it is not where it was."""
    if isinstance(model, Subject):
        return model
    try:
        return open_subject(model or source)
    except LDMError as error:
        if model is not None:
            raise
        raise CheckpointError(f"the model of {folder} cannot be opened; name it if it has moved: {error}") from error


def scale_of(saved: Mapping[str, Any]) -> ScoreScale:
    """A scale from the plain values of JSON."""
    components = saved["components"]
    return ScoreScale(
        ComponentWeights(tuple(map(float, components["weights"])), float(components["offset"])),
        LogisticTail(float(saved["tail"]["location"]), float(saved["tail"]["scale"])),
        float(saved["map_mean"]),
        float(saved["map_std"]),
    )


def density_of(name: str, tensors: Mapping[str, Tensor]) -> LatentGaussian:
    """The Gaussian of a score among saved tensors."""
    found = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    channels, height, width = found["mean"].shape
    gaussian = LatentGaussian((channels, height, width), found["basis"].shape[1])
    gaussian.load_state_dict(found)
    return gaussian
