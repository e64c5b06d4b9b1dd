"""`ldm verify`: hold every part against its closed form, by training it where the answer is known."""

import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ldm.config.command_line import Parser
from ldm.errors import ConfigError, LDMError
from ldm.verify.table import CHECKS, run_checks

if TYPE_CHECKING:
    pass

ROW = "{:11} {:78} {:>10} {:>10}  {}"


def main(arguments: list[str]) -> None:
    """Read the command line, then measure and print."""
    options = parser().read(arguments)
    names = chosen(options.truths)
    hold((name, run_checks(name, small=options.small)) for name in names)


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm verify", __doc__ or "")
    found.formatter_class = RawDescriptionHelpFormatter
    found.epilog = "truths:\n" + "\n".join(f"  {name:12} {what}" for name, what in CHECKS.items())
    found.add_argument("truths", metavar="TRUTH", nargs="*", help="which of those below [all]")
    found.add_argument("--small", action="store_true", help="miniatures, in seconds, with looser bounds")
    return found


def chosen(names: list[str]) -> list[str]:
    """The truths of these names, each once, or ConfigError; all of them if none is named."""
    for name in names:
        if name not in CHECKS:
            near = get_close_matches(name, CHECKS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CHECKS)}"
            raise ConfigError(f"{name} is not a truth; {advice}")
    return list(dict.fromkeys(names)) or list(CHECKS)


def hold(truths: Iterable[tuple[str, Iterable["Check"]]]) -> None:
    """Print each figure as it comes, and LDMError in the end if one is on the wrong side of its bound."""
    print(ROW.format("truth", "figure", "measured", "bound", "verdict"), flush=True)
    failed, count = [], 0
    for name, figures in truths:
        begun = time.perf_counter()
        for figure in figures:
            print(row(name, figure), flush=True)
            count += 1
            if figure.fails:
                failed.append(f"{name}: {figure.name}")
        print(ROW.format(name, f"took {time.perf_counter() - begun:.1f} s", "", "", "").rstrip(), flush=True)
    if failed:
        raise LDMError(f"{len(failed)} of {count} figures fail: {'; '.join(failed)}")


def row(name: str, figure: "Check") -> str:
    """One line of the table."""
    bound = "" if figure.bound is None else f"{figure.sense} {figure.bound:g}"
    value = "" if figure.reason else f"{figure.value:.4g}"
    return ROW.format(name, figure.name, value, bound, figure.verdict)
