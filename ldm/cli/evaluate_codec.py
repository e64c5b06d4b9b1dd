"""`ldm evaluate --codec`: rate-distortion curves of a codec on the images of a run, beside the classical codecs."""

import argparse
import json

from ldm.cli.evaluate_autoencoder import data_config, evaluation_set
from ldm.cli.options import size_of
from ldm.errors import ConfigError, DataError
from ldm.script_configs import vae_data_of

FIT = "fit"  # --codec without a value
MOST_COMPRESSED = 64  # images, unless --images says how many
UNUSED = ("fid", "fid_weights", "probe", "batch_size", "save_images")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults, or ConfigError."""
    for name in UNUSED:
        if getattr(options, name) not in (None, ""):
            raise ConfigError(f"--{name.replace('_', '-')} says nothing of a codec: leave it out")
    options.fid, options.probe, options.lpips = "none", "none", options.lpips or "none"
    if options.lpips_weights and options.lpips == "none":
        raise ConfigError("--lpips-weights is for a network that has weights: --lpips is none")
    return options


def run(options: argparse.Namespace) -> None:
    """Measure, write the files that were asked for, and print the table."""
    run_data, size = vae_data_of(options.run), size_of(options.size)

    import torch

    from ldm.autoencoder.model import Autoencoder
    from ldm.checkpoint import write_atomically
    from ldm.cli.codec import MOST_IMAGES, MOST_MEASURED, fitted
    from ldm.compression.codec import Codec
    from ldm.compression.rate_distortion import ImageMeter, as_json, classical_curves, curve_of_codec, draw, table
    from ldm.entropy.categorical import import_constriction
    from ldm.entropy.config import EntropyModelConfig
    from ldm.evaluation.feature_networks import open_perceptual_metric
    from ldm.evaluation.report_files import MARK
    from ldm.training.devices import choose_device

    import_constriction()
    device = choose_device(options.device)
    codec = None if options.codec == FIT else Codec.load(options.codec)
    autoencoder = Autoencoder.load(options.run) if codec is None else codec.autoencoder
    data = data_config(options, run_data, size, autoencoder.network.image_channels)
    evaluated = evaluation_set(options, data, run_data, progress=True)
    if codec is None:
        if not len(evaluated.training):
            raise DataError(
                f"there is nothing to fit a codec to: name one that ldm codec fit wrote, --codec {FIT.upper()}"
            )
        parts = evaluated.training.evenly_spaced(MOST_IMAGES), evaluated.images.evenly_spaced(MOST_MEASURED)
        codec = fitted(autoencoder.to(device), *parts, EntropyModelConfig())
    images = evaluated.images.evenly_spaced(options.images or MOST_COMPRESSED)
    metric = open_perceptual_metric(options.lpips, options.lpips_weights, torch.device("cpu"))
    meter = ImageMeter(images.images(), metric)
    curves = [curve_of_codec(codec.to(device), meter, name="ldm"), *classical_curves(meter, print)]
    found = {
        "codec": {"source": options.codec, "id": codec.id, "entropy_model": codec.entropy_model.config.kind},
        "images": {"split": evaluated.split, "count": len(images), "shape": list(images.shape)},
        **as_json(curves),
    }
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=2).encode())
    if options.panel:
        draw(curves, options.panel, MARK)
    print(f"{len(images)} {evaluated.split} images of {' x '.join(map(str, images.shape))}")
    print(table(curves))
