"""Our own source files as they travel to a device: name among a bundle's members -> file here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

PACKAGE, INIT = "paredown", "__init__.py"
ROOMS = Path(__file__).parents[1]  # the folder that holds apps/, calibration/, pipeline/ and targets/


def own_code(names: Iterable[str]) -> dict[str, Path]:
    """Where files of ours lie on this machine.

    Args:
        names: paths below the installed package, as "targets/errors.py"; globs are fine; "__init__.py" is the
            package's own.

    Returns:
        "paredown/targets/errors.py" -> the file here; sorted.

    Raises:
        FileNotFoundError: there is none of a name.
    """
    found = {}
    for name in names:
        if name == INIT:  # not beside the rooms in a clone
            spec = importlib.util.find_spec(PACKAGE)
            found[f"{PACKAGE}/{INIT}"] = Path(str(spec and spec.origin))
            continue
        files = [path for path in ROOMS.glob(name) if path.is_file()]
        if not files:
            raise FileNotFoundError(f"paredown has no {name}")
        found |= {f"{PACKAGE}/{path.relative_to(ROOMS).as_posix()}": path for path in files}
    return dict(sorted(found.items()))


def installed(name: str) -> Path | None:
    """The file here of a name that `own_code` gives; None where there is none.

    Args:
        name: as "paredown/targets/errors.py"; no globs.
    """
    if name == f"{PACKAGE}/{INIT}":
        return own_code([INIT])[name]
    file = ROOMS / name.removeprefix(f"{PACKAGE}/")
    return file if name.startswith(f"{PACKAGE}/") and file.is_file() else None
