"""A sweep: the same samples drawn with several values of one setting, measured one after the other, and resumable."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_json, write_atomically
from ldm.errors import CheckpointError, ConfigError
from ldm.evaluation.formatting import format_metric
from ldm.evaluation.generation import RealImages
from ldm.evaluation.generation_report import header, report
from ldm.evaluation.image_sets import ImageSetReader, SamplingSettings
from ldm.evaluation.report_files import MARK
from ldm.evaluation.samples import draw_samples, held_out_denoising, measure
from ldm.pictures import import_matplotlib
from ldm.pipeline import LatentDiffusion
from ldm.training.snapshots import load_average

COLUMNS = {
    "Fréchet": ("against_training", "samples", "frechet"),
    "kernel": ("against_training", "samples", "kernel"),
    "precision": ("against_training", "samples", "precision"),
    "recall": ("against_training", "samples", "recall"),
    "density": ("against_training", "samples", "density"),
    "coverage": ("against_training", "samples", "coverage"),
    "Fréchet to held-out": ("against_held_out", "samples", "frechet"),
    "read as class": ("classification", "read_as_class"),
    "accuracy score": ("classification", "classification_accuracy_score"),
}
REFERENCES = {"held_out": "held-out images", "training": "training images", "gaussian": "samples of the Gaussian"}
STYLES = {"held_out": "--", "training": "--", "gaussian": ":"}


@dataclass(frozen=True)
class Sweep:
    """Over which values of which of the sampling settings, and the file that holds what is measured so far, if any."""

    setting: str
    values: Sequence[float | int | str]
    out: Path | None


def check_resumable(sweep: Sweep) -> None:
    """Raise ConfigError if the file is there and holds no sweep over this setting."""
    if sweep.out is None or not sweep.out.exists():
        return
    try:
        found = read_json(sweep.out)
    except CheckpointError:
        found = None
    rows = found.get("rows") if isinstance(found, dict) and found.get("sweep") == sweep.setting else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"--out {sweep.out} is there, and is no sweep over {sweep.setting}: choose another file")


def run_sweep(
    sweep: Sweep,
    model: LatentDiffusion,
    real: RealImages,
    sampling: SamplingSettings,
    num: int,
    source: str,
    reader: ImageSetReader,
) -> dict[str, Any]:
    """Measure at each value that the file does not hold yet, and write the file after each: ready for JSON."""
    settings = [swept(sampling, sweep.setting, value) for value in sweep.values]
    head = header(real, num, model, settings[0], source)
    measured = next(reader.processes.map(1, lambda _: rows_in_file(sweep, head)))
    denoising = held_out_denoising(real, model, reader)
    rows = []
    for value, each in zip(sweep.values, settings, strict=True):
        row = next((row for row in measured if row.get("value") == value), None)
        if row is None:
            if sweep.setting == "ema":
                load_average(model.denoiser, source, float(value))
            samples = draw_samples(model, real, each, num, reader)
            metrics = measure(real, samples, reader)
            if sweep.setting == "ema" and denoising is not None:
                metrics["denoising"] = held_out_denoising(real, model, reader)
            row = {"value": value, **report(header(real, num, model, each, source), samples, metrics)}
            measured.append(row)
        rows.append(row)
        found = {"sweep": sweep.setting, "denoising": denoising, "rows": measured}
        reader.processes.on_main(partial(written, sweep, found))
    return {**found, "rows": rows}


def swept(sampling: SamplingSettings, setting: str, value: Any) -> SamplingSettings:
    """The settings with another value of one of them."""
    return replace(sampling, **{setting: value})


def written(sweep: Sweep, found: dict[str, Any]) -> None:
    """Write what is measured so far."""
    if sweep.out is not None:
        write_atomically(sweep.out, json.dumps(found, indent=2).encode())


def rows_in_file(sweep: Sweep, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """What is measured already; ConfigError if it was measured otherwise."""
    if sweep.out is None or not sweep.out.exists():
        return []
    rows: list[dict[str, Any]] = read_json(sweep.out)["rows"]
    for row in rows:
        if different := first_difference(comparable(row, sweep.setting), comparable(expected, sweep.setting)):
            raise ConfigError(f"--out {sweep.out} holds a sweep with another {different}: choose another file")
    return rows


def comparable(row: dict[str, Any], setting: str) -> dict[str, Any]:
    """All that must be the same in the rows of a sweep, as JSON has it, by dotted name."""
    kept = {name: row.get(name) for name in ("samples", "protocol", "data")}
    varying = ["samples.sha256", f"protocol.sampling.{setting}", *["samples.denoiser"] * (setting == "ema")]
    return {name: value for name, value in flat(json.loads(json.dumps(kept))).items() if name not in varying}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The name of the first value that is not the same; empty if all are."""
    return next((name for name in {**one, **other} if one.get(name) != other.get(name)), "")


def sweep_table(found: dict[str, Any]) -> str:
    """The metrics as a person reads them, a line for each value, and below what they are beside."""
    setting, rows = found["sweep"], found["rows"]
    columns = columns_of(rows[0])
    lines = [(str(row["value"]), [metric_at(row, place) for place in columns.values()]) for row in rows]
    for name, title in REFERENCES.items():
        places = [(side, name, *rest) if side.startswith("against") else () for side, _, *rest in columns.values()]
        values = [metric_at(rows[0], place) if place else None for place in places]
        if any(value is not None for value in values):
            lines.append((title, values))
    width = max(len(setting), *(len(title) for title, _ in lines))
    text = [f"{setting:{width}}" + "".join(f"{name:>{max(11, len(name) + 2)}}" for name in columns)]
    for title, values in lines:
        shown = ("" if value is None else format_metric(value) for value in values)
        cells = (f"{cell:>{max(11, len(name) + 2)}}" for cell, name in zip(shown, columns, strict=True))
        text.append(f"{title:{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in text)


def columns_of(row: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The metrics that a row has, by title, with their places in it."""
    read = {f"read as {name}": ("conditions", name, "read_as_asked") for name in row["metrics"].get("conditions", {})}
    return {name: place for name, place in {**COLUMNS, **read}.items() if metric_at(row, place) is not None}


def metric_at(row: dict[str, Any], place: Sequence[str]) -> float | None:
    """A metric of a row by its names; None where it was not measured."""
    found: Any = row["metrics"]
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def draw_sweep(found: dict[str, Any], path: Path) -> None:
    """Save the metrics over the values, one small plot each, with those of held-out images and of the Gaussian."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["rows"]
    columns = columns_of(rows[0])
    height = -(-len(columns) // 3)
    figure = Figure(figsize=(12.6, 2.6 * height))
    FigureCanvasAgg(figure)
    values = [row["value"] for row in rows]
    for number, (name, place) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(height, 3, number)
        axes.plot(values, [metric_at(row, place) or 0.0 for row in rows], marker=".", label="samples")
        for other, title in REFERENCES.items():
            level = metric_at(rows[0], (place[0], other, *place[2:])) if place[0].startswith("against") else None
            if level is not None:
                axes.axhline(level, linestyle=STYLES[other], linewidth=1, color="gray", label=title)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize=6)
        if number > len(columns) - 3:
            axes.set_xlabel(found["sweep"], fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata=MARK)
