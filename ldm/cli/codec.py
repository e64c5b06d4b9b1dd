"""`ldm codec fit`: an image codec of a trained autoencoder, for any rate."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.options import check_at_least_one, images_as_in_run, size_of
from ldm.config.command_line import Parser
from ldm.data.config import DataSourceConfig
from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.errors import ConfigError, DataError
from ldm.script_configs import vae_data_of

if TYPE_CHECKING:
    from ldm.autoencoder.model import Autoencoder
    from ldm.compression.codec import Codec
    from ldm.data.datasets import Dataset, Subset

MOST_IMAGES = 4096  # for training
MOST_MEASURED = 32  # held-out images


def parser() -> Parser:
    """The flags of `ldm codec fit`."""
    found = Parser("ldm codec fit", __doc__ or "")
    add, defaults = found.add_argument, EntropyModelConfig()
    add("run", metavar="RUN", help="a finished run, or whatever else ldm evaluate takes for an autoencoder")
    add("--data", metavar="IMAGES", help="a folder of images like those to compress (those that RUN was trained on)")
    add("--out", metavar="CODEC", type=Path, required=True, help="the folder to write")
    add("--size", metavar="HxW", help="what images are brought to; one number for a square (as the run was trained)")
    kinds = list(ENTROPY_MODELS)
    add(
        "--model",
        choices=kinds,
        default=defaults.kind,
        help="the entropy model, if it gains on factorized: %(default)s",
    )
    add("--steps", metavar="N", type=int, default=defaults.steps, help="of its training (%(default)s)")
    add("--equal-steps", action="store_true", help="one step for all channels, not one for each as it shows in images")
    add("--images", metavar="N", type=int, default=MOST_IMAGES, help="at most so many training images (%(default)s)")
    add("--seed", metavar="N", type=int, default=defaults.seed, help="of the training (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    if not arguments or arguments[0] not in ("fit", "-h", "--help"):
        raise ConfigError(f"ldm codec {' '.join(arguments[:1])}: the only command is ldm codec fit".replace(" :", ":"))
    options = parser().read(arguments[1:] if arguments[0] == "fit" else arguments)
    check_at_least_one(options, "steps", "images")
    if options.out.exists():
        raise ConfigError(f"--out {options.out} exists: choose another folder")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    options = parsed(arguments)
    run_data, size = vae_data_of(options.run), size_of(options.size)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import open_dataset
    from ldm.data.summary import what_was_found
    from ldm.entropy.categorical import import_constriction
    from ldm.terminal import writing
    from ldm.training.devices import choose_device

    import_constriction()
    autoencoder = Autoencoder.load(options.run)
    if options.data is not None:
        channels = autoencoder.network.image_channels
        data: DataSourceConfig = images_as_in_run(
            options.data, run=options.run, run_data=run_data, size=size, channels=channels
        )
    elif run_data is not None:
        data = run_data if size is None else replace(run_data, size=size)
    else:
        raise ConfigError(f"--data is missing: {options.run} is not a run of train_vae.py, to take its images")
    dataset = open_dataset(data, progress=True)
    print(what_was_found(dataset))
    training, held_out = sides_of(dataset, options.images)
    config = EntropyModelConfig(kind=options.model, steps=options.steps, seed=options.seed)
    autoencoder.to(choose_device(options.device))
    codec = fitted(autoencoder, training, held_out, config, equal_steps=options.equal_steps)
    print_measured(codec, len(held_out))
    with writing(options.out):
        codec.save(options.out)
    print(f"{options.out}: codec {codec.id[:8]}, entropy model {codec.entropy_model.config.kind}")


def fitted(
    autoencoder: "Autoencoder",
    training: "Subset",
    held_out: "Subset",
    config: EntropyModelConfig,
    *,
    equal_steps: bool = False,
) -> "Codec":
    """The codec of an autoencoder, with progress bars."""
    from tqdm import tqdm

    from ldm.compression.codec import Codec
    from ldm.compression.fitting import FittingProgress

    encoding = tqdm(total=len(training), desc="encoding", unit="image", delay=1)
    fitting = tqdm(total=config.steps, desc="fitting", unit="step", delay=1)
    with encoding, fitting:

        def on_step(bits: float) -> None:
            fitting.set_postfix_str(f"{bits:.2f} bits", refresh=False)
            fitting.update()

        return Codec.fit(
            autoencoder,
            (part.images() for part in training.chunks(32)),
            held_out.images(),
            config=config,
            equal_steps=equal_steps,
            progress=FittingProgress(encoding.update, on_step),
        )


def sides_of(dataset: "Dataset", most: int) -> "tuple[Subset, Subset]":
    """Training and held-out images; where none are held out, every tenth is now."""
    training, held_out = dataset.split()
    if not len(held_out):
        training, held_out = (
            replace(
                training, indices=[index for place, index in enumerate(training.indices) if (place % 10 == 0) == out]
            )
            for out in (False, True)
        )
    if not len(training) or not len(held_out):
        raise DataError(f"a codec is fitted to at least 2 images, and there are {len(dataset)}")
    return training.evenly_spaced(most), held_out.evenly_spaced(MOST_MEASURED)


def print_measured(codec: "Codec", images: int) -> None:
    """What the steps cost and give."""
    from ldm.compression.fitting import learned_step

    print(f"on {images} held-out images, without headers:")
    print(f"{'step':>8} {'bits per pixel':>15} {'factorized':>11} {'dB':>7}  with centroids")
    for each in codec.measured:
        rates = f"{each.bits_per_pixel:15.3f} {each.factorized_bits_per_pixel:11.3f}"
        print(f"{each.step:8.4g} {rates} {each.psnr:7.2f} {each.centroid_psnr:7.2f}")
    if (learned := learned_step(codec.autoencoder)) is not None:
        print(f"the autoencoder was trained for --step {learned:.4g}")
