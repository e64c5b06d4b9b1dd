"""Finds what does not belong: fits a detector to normal images, scores others, and measures it on labeled ones."""

import importlib
from difflib import get_close_matches

from ldm.errors import ConfigError

COMMANDS = {
    "fit": "make a detector of a model and normal images",
    "score": "say of each image of a folder whether it is an anomaly, and where",
    "evaluate": "measure a detector on labeled images, or on MVTec's layout",
}


def main(arguments: list[str]) -> None:
    """Hand the arguments to one of the three commands, which is imported only now."""
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        rows = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
        print(f"usage: ldm detect COMMAND ...\n\n{__doc__}\n\n{rows}\n\n`ldm detect COMMAND --help` says more.")
    elif command in COMMANDS:
        importlib.import_module(f"ldm.cli.detect_{command}").main(arguments[1:])
    else:
        near = get_close_matches(command, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else "see ldm detect --help"
        raise ConfigError(f"{command} is not a command of ldm detect; {advice}")
