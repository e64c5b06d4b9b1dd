"""Helpers of the benchmark tables: commands that are run, rows that are kept, markdown that is printed."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

Metrics = dict[str, float | None]


def from_root(out: Path) -> Path:
    """Change to the repository, where every command is run, and name `out` as seen from there."""
    relative = Path(os.path.relpath(out, ROOT))
    os.chdir(ROOT)
    return relative


def folder_name(*parts: str) -> str:
    """The name of a row's folder: data and variant in lower case, with dashes for all that separates words."""
    words = "-".join(parts).replace("+", " ").replace(",", " ").replace("-", " ").split()
    return "-".join(words).lower()


def ran(command: str) -> float:
    """Run a command of this repository on one thread; the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(
    run: Path,
    commands: list[str],
    measure: Callable[[dict[str, Any]], Metrics] = lambda evaluation: {},
    *,
    resumes: bool = False,
) -> Metrics:
    """The metrics of a row, as they were kept by an earlier call with the same commands, else from running these.

    They are those of `ldm evaluate`, if one of the commands writes `run`/evaluation.json; what `measure` makes of that
    file's content; and the CPU seconds of the first command. An unfinished row begins anew, as half of it cannot be
    timed; where it `resumes`, what was done of it is not done again.
    """
    for command in commands:
        print(f"python {command}", flush=True)
    report, evaluation = run / "row.json", run / "evaluation.json"
    kept = json.loads(report.read_text()) if report.exists() else {}
    if kept.get("commands") != commands:
        if kept or not resumes:
            shutil.rmtree(run, ignore_errors=True)
        seconds = [ran(command) for command in commands]
        evaluated = json.loads(evaluation.read_text()) if evaluation.exists() else {}
        metrics = {**evaluated.get("metrics", {}), **measure(evaluated), "seconds": seconds[0]}
        kept = {"commands": commands, "metrics": metrics}
        report.write_text(json.dumps(kept, indent=2))
    return kept["metrics"]  # type: ignore[no-any-return]


def cells(columns: dict[str, tuple[str, str]], metrics: Metrics) -> list[str]:
    """A row's cells: each column names a metric and its format; what was not measured is left empty."""
    values = [(metrics.get(key), form) for key, form in columns.values()]
    return ["" if value is None else form.format(value) for value, form in values]


def print_table(heads: list[str], rows: Iterable[list[str]]) -> None:
    """A table in markdown."""
    lines = [f"| {' | '.join(each)} |" for each in (heads, *rows)]
    print("\n".join(["", lines[0], "|" + "---|" * len(heads), *lines[1:]]))
