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

# Floor by floor, lowest first: every file imports from the floors below its own, and, where a floor is one folder or a
# list in order, from what stands before it. A name stands for a file or for a folder with all that is in it.
FLOORS = [
    [
        "config",
        "errors",
        "terminal",
        "shapes",
        "philox",
        "randomness",
        "distributed",
        "batch",
        "corruption",
    ],  # the ground
    ["checkpoint", "pictures", "component", "nn", "data", "entropy"],  # tools
    ["autoencoder", "diffusion", "training", "text"],  # the two halves, the bookkeeping of a run, and text encoders
    [
        "script_configs",
        "latents",
        "pipeline",
        "editing",
        "evaluation",
        "export",
        "anomaly",
        "compression",
        "verify",
    ],  # where they meet
    ["", "cli", "__main__"],  # "" is `import ldm` itself, the front door
]
# Where the halves meet, one thing stands upon another: this is their order.
ORDER_ABOVE = [
    "script_configs",
    "latents",
    "pipeline",
    "editing",
    "evaluation",
    "export",
    "anomaly",
    "compression",
    "verify",
]
# The config beside the thing it configures lies on the ground, wherever it is: every floor may read it. A corruption
# and a penalty are their own config.
GROUND = re.compile(r"(\w+\.)+config|autoencoder\.penalty")
STRANGERS = [
    {"autoencoder", "diffusion"},
    *({name, other} for name in FLOORS[1] for other in FLOORS[1] if name < other),
]
MAX_LOOSE_FILES = 12  # directly in ldm/, without __init__ and __main__
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
    if GROUND.fullmatch(module):
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


def test_floors_every_file_has_one() -> None:
    known = {name for names in FLOORS for name in names}
    assert {module.split(".")[0] for module in FILES} <= known


def test_imports_never_go_up_a_floor() -> None:
    wrong = [
        f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"
        for module, file in FILES.items()
        for other in imports(file)
        if floor(other) > floor(module)
    ]
    assert not wrong


def test_imports_keep_the_order_where_the_halves_meet() -> None:
    place = {name: number for number, name in enumerate(ORDER_ABOVE)}
    wrong = [
        f"{module} imports {other}"
        for module, file in FILES.items()
        for other in imports(file)
        if (home := module.split(".")[0]) in place and place.get(other.split(".")[0], -1) > place[home]
    ]
    assert not wrong


def test_loose_files_are_few() -> None:
    loose = [module for module in FILES if "." not in module and module != "" and FILES[module].stem != "__init__"]
    assert len([module for module in loose if module != "__main__"]) <= MAX_LOOSE_FILES, loose


def test_names_every_class_has_its_own_and_nothing_is_imported_under_another() -> None:
    classes: dict[str, list[str]] = {}
    for module, file in FILES.items():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(module)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ldm":
                assert not [alias.asname for alias in node.names if alias.asname], (
                    f"{module} imports under another name"
                )
    assert not {name: modules for name, modules in classes.items() if len(modules) > 1}


def test_objective_import_closure_is_small_and_decodes_no_data() -> None:
    """Who reads the autoencoder's loss need not read more than twenty-two files, random numbers included."""

    def closure(module: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        for other in imports(FILES[module]) - seen - {module}:
            seen = closure(other, seen | {module, other})
        return seen | {module}

    reached = closure("autoencoder.objective")
    assert len(reached) <= 22, sorted(reached)
    assert not [module for module in reached if module.split(".")[0] == "data"]
    assert len(closure("diffusion.objective")) <= 18  # the embeddings of all kinds of conditions are among them


def test_imports_form_no_cycle() -> None:
    """Imports inside functions and for type checkers close a circle too."""
    remaining = {module: imports(file) - {module} for module, file in FILES.items()}
    while leaves := [module for module, needed in remaining.items() if not needed & remaining.keys()]:
        for module in leaves:
            del remaining[module]
    assert not remaining, f"in a circle, or above one: {remaining}"


@pytest.mark.parametrize("pair", STRANGERS, ids=lambda pair: " and ".join(sorted(pair)))
def test_imports_between_strangers_are_none(pair: set[str]) -> None:
    """The two halves, and the siblings of the first floor."""
    for module, file in FILES.items():
        if (home := module.split(".")[0]) in pair:
            (other,) = pair - {home}
            assert not [name for name in imports(file) if name.split(".")[0] == other], module


def test_imports_autoencoder_and_diffusion_never_reach_each_other() -> None:
    """Following every import: the autoencoder never reaches the denoiser, nor the denoiser the autoencoder."""

    def reached(modules: set[str]) -> set[str]:
        further = modules | {other for module in modules for other in imports(FILES[module])}
        return modules if further == modules else reached(further)

    for home, other in [("autoencoder", "diffusion"), ("diffusion", "autoencoder"), ("training", "autoencoder")]:
        found = reached({module for module in FILES if module.split(".")[0] == home})
        assert not [module for module in found if module.split(".")[0] == other]


def test_file_names_say_something() -> None:
    homeless = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
    assert not [module for module in FILES if homeless & set(module.split("."))]


def test_configs_are_imported_without_torch() -> None:
    """All that --help needs; of the ground floor only tensors and random numbers import torch."""
    about_tensors = {"shapes", "philox", "randomness", "batch", "distributed"}
    light = [module for module in FILES if floor(module) == 0 or module == "script_configs"]
    names = ", ".join(f"ldm.{module}" for module in light if module.split(".")[0] not in about_tensors)
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


def test_scaling_factor_of_another_autoencoder_is_nowhere() -> None:
    """Except the one that writes files for hosts which do."""
    hosts = FILES["export.autoencoder"]
    assert not [file for file in everything() if file != hosts and re.search(r"\.18215|\.13025", file.read_text())]


def test_no_todo_in_the_code() -> None:
    assert not [file for file in everything() if re.search(r"TODO|FIXME|XXX|HACK", file.read_text())]


def test_docstrings_every_file_and_public_name_has_one() -> None:
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
