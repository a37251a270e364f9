"""The laws of the house, kept by reading the imports of every module.

1. No circles, no import upward between the rooms.
2. `targets/`, `calibration/preprocess.py` and every app's `device/` reach no torch; device code runs on a
   board with numpy, OpenCV and one runtime.
3. executorch, litert_torch and torchao are imported only inside functions of `pipeline/lower/`.
4. No module-level side effects, no mutable default arguments.
5. At most nine rooms (modules and packages) in a folder, no circle between the rooms of one.
6. Data never names code: what is imported or run by a name that is computed is listed here, place by place.
7. `import paredown` loads the standard library alone: its `__init__.py` is in every bundle, on every board.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from house import PACKAGE, ROOMS, ROOT, Module, arrows, folders, imports_of, read_house, top, ways_round

LOWERING = {"executorch", "litert_torch", "torchao"}
RUNTIMES = {"ai_edge_litert", "onnxruntime", "openvino", "tflite_runtime", "tensorflow"}
NUMERIC = {"numpy", "cv2"}
ON_DEMAND = {"av", "paho", "picamera2", "pymavlink", "serial"}  # of a board, inside a function
MOST_ROOMS = 9
NAMING_CALLS = {"importlib.import_module", "import_module", "__import__", "exec", "eval", "runpy.run_module"}
#: Each place that imports or runs what a value names, and whose value that is (law 6). Those that take a
#: bundle's word are still to go.
NAMED_CODE = {
    "targets.devices.doctor:_python": "our own probe, on a device",
    "targets.devices.facts:facts": "our own script, on a device",
    "targets.devices.service.board.installing:_asked": "a release's own programs, by our own names",
    "targets.devices.service.board.installing:lacking": "our own script, on a device",
    "targets.devices.service.board.supervisor:_spawn": "the module that `deploy` named",
    "targets.emulated.leash:held": "our own code, on this machine",
    "targets.emulated.server:_run": "what a client of the emulated board asks it to run there",
    "targets.emulated.sysroot:_finish": "our own script, on this machine",
    "pipeline.device.language.speed:command": "the bundle's app, on the device",
    "pipeline.device.language.validate:_runs": "the bundle's app, on the device",
    "pipeline.lower.runtimes:_module": "one of RUNTIMES",
    "pipeline.lower.runtimes:warm": "one of RUNTIMES",
    "pipeline.recipe.factory:_imported": "the recipe's own factory: a recipe is a program",
    "pipeline.recipe.task:import_app": "the recipe's app, or that of a bundle",
    "apps.cli.boards.camera:deploy": "one of APPS",
}
# What may be called while a module is imported: definitions, never work.
DEFINING_CALLS = {
    "dataclass",
    "dataclasses.dataclass",
    "field",
    "dataclasses.field",
    "Field",
    "ConfigDict",
    "Preprocess",
    "TypeVar",
    "ParamSpec",
    "NewType",
    "NamedTuple",
    "namedtuple",
    "MappingProxyType",
    "frozenset",
    "tuple",
    "range",
    "re.compile",
    "Path",
    "Path(__file__).with_name",
    "get_args",
    "np.dtype",
    "np.float32",
    "np.iinfo",
    "struct.Struct",
    "threading.Lock",
    "typer.Typer",
    "typer.Option",
    "typer.Argument",
    "app.command",
    "app.callback",
    "app.add_typer",
    "keys.command",
    "documents.command",
    "functools.cache",
    "functools.lru_cache",
    "functools.wraps",
    "contextlib.contextmanager",
    "torch.no_grad",
    "torch.inference_mode",
    "model_validator",
    "field_validator",
    "runtime_checkable",
}


TYPE_ALIAS = getattr(ast, "TypeAlias", ast.Assign)  # `type X = ...`, from Python 3.12


def upward_imports(house: dict[str, Module]) -> list[str]:
    return [
        f"{module.name}:{entry.line} imports {entry.module}"
        for module in house.values()
        for entry in module.imports
        if top(entry.module) in ROOMS and ROOMS.index(top(entry.module)) > ROOMS.index(top(module.name))
    ]


def circles(house: dict[str, Module], in_functions: bool) -> list[str]:
    """Every way round, with or without the imports inside functions."""
    counted = ("import", "call") if in_functions else ("import",)
    edges = {
        name: {entry.module for entry in module.imports if entry.module in house and entry.when in counted}
        - {name}
        for name, module in house.items()
    }
    return ways_round(edges)


def must_be_torch_free(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "targets" or name == "calibration.preprocess" or is_device_code(name)


def is_device_code(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "apps" and parts[1:2] != ["cli"] and "device" in parts[2:3]


def reached(house: dict[str, Module], name: str) -> dict[str, str]:
    """Every outside package that a module comes to import, and through which way of our own modules.

    Imports inside functions count too; of a parent package only what its own import runs.
    """
    outside: dict[str, str] = {}
    todo: list[tuple[str, bool, str]] = [(name, True, name)]
    seen: set[tuple[str, bool]] = set()
    while todo:
        current, whole, way = todo.pop(0)  # nearest first: the shortest way is the one to show
        if (current, whole) in seen or current not in house:
            continue
        seen.add((current, whole))
        for parent in parents(current):
            todo.append((parent, False, f"{way} -> {parent}"))
        for entry in house[current].imports:
            if entry.when == "typing" or (entry.when != "import" and not whole):
                continue
            if top(entry.module) in ROOMS:
                todo.append((entry.module, whole, f"{way} -> {entry.module}"))
            else:
                outside.setdefault(top(entry.module), way)
    return outside


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def heavy_reaches(house: dict[str, Module]) -> list[str]:
    """Breaches of law 2: torch where it must not be; on a board all but numpy, cv2 and a runtime."""
    found = []
    for name in house:
        if not must_be_torch_free(name):
            continue
        allowed = (
            NUMERIC | RUNTIMES | ON_DEMAND
            if is_device_code(name)
            else NUMERIC
            if name == "calibration.preprocess"
            else None
        )
        for package, way in reached(house, name).items():
            if package in {"torch", "torchvision"} | LOWERING:
                found.append(f"{way} imports {package}")
            elif allowed is not None and package not in allowed and package not in sys.stdlib_module_names:
                found.append(f"{way} imports {package}, which a board does not have")
    return found


def lowering_imports(house: dict[str, Module]) -> list[str]:
    found = []
    for module in house.values():
        inside = module.name.startswith("pipeline.lower.") or module.name == "pipeline.lower"
        for entry in module.imports:
            allowed = entry.when == "typing" or (inside and entry.when == "call")
            if top(entry.module) in LOWERING and not allowed:
                found.append(f"{module.name}:{entry.line} imports {entry.module}")
    return found


def named_code(module: Module) -> list[str]:
    """Places that import or run what a value names: `module:function`."""
    found = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            named = called in NAMING_CALLS and not (node.args and isinstance(node.args[0], ast.Constant))
            if named:
                found.append(f"{module.name}:{function}")
        if isinstance(node, (ast.List, ast.Tuple)):
            words = [e.value if isinstance(e, ast.Constant) else None for e in node.elts]
            for flag, word in zip(words, words[1:], strict=False):
                if flag in ("-c", "-m") and word is None:
                    found.append(f"{module.name}:{function}")
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(module.tree, "")
    return list(dict.fromkeys(found))


def side_effects(module: Module) -> list[str]:
    """Statements that do work on import: calls that define nothing, loops, writes into others."""
    found = []

    def complain(node: ast.AST) -> None:
        found.append(f"{module.name}:{node.lineno} {ast.unparse(node).splitlines()[0]}")

    def calls(node: ast.AST | None) -> None:
        if node is None or isinstance(node, ast.Lambda):
            return
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) not in DEFINING_CALLS
            and not is_own_class(node)
        ):
            complain(node)
        for child in ast.iter_child_nodes(node):
            calls(child)

    def is_own_class(node: ast.Call) -> bool:
        """A frozen value made of a class that this module, or another of ours, defines (capitalised)."""
        return isinstance(node.func, ast.Name) and node.func.id[:1].isupper()

    def statements(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for part in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
                    calls(part)
            elif isinstance(node, ast.ClassDef):
                for part in (*node.decorator_list, *node.bases):
                    calls(part)
                statements(node.body)
            elif isinstance(node, (ast.Assign, ast.AnnAssign, TYPE_ALIAS)):
                if isinstance(node, ast.Assign):
                    targets = node.targets
                else:
                    targets = [getattr(node, "target", None) or node.name]
                if not all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets):
                    complain(node)  # REGISTRY["x"] = ..., module.attribute = ...
                calls(node.value)
            elif isinstance(node, ast.If):
                test = ast.unparse(node.test)
                if test == "__name__ == '__main__'":
                    continue
                calls(node.test)
                statements(node.body)
                statements(node.orelse)
            elif isinstance(node, ast.Try):
                for part in (
                    node.body,
                    node.orelse,
                    node.finalbody,
                    *(handler.body for handler in node.handlers),
                ):
                    statements(part)
            elif isinstance(node, ast.Expr):
                joined = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "app.add_typer"
                if not joined and not isinstance(node.value, ast.Constant):
                    complain(node)
            elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
                complain(node)

    statements(module.tree.body)
    return found


def mutable_defaults(module: Module) -> list[str]:
    found = []
    for node in ast.walk(module.tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        for default in (*node.args.defaults, *node.args.kw_defaults):
            display = isinstance(
                default, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
            )
            call = isinstance(default, ast.Call) and ast.unparse(default.func) in (
                "list",
                "dict",
                "set",
                "bytearray",
                "defaultdict",
                "collections.defaultdict",
                "deque",
                "np.array",
                "np.zeros",
                "np.ones",
                "torch.tensor",
                "torch.zeros",
            )
            if display or call:
                found.append(f"{module.name}:{default.lineno} default {ast.unparse(default)}")
    return found


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    house = read_house(ROOT)
    assert {"targets.cards.card", "calibration", "pipeline.store", "apps.detector.device"} <= set(house)
    return house


def test_no_import_goes_upward(house):
    assert upward_imports(house) == []


def test_there_are_no_circles(house):
    assert circles(house, in_functions=False) == []


def test_there_are_no_circles_through_lazy_imports(house):
    assert circles(house, in_functions=True) == []


def test_at_most_nine_rooms_in_a_folder(house):
    crowded = {folder: rooms for folder, rooms in folders(house).items() if len(rooms) > MOST_ROOMS}
    assert crowded == {}


def test_there_are_no_circles_between_rooms(house):
    assert {f: found for f in ("", *folders(house)) if (found := ways_round(arrows(house, f)))} == {}


def test_pipeline_and_apps_have_no_loose_modules(house):
    loose = [n for n, m in house.items() if n.count(".") == 1 and m.path.name != "__init__.py"]
    assert [name for name in loose if top(name) in ("pipeline", "apps")] == []


def test_code_that_is_named_by_a_value_is_known_place_by_place(house):
    assert {place for module in house.values() for place in named_code(module)} == set(NAMED_CODE)


def test_no_torch_on_the_ground_floor_and_on_devices(house):
    assert heavy_reaches(house) == []


def test_lowering_tools_are_imported_only_inside_functions_of_lower(house):
    assert lowering_imports(house) == []


def test_importing_a_module_does_no_work(house):
    assert [line for module in house.values() for line in side_effects(module)] == []


@pytest.fixture(scope="module")
def package(house) -> Module:
    """The package's own module, which is in no room."""
    path = ROOT / PACKAGE / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return Module(PACKAGE, path, tree, tuple(imports_of(tree, PACKAGE, set(house))))


