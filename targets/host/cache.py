"""What is made once on a machine and kept: emulated boards' files, runners, plugins."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from paredown.targets.errors import DeviceError


def cache_folder() -> Path:
    """The folder of everything kept: `PAREDOWN_CACHE`, else ~/.cache/paredown."""
    given = os.environ.get("PAREDOWN_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "paredown"


def key_of(*parts: str | bytes) -> str:
    """A name for what is made from these, and only these: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made where it is not there yet; it appears whole or not at all.

    Args:
        folder: the one wanted; its name says what it was made from.
        make: fills an empty folder beside it, which is then renamed. Two processes may do so at once: the
            first to finish wins, the other's work is thrown away.

    Raises:
        DeviceError: the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            fresh = Path(scratch) / folder.name
            fresh.mkdir()
            make(fresh)
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise DeviceError(
            f"the cache cannot be written: {error.strerror}", where=folder,
            hint="make room, or set PAREDOWN_CACHE to another folder",
        ) from error  # fmt: skip
    return folder
