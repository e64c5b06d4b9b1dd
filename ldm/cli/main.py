"""The `ldm` command: `ldm VERB ...`."""

import importlib
import sys
from difflib import get_close_matches

from ldm.errors import ConfigError
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
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        rows = "\n".join(f"  {name:12} {what}" for name, what in VERBS.items())
        print(f"usage: ldm VERB ...\n\n{rows}\n\n`ldm VERB --help` says more.")
    elif verb in VERBS:
        importlib.import_module(f"ldm.cli.{verb}").main(arguments[1:])
    else:
        near = get_close_matches(verb, VERBS, n=1)
        raise ConfigError(f"{verb} is not a verb of ldm; {f'did you mean {near[0]}?' if near else 'see ldm --help'}")


def entry() -> None:
    """The console script."""
    sys.exit(exit_code_of(main, sys.argv[1:], resumes=False))


if __name__ == "__main__":
    entry()