def test_importing_the_package_loads_the_standard_library_alone(package):
    at_once = {top(entry.module) for entry in package.imports if entry.when == "import"}
    assert at_once <= {"__future__", "typing"}
    assert side_effects(package) == mutable_defaults(package) == named_code(package) == []


def test_the_package_names_what_there_is(package, house):
    inner = {entry.module for entry in package.imports if top(entry.module) not in sys.stdlib_module_names}
    assert inner and inner <= set(house)


def test_the_package_is_python_3_9(package):
    assert ast.parse(package.path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_no_default_argument_is_mutable(house):
    assert [line for module in house.values() for line in mutable_defaults(module)] == []


def test_torch_free_modules_really_import_where_there_is_no_torch(house):
    """The same law without ast: import them all in a process that cannot import torch or a compiler."""
    names = [name for name in house if must_be_torch_free(name) and not name.endswith("__main__")]
    absent = LOWERING | {"torch", "torchvision", "ai_edge_litert"}
    code = (
        "import sys\n"
        f"for name in {sorted(absent)!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: __import__(name)\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


# The checkers themselves, on small houses that break one law each.


def small_house(root: Path, **files: str) -> dict[str, Module]:
    for name, text in {**{room: "" for room in ROOMS}, **files}.items():
        path = root / name.replace("__", "/")
        if name in ROOMS or text.startswith("# package\n"):
            path = path / "__init__"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
    return read_house(root)


def test_upward_imports_are_seen_wherever_they_hide(tmp_path):
    house = small_house(
        tmp_path,
        targets__a="def f():\n    from pipeline import store\n",
        calibration__a="import importlib\nimportlib.import_module('apps.detector')\n",
        pipeline__a="from calibration import a\nfrom targets.a import f\n",
        pipeline__store="",
        targets__b="from .a import f\n",
    )
    assert upward_imports(house) == [
        "targets.a:2 imports pipeline.store",
        "calibration.a:2 imports apps.detector",
    ]


def test_circles_are_seen(tmp_path):
    house = small_house(
        tmp_path,
        pipeline__a="from . import b\n",
        pipeline__b="def f():\n    import pipeline.c\n",
        pipeline__c="from pipeline.a import x\n",
        pipeline__d="from pipeline.a import x\n",
        pipeline__e="from pipeline.f import x\n",
        pipeline__f="if __name__ == '__main__':\n    from pipeline.e import main\n",
    )
    assert circles(house, in_functions=True) == ["pipeline.a -> pipeline.b -> pipeline.c -> pipeline.a"]
    assert circles(house, in_functions=False) == []


def test_torch_is_seen_through_our_own_modules_and_parent_packages(tmp_path):
    house = small_house(
        tmp_path,
        calibration__preprocess="from calibration.helper import x\nimport numpy\n",
        calibration__helper="def f():\n    import torch.nn\n",
        apps__net="# package\nimport torch\n",
        apps__net__device="# package\n",
        apps__net__device__run="import cv2\nimport pydantic\n",
        apps__lazy="# package\ndef f():\n    import torch\n",
        apps__lazy__device="# package\nimport json\nfrom ai_edge_litert import interpreter\n",
        targets__fine="import pydantic\n",
    )
    assert sorted(heavy_reaches(house)) == [
        "apps.net.device -> apps.net imports torch",
        "apps.net.device.run -> apps.net imports torch",
        "apps.net.device.run imports pydantic, which a board does not have",
        "calibration.preprocess -> calibration.helper imports torch",
    ]


def test_lowering_imports_are_seen(tmp_path):
    house = small_house(
        tmp_path,
        pipeline__lower="# package\n",
        pipeline__lower__a="import torchao\ndef f():\n    import executorch.exir\n",
        pipeline__b="def f():\n    from litert_torch import convert\n",
        pipeline__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import executorch\n",
    )
    assert sorted(lowering_imports(house)) == [
        "pipeline.b:2 imports litert_torch",
        "pipeline.lower.a:1 imports torchao",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "print('x')",
        "REGISTRY['a'] = 1",
        "REGISTRY.update(a=1)",
        "x = open('f')",
        "for i in range(3): pass",
        "import sys\nsys.path.insert(0, 'x')",
        "import os\nos.environ['A'] = 'b'",
        "class A:\n    x = load()",
        "@register('name')\ndef f(): pass",
        "def f(x=load()): pass",
        "try:\n    go()\nexcept OSError: pass",
        "x = [load(i) for i in (1, 2)]",
        "with open('f') as file: pass",
        "import torch\ntorch.manual_seed(0)",
        "x: int = load()",
        "x += 1",
        "if True:\n    go()",
        "assert True",
    ],
)
def test_side_effects_are_seen(tmp_path, statement):
    house = small_house(tmp_path, pipeline__a=statement + "\n")
    assert len(side_effects(house["pipeline.a"])) >= 1


@pytest.mark.parametrize(
    "statement",
    [
        '"""Docs."""',
        "X = (1, 2)",
        "X: int = 1",
        "@dataclass(frozen=True)\nclass A:\n    x: int = field(default=1)",
        "if __name__ == '__main__':\n    main()",
        "if TYPE_CHECKING:\n    import x",
        "T = TypeVar('T')",
        "import re\nX = re.compile('a')",
        "f = lambda: load()",
        "X = Budget()",
        "X = 3 * 10**9",
        "app = typer.Typer()\n@app.command()\ndef run(x=typer.Option(1)):\n    go()",
        "try:\n    import a\nexcept ImportError:\n    a = None",
    ],
)
def test_definitions_are_no_side_effects(tmp_path, statement):
    house = small_house(tmp_path, pipeline__a=statement + "\n")
    assert side_effects(house["pipeline.a"]) == []


def test_mutable_defaults_are_seen(tmp_path):
    house = small_house(
        tmp_path,
        pipeline__a="def f(a, b=[], *, c=dict(), d=None): pass\ng = lambda x={}: x\ndef h(x=(), y=0): pass\n",
    )
    assert [line.rpartition(" ")[2] for line in sorted(mutable_defaults(house["pipeline.a"]))] == [
        "[]",
        "dict()",
        "{}",
    ]
