"""The structure of the sources, read from their imports: modules, rooms, arrows, circles, floors.

    python tests/house.py [FOLDER]

prints it for a checkout, this one without an argument. A room is a folder of modules or a module; of two
rooms in one folder the one whose modules import the other's is above it. Imports for the type checker alone
are no arrows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
PACKAGE = "paredown"
ROOMS = ("targets", "calibration", "pipeline", "apps")  # ground floor first
GUARDS = {
    "TYPE_CHECKING": "typing",
    "typing.TYPE_CHECKING": "typing",
    "__name__ == '__main__'": "main",
}


@dataclass(frozen=True)
class Import:
    """One import of a module: what, on which line, and when it happens.

    `when`: "import" = with the module's own, "call" = inside a function, "main" = where the module is run as
    a script, "typing" = never, for the type checker.
    """

    module: str
    line: int
    when: Literal["import", "call", "main", "typing"]


@dataclass(frozen=True)
class Module:
    """A source file; names are those below the installed package, as `pipeline.graph.trace`."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]


def read_house(root: Path) -> dict[str, Module]:
    """Every module of the rooms, by dotted name."""
    names = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    house = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        house[name] = Module(name, path, tree, tuple(imports_of(tree, package, set(names))))
    return house


def imports_of(tree: ast.Module, package: str, ours: set[str]) -> Iterator[Import]:
    """The imports of a module, ours without the installed package's name."""

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and when == "import":
            when = "call"
        if isinstance(node, ast.If) and (guarded := GUARDS.get(ast.unparse(node.test))):
            for child in node.body:
                yield from visit(child, guarded)
            for child in node.orelse:
                yield from visit(child, when)
            return
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [own_name(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = own_name(".".join([*above, *([node.module] if node.module else [])]))
            # `from package import module` is an import of the module where there is one
            full = [own_name(f"{base}.{alias.name}") for alias in node.names]
            found = [name if name in ours else base for name in full]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                found = [own_name(node.args[0].value)]
        for name in dict.fromkeys(found):
            yield Import(name, node.lineno, when)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    yield from visit(tree, "import")


def own_name(name: str) -> str:
    """`paredown.pipeline.graph` -> `pipeline.graph`; other names as they are."""
    return name.removeprefix(f"{PACKAGE}.")


def top(name: str) -> str:
    """The outermost package."""
    return name.partition(".")[0]


# -- rooms ---------------------------------------------------------------------------------------------------


def folders(house: Mapping[str, Module]) -> dict[str, tuple[str, ...]]:
    """Folder -> its rooms: the packages and the modules in it, by name."""
    found: dict[str, set[str]] = {}
    for name, module in house.items():
        if module.path.name in ("__init__.py", "__main__.py"):
            continue
        parts = name.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return {folder: tuple(sorted(rooms)) for folder, rooms in sorted(found.items())}


def arrows(house: Mapping[str, Module], folder: str) -> dict[str, set[str]]:
    """Room -> the rooms of the same folder that its modules import."""
    depth = folder.count(".") + 1 if folder else 0
    inside = f"{folder}." if folder else ""

    def room_of(name: str) -> str | None:
        parts = name.split(".")
        return parts[depth] if name.startswith(inside) and len(parts) > depth else None

    found: dict[str, set[str]] = {}
    for name, module in house.items():
        if (room := room_of(name)) is None or module.path.name == "__main__.py":
            continue
        for entry in module.imports:
            other = room_of(entry.module)
            if other is not None and other != room and entry.when in ("import", "call"):
                found.setdefault(room, set()).add(other)
        found.setdefault(room, set())
    return found


def ways_round(edges: Mapping[str, set[str]]) -> list[str]:
    """Every circle that a walk along the arrows comes to."""
    found, state = [], dict.fromkeys(edges, "new")

    def walk(name: str, way: list[str]) -> None:
        state[name] = "open"
        for other in sorted(edges[name]):
            if state.get(other) == "open":
                found.append(" -> ".join([*way[way.index(other) :], other]))
            elif state.get(other) == "new":
                walk(other, [*way, other])
        state[name] = "done"

    for name in edges:
        if state[name] == "new":
            walk(name, [name])
    return found


def longest_chain(edges: Mapping[str, set[str]]) -> list[str]:
    """The longest way down along arrows without a circle."""
    known: dict[str, list[str]] = {}

    def down(name: str, above: frozenset[str]) -> list[str]:
        if name not in known:
            below = [down(o, above | {name}) for o in sorted(edges.get(name, ())) if o not in above]
            known[name] = [name, *max(below, key=len, default=[])]
        return known[name]

    return max((down(name, frozenset()) for name in sorted(edges)), key=len, default=[])


def describe(root: Path) -> str:
    """Rooms, circles and the longest chain of a checkout, for people."""
    house = read_house(root)
    lines = []
    for folder, rooms in folders(house).items():
        edges = arrows(house, folder)
        circles = ways_round(edges)
        chain = longest_chain(edges)
        many = sum(len(others) for others in edges.values())
        lines.append(
            f"{folder}: {len(rooms)} rooms on {len(chain)} floors, {many} arrows, "
            f"{len(circles)} circles{': ' if circles else ''}{'; '.join(circles)}"
        )
    modules = {
        name: {e.module for e in module.imports if e.module in house and e.when in ("import", "call")}
        - {name}
        for name, module in house.items()
    }
    chain = longest_chain(modules)
    lines.append(f"{len(house)} modules, longest chain of imports {len(chain)}: {' -> '.join(chain)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
