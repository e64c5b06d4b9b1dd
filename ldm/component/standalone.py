"""Writes out a class of this package, and all that it needs of it, as one file of Python that stands alone.

The definitions are copied as they are, comments included, module by module from the ground up, and no more of them than
are reached from the class. `from ldm...` goes, what was `module.name` becomes `name`, and a swappable part is found in
the new file. Two definitions of one name are refused, so that nothing is ever renamed.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from textwrap import indent

from ldm.component.source_module import PACKAGE, Edits, Import, SourceModule, imports_in
from ldm.component.versions import DISTRIBUTION, version_of

PLACE = re.compile(rf"({PACKAGE}(?:\.\w+)+):(\w+)")  # of a swappable part
INSIDE = f"__name__.startswith('{PACKAGE}.')"  # the test of a block that runs in the package alone
OPTIONAL = "diffusers"  # the package that a file may do without
# Methods that only training calls, of whatever class; and those of one class, which lead to every format there is.
TRAINING = {
    *("initialize", "freeze_encoder", "train_mask_token", "layer_input", "output_gradient"),
    *("costs", "reset_usage", "update_usage", "active_units", "dead_units"),
}
LEFT_OUT = {
    "Autoencoder": ("load", "save", "from_diffusers", "code"),
    "Bottleneck": ("forward",),
    "QuantizedBottleneck": ("forward",),
}

HEADER = """\
{version}, license MIT.
# It defines {name} and all that this needs, so that diffusers opens this folder where the package
# is not installed. To change it, change that: pip install {distribution}
"""
IMPORTS = """
try:
{imports}
except ImportError as error:
    raise ImportError(f"{{error}}; what this file needs comes with: pip install {distribution}") from error
"""
PLAIN_HEADER = """\
# Without diffusers, with torch and safetensors alone, `{plain}` of this file opens the folder.
"""
OPTIONAL_IMPORTS = """


# What follows is for {package}; all above is plain torch.
try:
{imports}
except ImportError:
    pass
else:
"""
BEFORE = """
# diffusers runs this file again for every pipeline that it opens. What the first time defined stays, as the classes of
# pipelines that are open already.
FIRST = {name: value for name, value in globals().items() if not name.startswith("__")}"""
AFTER = """


