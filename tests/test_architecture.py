"""The house: who may import whom, what no file may do, and how long anything may get."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

# Floor by floor, lowest first (DESIGN, section 2). A name stands for a file or for a folder with all that is in it.
FLOORS = [
    [
        "shapes",
        "errors",
        "plain_yaml",
        "config",
        "command_line",
        "randomness",
        "losses",
        "processes",
        "corruption",
    ],
    ["checkpoint", "metrics", "pictures", "probes", "nn", "data", "entropy"],
    ["autoencoder", "diffusion", "training"],
    [
        "settings",
        "latents",
        "pipeline",
        "evaluation",
        "judges",
        "protocol",
        "finish",
        "export",
        "runs",
        "card",
        "hub",
        "anomaly",
        "compression",
        "truths",
    ],
    ["", "cli", "__main__"],  # "" is `import ldm` itself, the front door
]
# The settings beside the things they configure lie on the ground, wherever they are: every floor may read them. A
# corruption and a penalty are their settings.
LOWEST = re.compile(r"\w+\.settings|autoencoder\.penalty")
STRANGERS = [
    {"autoencoder", "diffusion"},
    *({name, other} for name in FLOORS[1] for other in FLOORS[1] if name < other),
]
SCRIPTS = ["train_vae", "train_diffusion", "sample"]

LONGEST_FILE, LONGEST_FUNCTION = 300, 60
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS: dict[str, str] = {}


def module_of(file: Path) -> str:
    """`ldm/data/images.py` is data.images, `ldm/data/__init__.py` data."""
    return ".".join(file.relative_to(ROOT / "ldm").with_suffix("").parts).removesuffix("__init__").rstrip(".")


FILES = {module_of(file): file for file in sorted((ROOT / "ldm").rglob("*.py"))}
SCRIPT_FILES = {name: ROOT / f"{name}.py" for name in SCRIPTS}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports(file: Path) -> set[str]:
    """The modules of ours that a file imports anywhere: at its top, in a function, for type checkers."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the floor"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            assert name.split(".")[0] not in SCRIPTS, f"{file} imports a script"
            if name.split(".")[0] == "ldm":
                found.add(module_named(name.split(".")[1:]))
    return found


def module_named(parts: list[str]) -> str:
    """The longest beginning of a dotted name that is a file of ours: the rest is something in it."""
    for length in range(len(parts), -1, -1):
        if ".".join(parts[:length]) in FILES:
            return ".".join(parts[:length])
    raise AssertionError(f"ldm.{'.'.join(parts)} is in no file")


def floor(module: str) -> int:
    if LOWEST.fullmatch(module):
        return 0
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


