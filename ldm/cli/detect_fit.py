"""Makes an anomaly detector of a model and normal images, with a threshold that holds a false-alarm rate."""

import argparse
import textwrap
from pathlib import Path

from ldm.anomaly.config import CHOICES, SCORES, DetectorConfig
from ldm.cli.detect_data import DATA, normal_config
from ldm.cli.options import check_at_least_one, check_new, nearest
from ldm.config import reader
from ldm.config.command_line import Parser, describe
from ldm.errors import ConfigError
from ldm.script_configs import data_of_run

SETTINGS = reader.setting_names(DetectorConfig)  # the first is `scores`


def parser() -> Parser:
    """The command line; the settings of the detector are described as those of the training scripts are."""
    found = Parser("ldm detect fit", __doc__ or "")
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    settings = describe(DetectorConfig, without=("scores",))
    scores = "\n".join(
        textwrap.fill(facts.sees, 120, initial_indent=f"  {name:24} ", subsequent_indent=" " * 27)
        for name, facts in SCORES.items()
    )
    found.epilog = f"settings of the detector:\n{settings}\n\nscores, and what each sees:\n{scores}"
    add = found.add_argument
    run = "a finished run of either script or what else ldm evaluate takes; or pca:K, features:FOLDER, which need none"
    add("run", metavar="RUN", help=run)
    add("--normal", metavar="DATA", required=True, help=f"normal images: {DATA}")
    add("--normal-class", metavar="NAME", help="the class of DATA that is normal (all of DATA is)")
    add("--out", metavar="DETECTOR", type=Path, required=True, help="a new folder for the detector")
    held_out = "share of the normal images that is left alone, for ldm detect evaluate (%(default)g)"
    add("--held-out", metavar="X", type=float, default=0.0, help=held_out)
    add("--size", metavar="HxW", help="what images are brought to; one number for a square (as the run was trained)")
    add("--channels", metavar="N", type=int, help="of the images (as the run takes them)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at a time (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--scores", metavar="A,B,...", help="names from below, all, or default; several are combined (default)")
    for name in SETTINGS[1:]:
        add(*dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]), dest=name, help=argparse.SUPPRESS)
    return found


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, DetectorConfig]:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "batch_size", "channels")
    check_new("--out", options.out)
    if not 0 <= options.held_out < 1:
        raise ConfigError(f"--held-out {options.held_out:g} must be at least 0 and below 1")
    for name in options.scores.strip("[] ").split(",") if options.scores else ():
        if name.strip() not in CHOICES:
            raise ConfigError(f"--scores {name.strip()} is no score; {nearest(name.strip(), CHOICES)}")
    lists = {"scores", "sigmas"}
    given = {name: text for name in SETTINGS if (text := getattr(options, name)) is not None}
    flags = {name: f"[{text.strip('[] ')}]" if name in lists else text for name, text in given.items()}
    return options, reader.load(DetectorConfig, None, flags)


def main(arguments: list[str]) -> None:
    """Fit the detector on as many processes as there are, and write it."""
    options, config = parsed(arguments)
    run_data = data_of_run(options.run)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.anomaly.detector import AnomalyDetector
    from ldm.anomaly.subject import open_subject
    from ldm.checkpoint import write_folder_atomically
    from ldm.cli.detect_normals import normal_images
    from ldm.training.processes import Processes

    processes = Processes(options.device)
    subject = processes.main_first(lambda: open_subject(options.run))
    channels = options.channels or subject.channels
    data = normal_config(
        options.normal, run_data, size=options.size, channels=channels, labeled=options.normal_class is not None
    )
    normal, remembered = processes.main_first(
        lambda: normal_images(options, data, run_data, config.seed, processes.is_main)
    )
    with tqdm(total=None, desc="fitting", unit="image", delay=1, disable=not processes.is_main) as bar:
        detector = AnomalyDetector.fit(
            subject,
            normal,
            config,
            processes=processes,
            batch_size=options.batch_size,
            say=print if processes.is_main else lambda line: None,
            on_images=bar.update,
        )

    def write(folder: Path) -> None:
        detector.save(folder)
        remembered.save(folder)

    processes.on_main(lambda: write_folder_atomically(options.out, write))
    if processes.is_main:
        print(f"{options.out}: {', '.join(detector.scores)}; threshold {detector.threshold:.4g}")
        print(detector.facts["guarantee"])
    processes.end()