globals().update(FIRST)
"""


@cache
def standalone(place: str, parts: tuple[tuple[str, str], ...], plain: str = "") -> str:
    """The text of a file that defines the class at a place, `package.module:name`.

    `parts` pairs tables of swappable parts with the one entry wanted. With the name of a function as `plain`, what
    needs diffusers comes last, and is defined where diffusers is installed.
    """
    home, _, name = place.partition(":")
    closure = Closure(dict(parts))
    closure.want(home, name)
    closure.check_names()
    header = HEADER.format(version=version_of(DISTRIBUTION), name=name, distribution=DISTRIBUTION)
    header += PLAIN_HEADER.format(plain=plain) if plain else ""
    last = closure.needing(OPTIONAL) if plain else []
    first = [each for each in closure.in_order() if each not in last]
    imports = IMPORTS.format(imports=closure.import_lines(first), distribution=DISTRIBUTION)
    body = "".join(closure.titled_section(each) for each in first)
    if last:
        body += OPTIONAL_IMPORTS.format(imports=closure.import_lines(last, but=first), package=OPTIONAL)
        body += indent("".join(closure.titled_section(each) for each in last).lstrip("\n"), "    ")
    return "".join([header, imports, closure.typing_block(), BEFORE, body, AFTER])


class Closure:
    """The definitions that one file needs, and what it imports from elsewhere."""

    def __init__(self, parts: Mapping[str, str]):
        self.parts = parts
        self.modules: dict[str, SourceModule] = {}
        self.wanted: dict[str, set[str]] = {}  # by module
        self.edits: dict[str, Edits] = {}
        self.uses: dict[str, set[str]] = {}  # modules that a module's definitions refer to
        self.imports: dict[str, set[Import]] = {}  # from elsewhere, by module
        self.typing_only: set[Import] = set()

    def want(self, home: str, name: str, user: str | None = None) -> None:
        """Take in a definition and, in turn, what it needs."""
        module = self.module(home)
        if name not in module.definitions:
            if name not in module.imports:
                raise LookupError(f"{home} does not define {name}")
            return self.resolve(module, name)  # passed on from another module
        if user is not None and user != home:
            self.uses[user].add(home)
        if name not in self.wanted[home]:
            self.wanted[home].add(name)
            statement = module.definitions[name]
            if name in self.parts:
                self.keep_one_entry(module, statement, self.parts[name])
            self.visit(module, statement)

    def module(self, name: str) -> SourceModule:
        """A module, read once."""
        if name not in self.modules:
            self.modules[name] = SourceModule.read(name)
            self.wanted[name], self.edits[name] = set(), Edits()
            self.uses[name], self.imports[name] = set(), set()
        return self.modules[name]

    def keep_one_entry(self, module: SourceModule, table: ast.stmt, wanted: str) -> None:
        """Drop the other entries of a table of swappable parts."""
        value = getattr(table, "value", None)
        assert isinstance(value, ast.Dict)
        for key, part in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and key.value != wanted:
                self.edits[module.name].drop(key, until=part)

    def visit(self, module: SourceModule, node: ast.AST) -> None:
        """Take in what a node refers to, and note what has to be changed in it."""
        edits = self.edits[module.name]
        if getattr(node, "lineno", None) in edits.dropped:
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == INSIDE:
            return edits.drop(node)
        if isinstance(node, ast.ImportFrom) and all(each.is_ours for each in imports_in(node)):
            return edits.drop(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (place := PLACE.fullmatch(node.value)):
            self.want(place[1], place[2])
            return edits.replace(node, f'f"{{__name__}}:{place[2]}"')
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            imported = module.imports.get(node.value.id)
            if imported is not None and imported.is_module:
                edits.replace(node, node.attr)
                return self.want(f"{imported.module}.{imported.name}", node.attr, module.name)
        if isinstance(node, ast.Name):
            self.resolve(module, node.id)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            self.visit_quoted(module, annotation)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.ClassDef) and isinstance(child, ast.FunctionDef) and is_left_out(node, child):
                edits.drop(child)
            else:
                self.visit(module, child)

    def visit_quoted(self, module: SourceModule, annotation: ast.expr | None) -> None:
        """Take in what an annotation in quotes refers to."""
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in re.findall(r"\b[A-Za-z_]\w*\b", node.value):
                    self.resolve(module, name)

    def resolve(self, module: SourceModule, name: str) -> None:
        """Take in what a name in a module stands for; local variables and builtins stand for nothing of ours."""
        if name in module.definitions:
            self.want(module.name, name)
        elif name in module.imports:
            imported = module.imports[name]
            if not imported.is_ours:
                self.imports[module.name].add(imported)
            elif not imported.is_module:
                assert imported.name is not None
                self.want(imported.module, imported.name, module.name)
        elif name in module.typing_only:
            self.imports[module.name].add(Import("typing", "TYPE_CHECKING", "TYPE_CHECKING"))
            self.typing_only.add(module.typing_only[name])

    def check_names(self) -> None:
        """Raise ValueError where two things would have one name."""
        imported: dict[str, Import] = {}
        for each in self.imported(self.imports):
            other = imported.setdefault(each.local, each)
            if other != each and (each.name, other.name) != (None, None):
                raise ValueError(f"{each.local} would be imported twice: from {each.module} and from {other.module}")
        homes: dict[str, str] = dict.fromkeys([*dir(builtins), "FIRST"], "builtins") | dict.fromkeys(
            imported, "imports"
        )
        for home, names in self.wanted.items():
            for name in names:
                if name in homes:
                    raise ValueError(f"{name} would be defined twice: by {home} and by {homes[name]}")
                homes[name] = home

    def in_order(self) -> list[str]:
        """The modules, each behind those that it refers to."""
        order: list[str] = []

        def place(name: str) -> None:
            if name not in order:
                for other in sorted(self.uses[name]):
                    place(other)
                order.append(name)

        for name in sorted(self.wanted):
            place(name)
        return [name for name in order if self.wanted[name]]

    def needing(self, package: str) -> list[str]:
        """The modules, in order, that import from a package at their top, or refer to one that does."""
        found: list[str] = []
        for name in self.in_order():
            roots = {each.module.split(".")[0] for each in self.imports[name]}
            if package in roots or self.uses[name] & set(found):
                found.append(name)
        return found

    def titled_section(self, name: str) -> str:
        """The definitions of a module under its name."""
        return f"\n\n\n# ---- {name}\n\n\n{self.section(name)}"

    def section(self, name: str) -> str:
        """The definitions of a module, in its own order."""
        module, written = self.modules[name], []
        for defined, statement in module.definitions.items():
            if defined in self.wanted[name]:
                written.append((statement, module.text(statement, self.edits[name])))
        parts = [written[0][1]]
        for (before, _), (after, text) in pairwise(written):
            apart = isinstance(before, ast.FunctionDef | ast.ClassDef) or isinstance(
                after, ast.FunctionDef | ast.ClassDef
            )
            parts.append(("\n\n\n" if apart else "\n") + text)
        return "".join(parts)

    def imported(self, modules: Iterable[str]) -> set[Import]:
        """What modules import from elsewhere."""
        return {each for name in modules for each in self.imports[name]}

    def import_lines(self, modules: Iterable[str], but: Iterable[str] = ()) -> str:
        """What modules import, except what others do already; the standard library first."""
        imports = self.imported(modules) - self.imported(but)

        def rank(module: str) -> tuple[bool, str]:
            return module.split(".")[0] not in sys.stdlib_module_names, module

        plain = sorted((each for each in imports if each.name is None), key=lambda each: rank(each.module))
        lines = [f"import {each}" for each in plain]
        lines += [line for _, line in sorted((rank(module), line) for module, line in from_lines(imports))]
        return "\n".join(f"    {line}" for line in lines)

    def typing_block(self) -> str:
        """The imports that only type checkers need."""
        lines = "".join(f"    {line}\n" for _, line in sorted(from_lines(self.typing_only)))
        return f"\nif TYPE_CHECKING:\n{lines}" if lines else ""


def is_left_out(owner: ast.ClassDef, method: ast.FunctionDef) -> bool:
    """Whether a method is for nothing that the file is for."""
    return method.name in TRAINING or method.name in LEFT_OUT.get(owner.name, ())


def from_lines(imports: set[Import]) -> Iterator[tuple[str, str]]:
    """`from module import names`, one line for each module."""
    for module in {each.module for each in imports if each.name is not None}:
        names = sorted(str(each) for each in imports if each.module == module and each.name is not None)
        yield module, f"from {module} import {', '.join(names)}"