def outer_functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and methods by dotted name; what is inside a function belongs to it."""

    def inside(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")

    return inside(tree_of(file).body, "")


def test_every_file_has_its_floor() -> None:
    known = {name for names in FLOORS for name in names}
    assert {module.split(".")[0] for module in FILES} <= known


def test_nobody_imports_from_a_floor_above() -> None:
    wrong = [
        f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"
        for module, file in FILES.items()
        for other in imports(file)
        if floor(other) > floor(module)
    ]
    assert not wrong


def test_nothing_imports_itself_in_a_circle() -> None:
    """Imports inside functions and for type checkers close a circle too."""
    remaining = {module: imports(file) - {module} for module, file in FILES.items()}
    while leaves := [module for module, needed in remaining.items() if not needed & remaining.keys()]:
        for module in leaves:
            del remaining[module]
    assert not remaining, f"in a circle, or above one: {remaining}"


@pytest.mark.parametrize("pair", STRANGERS, ids=lambda pair: " and ".join(sorted(pair)))
def test_strangers_do_not_know_each_other(pair: set[str]) -> None:
    """The two halves, and the siblings of the first floor."""
    for module, file in FILES.items():
        if (home := module.split(".")[0]) in pair:
            (other,) = pair - {home}
            assert not [name for name in imports(file) if name.split(".")[0] == other], module


def test_the_halves_are_strangers_through_third_parties_too() -> None:
    """Following every import: the autoencoder never reaches the denoiser, nor the denoiser the autoencoder."""

    def reached(modules: set[str]) -> set[str]:
        further = modules | {other for module in modules for other in imports(FILES[module])}
        return modules if further == modules else reached(further)

    for home, other in [("autoencoder", "diffusion"), ("diffusion", "autoencoder"), ("training", "autoencoder")]:
        found = reached({module for module in FILES if module.split(".")[0] == home})
        assert not [module for module in found if module.split(".")[0] == other]


def test_no_file_is_called_after_nothing() -> None:
    homeless = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
    assert not [module for module in FILES if homeless & set(module.split("."))]


def test_settings_and_what_reads_them_do_without_torch() -> None:
    """All that --help needs; of the ground floor only four files speak of tensors."""
    about_tensors = {"shapes", "randomness", "losses", "processes"}
    light = [module for module in FILES if floor(module) == 0 or module == "settings"]
    names = ", ".join(f"ldm.{module}" for module in light if module not in about_tensors)
    code = f"import sys, ldm, {names}; sys.exit(bool({{'torch', 'numpy', 'PIL', 'diffusers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def everything() -> list[Path]:
    return [*FILES.values(), *SCRIPT_FILES.values()]


def test_nothing_is_unpickled_or_evaluated() -> None:
    """No pickle, torch.load of tensors alone, no eval or exec; YAML only through a loader that is a SafeLoader."""
    for file in everything():
        tree = tree_of(file)
        safe = {"SafeLoader", "CSafeLoader"} | {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                unwanted = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
                assert not unwanted & {name.split(".")[0] for name in names}, f"{file}:{node.lineno}"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "torch.save", "__import__"), (
                f"{file}:{node.lineno} calls {called}"
            )
            if called in ("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"):
                loaders = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"}
                assert loaders and loaders <= safe, f"{file}:{node.lineno} loads YAML unsafely"
            if called == "torch.load":
                allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert allowed.get("weights_only") == "True", f"{file}:{node.lineno} might unpickle anything"
            if called in ("np.load", "numpy.load"):
                allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert allowed.get("allow_pickle") == "False", f"{file}:{node.lineno} might unpickle an array"


def test_nobody_multiplies_by_the_number_of_another_autoencoder() -> None:
    """Except the one that writes files for hosts which do."""
    hosts = FILES["export"]
    assert not [file for file in everything() if file != hosts and re.search(r"\.18215|\.13025", file.read_text())]


def test_nothing_is_left_to_do_in_the_code() -> None:
    assert not [file for file in everything() if re.search(r"TODO|FIXME|XXX|HACK", file.read_text())]


def test_every_file_and_every_public_name_says_what_it_is() -> None:
    """Of methods, those whose contract is not plain from their class and name say it too; that is for readers."""
    silent = [str(file) for file in everything() if file.stat().st_size and not ast.get_docstring(tree_of(file))]
    for module, file in FILES.items():
        for name, node in outer_functions(file):
            if "." not in name and not name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{module}.{name}")
    assert not silent


def test_files_and_functions_stay_short() -> None:
    """What is longer is listed above with its reason, and leaves the list when it has become shorter."""
    files = {name: len(file.read_text().splitlines()) for name, file in (FILES | SCRIPT_FILES).items()}
    functions = {
        f"{module}.{name}": (node.end_lineno or 0) - node.lineno + 1
        for module, file in (FILES | SCRIPT_FILES).items()
        for name, node in outer_functions(file)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for name, length in files.items() if length > LONGEST_FILE} == set(LONGER_FILES)
    assert {name for name, length in functions.items() if length > LONGEST_FUNCTION} == set(LONGER_FUNCTIONS)


def test_nothing_happens_at_import() -> None:
    """A file is definitions; its statements assign names, and none of them calls a function for what it does."""
    for file in FILES.values():
        for node in tree_of(file).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or not isinstance(node, ast.Expr | ast.For | ast.While | ast.With), f"{file}:{node.lineno}"
