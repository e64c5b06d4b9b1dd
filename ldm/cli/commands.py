"""Commands by name, each a module with a `main` that is imported only when it is called."""

import importlib
from collections.abc import Mapping
from difflib import get_close_matches

from ldm.errors import ConfigError


def run_command(
    program: str, noun: str, commands: Mapping[str, str], modules: str, arguments: list[str], about: str = ""
) -> None:
    """Hand the arguments to the command that they begin with, `modules` and its name being its module.

    `commands` says of each what it does, and `about` what they do together; --help prints both. Raises ConfigError for
    a command that there is not.
    """
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        rows = "\n".join(f"  {name:12} {what}" for name, what in commands.items())
        usage = f"{program} {noun.upper()}"
        paragraphs = [f"usage: {usage} ...", about, rows, f"`{usage} --help` says more."]
        print("\n\n".join(filter(None, paragraphs)))
    elif command in commands:
        importlib.import_module(f"{modules}{command}").main(arguments[1:])
    else:
        near = get_close_matches(command, commands, n=1)
        advice = f"did you mean {near[0]}?" if near else f"see {program} --help"
        raise ConfigError(f"{command} is not a {noun} of {program}; {advice}")
