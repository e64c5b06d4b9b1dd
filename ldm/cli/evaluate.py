"""Measures what an autoencoder loses: figures of its reconstructions and of its latents."""

import argparse
import errno
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ldm.autoencoder.config import PerceptualConfig
from ldm.config.command_line import Parser
from ldm.data.config import DataConfig, DataSourceConfig, FolderConfig
from ldm.errors import CheckpointError, ConfigError, DataError
from ldm.settings import stage_one_of

if TYPE_CHECKING:
    from ldm.autoencoder.model import Autoencoder
    from ldm.evaluation.protocol import Pictures

SPLITS = ("held-out", "training", "all")
PROBES = ("mean", "flat", "none")
MAX_SHOWN = 16  # channels, one by one
MAX_FEATURES = 2**14  # of a probe: 10,000 images of so many numbers are 1.3 GB in float64
NETWORKS = (*get_args(get_type_hints(PerceptualConfig)["backbone"]), "none")
LATENT_FIGURES = {
    "kl_per_latent_element": "KL per latent element, nats",
    "latent_mean": "latent mean",
    "latent_std": "latent std",
    "latent_spectrum_slope": "spectrum slope",
    "encoder_jacobian": "encoder Jacobian",
}


def parser() -> Parser:
    """The command line."""
    parser = Parser("ldm evaluate", __doc__ or "")
    add = parser.add_argument
    add("run", metavar="RUN", help="a finished run, an AutoencoderKL folder, a CompVis-keyed .safetensors, or a hub id")
    add("--data", metavar="PATH", help="a folder of images (the run's own data)")
    add("--size", metavar="HxW", help="what images are brought to; one number for a square (as the run was trained)")
    add("--split", choices=SPLITS, help="which of the images (held-out of the run's own data, all of --data)")
    add("--images", metavar="N", type=int, help="how many images, evenly spread over them (all)")
    add("--lpips", choices=NETWORKS, default="none", help="the network of the perceptual distance (%(default)s)")
    add("--lpips-weights", metavar="PATH", default="", help="its file of weights, or the folder of features")
    fid = ("inception", *NETWORKS)
    add("--fid", choices=fid, default="none", help="the network of the Fréchet distance (%(default)s)")
    add("--fid-weights", metavar="PATH", default="", help="its file of weights, or the folder of features")
    probe = "what of a latent kNN and a linear classifier are given: the mean over positions, or all (%(default)s)"
    add("--probe", choices=PROBES, default="none", help=probe)
    add("--batch-size", metavar="N", type=int, default=32, help="images at a time (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--out", type=Path, metavar="FILE.json", help="where the figures and the protocol are written")
    add("--panel", type=Path, metavar="FILE.png", help="where eight images and their reconstructions are drawn")
    return parser


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    for name in ("images", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    for name in ("lpips", "fid"):
        if getattr(options, f"{name}_weights") and (kind := getattr(options, name)) in ("none", "random"):
            raise ConfigError(f"--{name}-weights is for a network that has weights: --{name} is {kind}")
    if options.probe != "none" and split_of(options) != "held-out":
        raise ConfigError(
            f"--probe {options.probe} is fitted to the training images and measured on others: use --split held-out"
        )
    if options.panel and options.panel.suffix.lower() != ".png":
        raise ConfigError(f"--panel {options.panel} must end in .png")
    for name in ("out", "panel"):  # now, and not after the work
        path = getattr(options, name)
        if path and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise ConfigError(
                f"--{name} {path} cannot be written: {'it is' if path.is_dir() else 'it is in no'} folder"
            )
    return options


def split_of(options: argparse.Namespace) -> str:
    """Which of the images are measured."""
    return options.split or ("all" if options.data else "held-out")


def main(arguments: list[str]) -> None:
    """Do what the command line says, on as many processes as there are."""
    options = parsed(arguments)
    of_run = stage_one_of(options.run)
    config = None if of_run is None else of_run.data
    size = None if options.size is None else size_of(options.size)

    from tqdm import tqdm

    from ldm.autoencoder.model import Autoencoder
    from ldm.evaluation.feature_networks import open_extractor, open_perceptual_metric
    from ldm.evaluation.protocol import evaluate
    from ldm.training.processes import Processes

    processes = Processes(options.device)

    def prepared() -> Any:
        autoencoder = Autoencoder.load(options.run).requires_grad_(False)
        if not autoencoder.decodes_images and (options.lpips, options.fid) != ("none", "none"):
            raise ConfigError(f"--lpips and --fid are for images, and {options.run} decodes to normalized patches")
        channels = autoencoder.network.image_channels
        distance = open_perceptual_metric(options.lpips, options.lpips_weights, processes.device)
        extractor = open_extractor(options.fid, options.fid_weights, channels, processes.device)
        data = chosen_data(options, config, size, channels)
        pictures = chosen_pictures(options, data, config, processes.is_main)
        if options.probe != "none":
            check_probe(options.probe, autoencoder, pictures)
        return autoencoder, distance, extractor, pictures

    autoencoder, distance, extractor, pictures = processes.main_first(prepared)
    total = len(pictures.indices) + (len(pictures.fitted) if options.probe != "none" else 0)
    with tqdm(total=total, desc="evaluating", unit="image", delay=1, disable=not processes.is_main) as bar:
        result = evaluate(
            autoencoder,
            pictures,
            processes,
            distance=distance,
            extractor=extractor,
            probe=options.probe,
            batch_size=options.batch_size,
            on_images=bar.update,
        )
    for _ in processes.results(1, lambda _: finish(options, result, autoencoder, pictures)):
        pass
    processes.end()


def size_of(text: str) -> int | tuple[int, int]:
    """`--size`: what data.size is."""
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--size {text} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def chosen_data(
    options: argparse.Namespace, of_run: DataSourceConfig | None, size: int | tuple[int, int] | None, channels: int
) -> DataSourceConfig:
    """The settings of the images to measure on, or ConfigError."""
    if options.data is None:
        if of_run is None:
            raise ConfigError(f"{options.run} is not a run of train_vae.py: name the images with --data PATH")
        if of_run.channels != channels:
            raise CheckpointError(
                f"the autoencoder {options.run} takes {channels} channels, not data.channels {of_run.channels}"
            )
        return replace(of_run, size=size or of_run.size)
    if of_run is None and size is None:
        raise ConfigError(f"--size is missing: {options.run} is not a run of train_vae.py, to take it from")
    shared = {} if of_run is None else {each.name: getattr(of_run, each.name) for each in fields(DataConfig)}
    return FolderConfig(**{**shared, "path": options.data, "channels": channels, "size": size or shared["size"]})


def check_same_data(options: argparse.Namespace, fingerprint: str, same_size: bool, progress: bool) -> None:
    """Raise DataError if the run's own images are not those any more that it was trained on."""
    from ldm.training.run_folder import RunFolder

    if same_size:
        RunFolder(Path(options.run)).refuse_other_data(fingerprint, "name others with --data PATH")
    elif progress:
        print(f"at another --size the images are not compared with those that {options.run} was trained on")


def chosen_pictures(
    options: argparse.Namespace, data: DataSourceConfig, of_run: DataSourceConfig | None, progress: bool
) -> "Pictures":
    """The images to measure on, and those that anchors are fitted to.

    Raises an error where there are none or too few, or where they are no longer those of the run.
    """
    from ldm.data.datasets import open_dataset
    from ldm.data.split import split
    from ldm.evaluation.protocol import Pictures, evenly_spaced

    wanted = split_of(options)
    dataset = open_dataset(data, progress=progress)
    if options.data is None and of_run is not None:
        check_same_data(options, dataset.fingerprint, data.sides == of_run.sides, progress)
    training, held_out = split(dataset.groups, data.held_out, data.split_seed)
    indices = {"held-out": held_out.tolist(), "training": training.tolist(), "all": list(range(len(dataset)))}[wanted]
    if not indices:
        advice = "choose --split training or all" if options.probe == "none" else "--probe needs some"
        raise DataError(f"there are no held-out images (data.held_out is 0): {advice}")
    if options.images is not None and options.images > len(indices):
        raise ConfigError(f"--images {options.images} is more than the {len(indices)} {wanted} images")
    if options.fid != "none" and (options.images or len(indices)) < 2:
        raise ConfigError("--fid needs at least 2 images")
    anchors = [] if options.data and wanted == "all" else training.tolist()
    return Pictures(dataset, data, wanted, evenly_spaced(indices, options.images or len(indices)), anchors)


def check_probe(probe: str, autoencoder: "Autoencoder", pictures: "Pictures") -> None:
    """Raise an error where there are no classes to tell apart, or too many features to do it with."""
    if len(set(pictures.dataset.labels[pictures.fitted].tolist())) < 2:
        raise DataError(
            f"--probe {probe} needs training images of at least two classes: a folder has one sub-folder for each"
        )
    numbers = math.prod(autoencoder.latent_shape(pictures.config.sides))
    if probe == "flat" and numbers > MAX_FEATURES:
        raise ConfigError(
            f"--probe flat takes latents of up to {MAX_FEATURES} numbers, not of {numbers}: use --probe mean"
        )


def finish(
    options: argparse.Namespace, result: dict[str, Any], autoencoder: "Autoencoder", pictures: "Pictures"
) -> None:
    """Write what was asked for, and say the rest."""
    import numpy as np

    from ldm.checkpoint import write_atomically
    from ldm.evaluation.held_out import ReconstructionPanel

    result = {"autoencoder": {"source": options.run, **result.pop("autoencoder")}, **result}
    if options.out:
        write_atomically(options.out, json.dumps(result, indent=2).encode())
    if options.panel:
        panel = ReconstructionPanel(pictures.dataset, pictures.config, np.array(pictures.indices))
        try:
            panel.draw(autoencoder, options.panel)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckpointError(f"could not write {options.panel}: {error.strerror or error}") from error
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The report as a person reads it."""
    figures, protocol = result["figures"], result["protocol"]
    image, latent = (" x ".join(map(str, protocol[name])) for name in ("image", "latent"))
    rows = [("images", f"{result['count']} ({protocol['split']}), each {image}, in latents of {latent}")]
    if result["unreadable"]:
        rows.append(("unreadable", f"{result['unreadable']}, replaced by others"))
    rows += [("PSNR", shown(figures["psnr"], " dB")), ("SSIM", shown(figures["ssim"]))]
    for title, name in (("global PCA", "pca_psnr"), ("PCA per patch", "patch_pca_psnr")):
        without = "not defined: too few training images" if protocol["anchors"] else "not measured: no training images"
        if name == "patch_pca_psnr" and protocol["latent"][1:] == [1, 1]:
            without = "the same: there is one patch"
        rows.append((f"  PSNR of {title}", shown(figures[name], " dB", without)))
    for key, advice in (("distance", "--lpips vgg"), ("frechet", "--fid inception")):
        if metric := protocol[key]:
            few = metric.get("fewer_images_than_dimensions")
            note = f" (too large: no more images than the {metric['dimensions']} features)" if few else ""
            title = "rFID" if metric["name"] == "rfid" else metric["name"]
            rows.append((title, shown(figures[metric["name"]]) + note))
        else:
            rows.append((key, f"not measured: ask with {advice}"))
    rows += probe_rows(figures, protocol["probe"]) + code_rows(result)
    rows += [(title, shown(figures[name])) for name, title in LATENT_FIGURES.items()]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:{width}}  {text}" for title, text in rows)


def probe_rows(figures: dict[str, Any], probe: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The accuracies of the probes, each beside that of pixels."""
    if probe is None:
        return [("probe", "not measured: ask with --probe mean, where images have classes")]
    given = f" (of {probe['dimensions']} numbers, {probe['training_images']} training images)"
    rows = []
    for title, name in (("kNN accuracy", "knn_accuracy"), ("linear accuracy", "linear_accuracy")):
        rows += [(title, shown(figures[name]) + given), ("  of the pixels", shown(figures[f"pixel_{name}"]))]
        given = ""
    return rows


def code_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What the code explains and, of a sparse one, how much of it is used."""
    figures, rows = result["figures"], [("explained variance", shown(result["figures"]["explained_variance"]))]
    if result["autoencoder"]["bottleneck"] == "sparse":
        of_all = f" of {math.prod(result['protocol']['latent'])}"
        rows.append(("code elements not 0", shown(figures["code_l0"], of_all)))
        rows.append(("units that are always 0", shown(100 * figures["dead_units"], " %")))
    return rows


def shown(value: Any, unit: str = "", without: str = "not defined") -> str:
    """A figure, or several: of many, the smallest and the largest."""
    if value is None:
        return without
    if isinstance(value, list) and len(value) > MAX_SHOWN:
        return f"{min(value):.4g} to {max(value):.4g}, in {len(value)} channels"
    return " ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value])) + unit
