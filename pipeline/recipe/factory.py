"""Networks of the user's own code, named in a recipe as "my_package.nets:factory".

The module is looked for beside the recipe, then in the working folder, then among the installed packages. It
may have any name: ours are all below `paredown`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from paredown.targets.errors import InputError


def from_factory(spec: str, folder: Path | None = None) -> tuple[Any, Path | None]:
    """Calls the user's factory, without arguments.

    `sys.path` is as before afterwards. A module of that name that came from elsewhere is left to whoever
    imported it.

    Args:
        spec: "package.module:function".
        folder: of the recipe; None where the recipe has no file.

    Returns:
        What it made, and the source file of its module if there is one.

    Raises:
        InputError: the module cannot be imported, has no such function, or the function fails.
    """
    module_name, _, factory_name = spec.partition(":")
    folders = list(dict.fromkeys(path.resolve() for path in (folder, Path.cwd()) if path is not None))
    try:
        with _imported(module_name, folders) as module:
            made = getattr(module, factory_name)()
    except Exception as error:  # the user's own code: whatever it raises is about it, not about us
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"cannot make {spec}: {reason}", where="recipe, key network") from error
    file = getattr(module, "__file__", None)  # a module built into Python has none
    return made, Path(file) if file else None


@contextlib.contextmanager
def _imported(name: str, folders: list[Path]) -> Iterator[ModuleType]:
    """The module of that name in the first of these folders that has one, or else any of that name.

    While it is in use, its folder is the first of `sys.path`: it may import its neighbours.
    """
    importlib.invalidate_caches()
    found = next(((path, top) for path in folders if (top := _top_spec(name, path))), None)
    path_before = list(sys.path)
    if found is None:  # an installed package, or one that finds its modules in its own way
        sys.path += [str(path) for path in folders if str(path) not in sys.path]
        try:
            yield importlib.import_module(name)
        finally:
            sys.path[:] = path_before
        return
    path, top = found
    displaced = {} if _is_loaded(top) else _taken_out(top.name)
    sys.path.insert(0, str(path))
    try:
        if top.name not in sys.modules:
            _load(top)
        yield importlib.import_module(name)
    finally:
        sys.path[:] = path_before
        if displaced:
            _taken_out(top.name)
            sys.modules.update(displaced)


def _top_spec(name: str, folder: Path) -> ModuleSpec | None:
    """How the outermost package of a module is loaded from a folder, None where that has no such module."""
    parts = name.split(".")
    search: list[str] | None = [str(folder)]
    top = spec = None
    for length in range(1, len(parts) + 1):
        if search is None:  # a plain module has no others below it
            return None
        spec = PathFinder.find_spec(".".join(parts[:length]), search)
        if spec is None:
            return None
        top = top or spec
        search = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return top if spec and spec.origin else None  # a folder without code has no origin


def _is_loaded(spec: ModuleSpec) -> bool:
    """Whether the module of this name that is imported already is this one."""
    loaded = getattr(sys.modules.get(spec.name), "__spec__", None)
    if loaded is None:
        return False
    if spec.origin or loaded.origin:
        return spec.origin == loaded.origin
    return list(loaded.submodule_search_locations or ()) == list(spec.submodule_search_locations or ())


def _taken_out(name: str) -> dict[str, ModuleType]:
    """Takes a package and all its modules out of `sys.modules`; what they were."""
    names = [each for each in sys.modules if each == name or each.startswith(f"{name}.")]
    return {each: sys.modules.pop(each) for each in names}


def _load(spec: ModuleSpec) -> None:
    """Imports a module from where its spec says, and from nowhere else."""
    if spec.submodule_search_locations is not None:  # of a package without __init__.py: found by name, else
        spec.submodule_search_locations = list(spec.submodule_search_locations)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if spec.loader is None:
        return
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
