"""Finds what does not belong: fits a detector to normal images, scores others, and measures it on labeled ones."""

from ldm.cli.commands import run_command

COMMANDS = {
    "fit": "make a detector of a model and normal images",
    "score": "say of each image of a folder whether it is an anomaly, and where",
    "evaluate": "measure a detector on labeled images, or on MVTec's layout",
}


def main(arguments: list[str]) -> None:
    """Hand the arguments to one of the three commands."""
    run_command("ldm detect", "command", COMMANDS, "ldm.cli.detect_", arguments, __doc__ or "")
