"""A module of this package as text: what it defines, what it imports, and its definitions cut out and edited."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "ldm"


@dataclass(frozen=True)
class Import:
    """Where an imported name comes from: `from module import name as local`, or `import module` without a name."""

    module: str
    name: str | None
    local: str

    @property
    def is_ours(self) -> bool:
        """Whether it is imported from this package."""
        return self.module.split(".")[0] == PACKAGE

    @property
    def is_module(self) -> bool:
        """Whether a module of ours is imported, and not something in it."""
        if not self.is_ours or self.name is None:
            return False
        spec = importlib.util.find_spec(self.module)
        folders = (spec.submodule_search_locations or ()) if spec is not None else ()
        return any((Path(folder) / f"{self.name}.py").is_file() for folder in folders)

    def __str__(self) -> str:
        """What stands behind `import`."""
        name = self.module if self.name is None else self.name
        return name if self.local in (name, name.split(".")[0]) else f"{name} as {self.local}"


@dataclass
class SourceModule:
    """A module, parsed. Imports of ours are found anywhere in it; others only at its top, as those further in stay."""

    name: str
    lines: list[bytes]  # positions in a syntax tree count bytes
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    typing_only: dict[str, Import] = field(default_factory=dict)  # what only type checkers import

    @classmethod
    @cache
    def read(cls, name: str) -> "SourceModule":
        """The module of that name."""
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise LookupError(f"there is no module {name}")
        source = Path(spec.origin).read_text(encoding="utf-8")
        module = cls(name, source.encode().splitlines())
        tree = ast.parse(source)
        for node in ast.walk(tree):
            module.imports |= {each.local: each for each in imports_in(node) if each.is_ours}
        for statement in tree.body:
            module.definitions |= dict.fromkeys(names_defined(statement), statement)
            module.imports |= {each.local: each for each in imports_in(statement)}
            if isinstance(statement, ast.If):
                found = [each for inner in statement.body for each in imports_in(inner)]
                module.typing_only |= {each.local: each for each in found if not each.is_ours}
        return module

    def text(self, statement: ast.stmt, edits: "Edits") -> str:
        """A definition with the comment above it, edited."""
        first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", ()))])
        while first > 1 and self.lines[first - 2].startswith(b"#"):
            first -= 1
        last = statement.end_lineno or first
        kept: list[str] = []
        for number in range(first, last + 1):
            line = self.lines[number - 1]
            for start, end, replacement in sorted(edits.replaced.get(number, ()), reverse=True):
                line = line[:start] + replacement.encode() + line[end:]
            # Of the blank lines around what was left out, one stays.
            if number not in edits.dropped and (line or not kept or kept[-1]):
                kept.append(line.decode())
        return "\n".join(kept).rstrip()


@dataclass
class Edits:
    """Lines of a module to leave out, and pieces of lines to replace."""

    dropped: set[int] = field(default_factory=set)
    replaced: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)

    def drop(self, node: ast.stmt | ast.expr, until: ast.expr | None = None) -> None:
        """Leave out all lines of a node, or from one to another."""
        decorators = [each.lineno for each in getattr(node, "decorator_list", ())]
        last = (until or node).end_lineno or node.lineno
        self.dropped |= set(range(min([node.lineno, *decorators]), last + 1))

    def replace(self, node: ast.expr, replacement: str) -> None:
        """Put something else in the place of an expression on one line."""
        assert node.lineno == node.end_lineno and node.end_col_offset is not None
        self.replaced.setdefault(node.lineno, []).append((node.col_offset, node.end_col_offset, replacement))


def imports_in(statement: ast.AST) -> Iterator[Import]:
    """What a statement imports."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield Import(alias.name, None, alias.asname or alias.name.split(".")[0])
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield Import(statement.module or "", alias.name, alias.asname or alias.name)


def names_defined(statement: ast.stmt) -> Iterator[str]:
    """What a statement at the top of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))
