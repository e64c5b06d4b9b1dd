"""Measures an anomaly detector on labeled images: a class against the others, or the test part of MVTec's layout."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.detect_data import DATA, class_index, data_config
from ldm.cli.detect_score import add_detector, fail_if_unreadable, say_not_finite
from ldm.cli.options import check_at_least_one, check_new
from ldm.config.command_line import Parser
from ldm.data.config import MVTecConfig
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from ldm.anomaly.detector import AnomalyDetector
    from ldm.anomaly.image_scores import ImageScores
    from ldm.anomaly.labeled_images import LabeledImages
    from ldm.training.processes import Processes


def parser() -> Parser:
    """The command line."""
    found = Parser("ldm detect evaluate", __doc__ or "")
    add_detector(found)
    add = found.add_argument
    add("data", metavar="DATA", help=f"labeled images: {DATA}")
    add("--normal-class", metavar="NAME", help="the class of DATA that is normal (good, in MVTec's layout)")
    add("--out", metavar="FILE.json", type=Path, help="where the metrics and the protocol are written")
    add("--csv", metavar="FILE.csv", type=Path, help="where the scores of the images are written")
    add("--panel", metavar="FILE.png", type=Path, help="where the most anomalous and most normal images are drawn")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "batch_size")
    known: dict[Path, str] = {}
    for flag, path in (("--out", options.out), ("--csv", options.csv), ("--panel", options.panel)):
        if path is None:
            continue
        check_new(flag, path)
        if other := known.get(path.resolve()):
            raise ConfigError(f"{flag} {path} is the file of {other} too")
        known[path.resolve()] = flag
    if options.panel and options.panel.suffix.lower() != ".png":
        raise ConfigError(f"--panel {options.panel} must end in .png")
    return options


def main(arguments: list[str]) -> None:
    """Measure on as many processes as there are, write the files that were asked for, and print the table."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.anomaly.detector import AnomalyDetector
    from ldm.anomaly.image_scores import ImageScorer
    from ldm.data.summary import what_was_found
    from ldm.training.processes import Processes

    processes = Processes(options.device)
    detector = processes.main_first(
        lambda: AnomalyDetector.load(options.detector, model=options.model, device=processes.device)
    )
    labeled = processes.main_first(lambda: labeled_images(options, detector))
    if processes.is_main:
        print(what_was_found(labeled.dataset))
        if labeled.left_out:
            print(f"left out, as the detector was made with them: {labeled.left_out:,} normal images")
    total = len(labeled.indices)
    with tqdm(total=total, desc="scoring", unit="image", delay=1, disable=not processes.is_main) as bar:
        scorer = ImageScorer(detector, processes, options.batch_size, bar.update)
        found = scorer.score(labeled.dataset, labeled.indices, keep_maps=labeled.masks is not None)
    processes.on_main(lambda: write_results(options, detector, labeled, found, processes))
    fail_if_unreadable(found, "were not measured", processes)
    processes.end()


def labeled_images(options: argparse.Namespace, detector: "AnomalyDetector") -> "LabeledImages":
    """The images to measure on, or an error where nothing says which of them are normal, or all are of one kind."""
    from ldm.anomaly.labeled_images import mvtec_labeled, one_class_normal
    from ldm.anomaly.normal_images import NormalImages
    from ldm.data.datasets import list_dataset
    from ldm.data.mvtec import GOOD

    known = NormalImages.load(Path(options.detector), detector.shape)
    config = data_config(options.data, {**known.reading, "held_out": 0.0})
    if isinstance(config, MVTecConfig):
        if options.normal_class not in (None, GOOD):
            raise ConfigError(f"--normal-class {options.normal_class}: in MVTec's layout {GOOD} is the normal one")
        return mvtec_labeled(config, known)
    dataset = list_dataset(config)
    if options.normal_class is None:
        classes = ", ".join(dataset.classes[:6])
        raise ConfigError(
            f"{options.data} is not in MVTec's layout: name the class that is normal with --normal-class"
            + (f", of {classes}" if classes else "; it has no classes, as sub-folders or metadata name them")
        )
    return one_class_normal(dataset, class_index(dataset, options.normal_class, options.data), known)


def write_results(
    options: argparse.Namespace,
    detector: "AnomalyDetector",
    labeled: "LabeledImages",
    found: "ImageScores",
    processes: "Processes",
) -> None:
    """Write the files that were asked for, and print the table."""
    from ldm.anomaly.detection_report import report_lines
    from ldm.anomaly.score_files import sheet, table
    from ldm.checkpoint import write_atomically
    from ldm.pictures import save_png
    from ldm.terminal import writing

    say_not_finite(found)
    result = report(options, detector, labeled, found)
    if options.out:
        write_atomically(options.out, json.dumps(result, indent=2).encode())
    if options.csv:
        truth = labeled.is_anomalous(found.indices).tolist()
        write_atomically(options.csv, table(found, found.scores.pred_label, truth))
    if options.panel:
        with writing(options.panel):
            save_png(sheet(detector, found, processes.device, labeled.read_masks), options.panel)
    print("\n".join(report_lines(result)))


def report(
    options: argparse.Namespace, detector: "AnomalyDetector", labeled: "LabeledImages", found: "ImageScores"
) -> dict[str, Any]:
    """The protocol and the metrics, ready for JSON."""
    from ldm.anomaly.detection_report import Truth, measure
    from ldm.anomaly.score_files import described

    anomalous = labeled.is_anomalous(found.readable)
    truth = Truth(anomalous, labeled.kinds(found.readable), labeled.read_masks(found.readable))
    measured = measure(found.scores, found.scores.pred_label, truth)
    count = {
        "normal": int((~anomalous).sum()),
        "anomalous": int(anomalous.sum()),
        "unreadable": len(found.failures),
        "left_out": labeled.left_out,
    }
    return {
        **described(options.detector, detector, found),
        "data": options.data,
        "normal_class": labeled.dataset.classes[labeled.normal_label],
        "count": count,
        **measured,
    }
