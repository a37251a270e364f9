"""Addresses with passwords: they come from a file that only its owner reads, never from a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from paredown.targets.errors import InputError, UsageError

HINT = "write the address into a file there, `chmod 600` it, and give --source @FILE"
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_OTHERS = 0o077  # whoever is not the owner


def source_text(text: str) -> str:
    """What `--source` means: of @FILE the file's first line, else the text itself.

    Raises:
        InputError: there is no such file, it is empty, or others may read it.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        open_to_others = path.stat().st_mode & _OTHERS
        with path.open() as file:
            line = file.readline().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the source's address: {reason}", where=path) from error
    if open_to_others:
        raise InputError("holds an address that others can read", where=path, hint=f"chmod 600 {path}")
    if not line:
        raise InputError("holds no address", where=path)
    return line


def check_arguments(arguments: Iterable[str]) -> None:
    """Refuses passwords in arguments that a device would show to everybody who is there.

    Raises:
        UsageError: one holds a password; it is not repeated.
    """
    if any(_PASSWORD.search(each) for each in arguments):
        raise UsageError("a password in a command line can be seen by everybody on the device", hint=HINT)
