"""The `ldm` command: `ldm VERB ...`."""

import sys

from ldm.cli.commands import run_command
from ldm.terminal import exit_code_of

VERBS = {
    "evaluate": "measure an autoencoder on images, or the images that a diffusion model generates",
    "detect": "find what does not belong: fit a detector to normal images, score others",
    "encode": "write the latents of a folder of images to a file",
    "decode": "draw the images of latents in a file",
    "codec": "fit an image codec to a trained autoencoder",
    "compress": "compress images with a codec",
    "decompress": "decode the images that were compressed with a codec",
    "export": "write an autoencoder, or a diffusion model, for use elsewhere",
    "verify": "check every part against its closed form",
}


def main(arguments: list[str]) -> None:
    """Hand the arguments to the verb's own `main`, which is imported only now."""
    run_command("ldm", "verb", VERBS, "ldm.cli.", arguments)


def entry() -> None:
    """The console script."""
    sys.exit(exit_code_of(main, sys.argv[1:], resumes=False))


if __name__ == "__main__":
    entry()
