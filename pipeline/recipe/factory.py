"""Networks of the user's own code, named in a recipe as "my_package.nets:factory"."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from paredown.targets.errors import InputError


def from_factory(spec: str) -> tuple[Any, Path | None]:
    """Calls the user's factory, without arguments.

    Args:
        spec: "package.module:function"; packages beside the working folder are found too.

    Returns:
        What it made, and the source file of its module if there is one.

    Raises:
        InputError: the module cannot be imported, has no such function, or the function fails.
    """
    module_name, _, factory_name = spec.partition(":")
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # the user's own package, beside the recipe's command
        module = importlib.import_module(module_name)
        made = getattr(module, factory_name)()
    except Exception as error:  # the user's own code: whatever it raises is about it, not about us
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"cannot make {spec}: {reason}", where="recipe, key network") from error
    file = getattr(module, "__file__", None)  # a module built into Python has none
    return made, Path(file) if file else None
