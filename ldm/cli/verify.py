"""Trains each part where the answer is known in closed form; prints measured value, bound and pass or fail."""

import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ldm.config.command_line import Parser
from ldm.errors import ConfigError, LDMError
from ldm.verify.table import CHECKS, run_checks

if TYPE_CHECKING:
    from ldm.verify.check import Check

ROW = "{:11} {:78} {:>10} {:>10}  {}"


def main(arguments: list[str]) -> None:
    """Read the command line, then measure and print."""
    options = parser().read(arguments)
    names = chosen(options.checks)
    print_checks((name, run_checks(name, small=options.small)) for name in names)


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm verify", __doc__ or "")
    found.formatter_class = RawDescriptionHelpFormatter
    found.epilog = "checks:\n" + "\n".join(f"  {name:12} {what}" for name, what in CHECKS.items())
    found.add_argument("checks", metavar="CHECK", nargs="*", help="which of those below [all]")
    found.add_argument("--small", action="store_true", help="miniatures, in seconds, with looser bounds")
    return found


def chosen(names: list[str]) -> list[str]:
    """The checks of these names, each once, or ConfigError; all of them if none is named."""
    for name in names:
        if name not in CHECKS:
            near = get_close_matches(name, CHECKS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CHECKS)}"
            raise ConfigError(f"{name} is not a check; {advice}")
    return list(dict.fromkeys(names)) or list(CHECKS)


def print_checks(checks: Iterable[tuple[str, Iterable["Check"]]]) -> None:
    """Print each value as it comes, and LDMError in the end if one is on the wrong side of its bound."""
    print(ROW.format("check", "value", "measured", "bound", "verdict"), flush=True)
    failed, count = [], 0
    for name, values in checks:
        begun = time.perf_counter()
        for value in values:
            print(row(name, value), flush=True)
            count += 1
            if value.fails:
                failed.append(f"{name}: {value.name}")
        print(ROW.format(name, f"took {time.perf_counter() - begun:.1f} s", "", "", "").rstrip(), flush=True)
    if failed:
        raise LDMError(f"{len(failed)} of {count} values fail: {'; '.join(failed)}")


def row(name: str, check: "Check") -> str:
    """One line of the table."""
    bound = "" if check.bound is None else f"{check.sense} {check.bound:g}"
    value = "" if check.reason else f"{check.value:.4g}"
    return ROW.format(name, check.name, value, bound, check.verdict)
