"""`ldm verify` from the command line: what it prints, how it ends, what it refuses."""

import math
import re
import subprocess
import sys

import pytest

from ldm.cli.verify import print_checks
from ldm.errors import LDMError
from ldm.verify.check import at_least, at_most, info, skipped
from ldm.verify.table import CHECKS
from tests.support.scripts import ROOT, Outcome, ran


def verified(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "verify", *arguments)


def test_a_row_is_printed_for_each_value_of_the_checks_that_are_named() -> None:
    outcome = verified("samplers", "denoiser", "samplers", "--small")
    assert outcome.code == 0 and not outcome.err
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["check", "value", "measured", "bound", "verdict"]
    assert list(dict.fromkeys(row.split()[0] for row in rows)) == ["samplers", "denoiser"]
    assert len([row for row in rows if re.fullmatch(r"\w+ +took \d+\.\d s", row)]) == 2
    assert all(row.endswith("  pass") for row in rows if " took " not in row)
    assert {row.index("  pass") for row in rows if " took " not in row} == {head.index("  verdict")}
    assert max(map(len, rows)) <= 120


def test_one_failure_is_named_after_the_whole_table_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    circle = [at_most("circumference over diameter", math.pi, 3), info("of that, digits known", 105e12)]
    more = [at_least("sides", 0, 0), skipped("area", "needs a ruler")]
    with pytest.raises(LDMError, match=r"^1 of 4 values fail: circle: circumference over diameter$") as failed:
        print_checks([("circle", circle), ("point", more)])
    assert failed.value.exit_code != 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][-4:] == ["3.142", "<=", "3", "FAIL"]
    assert rows[-2][-4:] == ["skipped:", "needs", "a", "ruler"]


def test_nothing_fails_where_all_checks_pass(capsys: pytest.CaptureFixture[str]) -> None:
    print_checks([("square", [at_most("sides", 4, 4)])])
    assert "pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["linaer"], "linaer is not a check; did you mean linear?"),
        (["linear", "xyzzy"], "xyzzy is not a check; choose from linear, "),
        (["--smal"], "--smal is not understood; did you mean --small?"),
    ],
)
def test_an_unknown_word_exits_2_with_its_neighbor(arguments: list[str], words: str) -> None:
    outcome = verified(*arguments)
    assert outcome.code == 2 and not outcome.out
    assert words in outcome.err and outcome.err.count("\n") == 1


def test_help_names_every_check_without_torch() -> None:
    code = (
        "import sys; from ldm.cli.verify import parser; print(parser().format_help());"
        " sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0
    assert all(
        re.search(rf"^  {name} +{re.escape(what)}$", outcome.stdout, re.MULTILINE) for name, what in CHECKS.items()
    )
    assert max(map(len, outcome.stdout.splitlines())) <= 120
