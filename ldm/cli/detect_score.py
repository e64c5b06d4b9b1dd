"""Says of each image of a folder whether it is an anomaly, with a score and a p-value, and where."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.detect_data import data_config
from ldm.cli.options import check_at_least_one, check_new
from ldm.config.command_line import Parser
from ldm.errors import ConfigError, DataError
from ldm.terminal import amount

if TYPE_CHECKING:
    from ldm.anomaly.detector import AnomalyDetector
    from ldm.anomaly.image_scores import ImageScores
    from ldm.anomaly.score_files import ScoreFolder
    from ldm.training.processes import Processes


def parser() -> Parser:
    """The command line."""
    found = Parser("ldm detect score", __doc__ or "")
    add_detector(found)
    add = found.add_argument
    add("images", metavar="IMAGES", help="a folder of images, or a file of them, as data.path takes it")
    add("--out", metavar="FOLDER", type=Path, required=True, help="a new folder for scores.csv, maps and the sheet")
    fdr = "call those anomalies of which a share of Q at most is normal, on average (by the threshold alone)"
    add("--fdr", metavar="Q", type=float, help=fdr)
    add("--no-maps", action="store_true", help="write no map of each image")
    return found


def add_detector(parser: Parser) -> None:
    """What every command takes that uses a detector."""
    add = parser.add_argument
    add("detector", metavar="DETECTOR", help="what ldm detect fit wrote")
    add("--model", metavar="RUN", help="where its model is now (where it was)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at a time (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "batch_size")
    check_new("--out", options.out)
    if options.fdr is not None and not 0 < options.fdr < 1:
        raise ConfigError(f"--fdr {options.fdr:g} must be above 0 and below 1")
    return options


def main(arguments: list[str]) -> None:
    """Score the images on as many processes as there are, and write all files."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.anomaly.detector import AnomalyDetector
    from ldm.anomaly.image_scores import ImageScorer
    from ldm.anomaly.normal_images import NormalImages
    from ldm.anomaly.score_files import ScoreFolder, heat_scale
    from ldm.data.datasets import list_dataset
    from ldm.data.mvtec import is_mvtec
    from ldm.data.summary import what_was_found
    from ldm.training.processes import Processes

    if is_mvtec(options.images):
        raise ConfigError(
            f"{options.images} is in MVTec's layout: score {options.images}/test, or use ldm detect evaluate"
        )
    processes = Processes(options.device)
    detector = processes.main_first(
        lambda: AnomalyDetector.load(options.detector, model=options.model, device=processes.device)
    )
    reading = NormalImages.load(Path(options.detector), detector.shape).reading
    config = data_config(options.images, {**reading, "held_out": 0.0}, labels="none", split="none")
    dataset = processes.main_first(lambda: list_dataset(config))
    if processes.is_main:
        print(what_was_found(dataset))
    folder = ScoreFolder(options.out, dataset, None if options.no_maps else heat_scale(detector))
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=len(dataset), desc="scoring", unit="image", delay=1, disable=not processes.is_main)
        )
        stack.enter_context(folder.open(processes))
        scorer = ImageScorer(detector, processes, options.batch_size, bar.update)
        found = scorer.score(dataset, range(len(dataset)), on_batch=folder.write_maps)
        anomalies = processes.on_main(lambda: write_results(options, folder, detector, found, processes))
    if processes.is_main:
        print(f"{options.out}: {amount(len(found.readable), 'image')}, {anomalies} of them anomalies")
    fail_if_unreadable(found, f"have no score in {options.out / 'scores.csv'}", processes)
    processes.end()


def write_results(
    options: argparse.Namespace,
    folder: "ScoreFolder",
    detector: "AnomalyDetector",
    found: "ImageScores",
    processes: "Processes",
) -> int:
    """Write the table, the protocol and the sheet; returns how many images are anomalies."""
    from ldm.anomaly.conformal import benjamini_hochberg
    from ldm.anomaly.score_files import described, sheet, table
    from ldm.pictures import save_png

    scores = found.scores
    labels = scores.pred_label if options.fdr is None else benjamini_hochberg(scores.p_value, options.fdr)
    decided = {"pred_label": "pred_score above the threshold"}
    if options.fdr is not None:
        decided = {"pred_label": "Benjamini-Hochberg selection by p_value", "fdr": options.fdr}
    report = {
        **described(options.detector, detector, found),
        "images": options.images,
        "anomalies": int(labels.sum()),
        **decided,
    }
    say_not_finite(found)
    with folder.named_in_errors():
        (folder.partial / "scores.csv").write_bytes(table(found, labels))
        (folder.partial / "scores.json").write_text(json.dumps(report, indent=2))
        save_png(sheet(detector, found, processes.device), folder.partial / "sheet.png")
    return int(labels.sum())


def say_not_finite(found: "ImageScores") -> None:
    """Name every image with a score that is not a finite number."""
    for name, scores in found.not_finite.items():
        print(f"{name}: {', '.join(scores)} is not a finite number, which counts as an anomaly", file=sys.stderr)


def fail_if_unreadable(found: "ImageScores", consequence: str, processes: "Processes") -> None:
    """Name the images without a score, and raise DataError on every process; all files are written by then."""

    def fail() -> None:
        for failure in found.failures.values():
            print(f"unreadable: {failure}", file=sys.stderr)
        if found.failures:
            count, total = len(found.failures), len(found.indices)
            raise DataError(f"{count} of {total} images cannot be read, and {consequence}")

    processes.on_main(fail)
