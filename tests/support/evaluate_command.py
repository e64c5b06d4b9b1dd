"""`ldm evaluate` as a test runs it."""

import json
from pathlib import Path
from typing import Any

from tests.support.scripts import Outcome, ran


def evaluated(*arguments: object) -> Outcome:
    """What comes of the command."""
    return ran("ldm.cli.main", "evaluate", *arguments)


def measured(out: Path, *arguments: object) -> dict[str, Any]:
    """What the command writes, once it has succeeded."""
    outcome = evaluated(*arguments, "--out", out)
    assert outcome.code == 0, outcome.err
    return json.loads(out.read_text())
