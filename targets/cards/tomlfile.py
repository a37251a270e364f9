"""Reading a TOML file that a user wrote, and saying where in it something is wrong.

Cards and recipes share this: both are data files checked in full before any work starts.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paredown.targets.errors import InputError


def read_toml(path: Path, what: str) -> tuple[dict[str, Any], str]:
    """Reads a TOML file.

    Args:
        path: the file.
        what: what it is to the user, for the error line ("recipe", "target card").

    Returns:
        The parsed tables, and the text they were parsed from (for `line_of`).

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, or not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} is not UTF-8 text (byte {error.start})", where=path) from error
    except FileNotFoundError as error:
        raise InputError(f"no such {what} file", where=path) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot read the {what}: {reason}", where=path) from error
    try:
        # TOML allows \r\n; tomllib does too, but only as a whole file in text
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise InputError(f"the {what} is not valid TOML: {reason}", where=path) from error


def line_of(text: str, key: Sequence[str]) -> int | None:
    """The line (from 1) on which a dotted key stands, or None where the text writes it in another way.

    Best effort: it knows `[section]`, `key =` and `section.key =`, not inline tables or quoted keys.
    """
    section = ""
    wanted = ".".join(key)
    parent = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line):
            section = header[1]
            if section == wanted or section.startswith(wanted + "."):
                return number
            if section == ".".join(key[:-1]):
                parent = number
        elif assigned := re.match(r"\s*([\w.\-]+)\s*=", line):
            name = f"{section}.{assigned[1]}" if section else assigned[1]
            if name == wanted or name.startswith(wanted + "."):
                return number
            if wanted.startswith(name + "."):  # inside an inline table
                parent = number
    return parent


def place(source: object, text: str, key: Sequence[str]) -> str:
    """`file:line`, or the file alone where the line is not known."""
    line = line_of(text, key) if text else None
    return str(source) if line is None else f"{source}:{line}"


def written(value: object) -> str:
    """A value as its owner would write it in TOML, shortened to fit one line."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Mapping):
        text = "a table"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(written(item) for item in value) + "]"
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def first_problem(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """The first thing that a schema found wrong: the key, and a line with the value and what is accepted."""
    detail = error.errors(include_url=False)[0]
    key = tuple(str(part) for part in detail["loc"])
    name = ".".join(key)
    kind = detail["type"]
    if kind == "missing":
        return key, f"`{name}` is missing"
    if kind == "extra_forbidden":
        return key, f"unknown key `{name}`"
    said = detail["msg"].removeprefix("Value error, ")
    accepted = said.partition(" should ")[2] or f"be {said}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        accepted = f"be a table: [{name}]"
    elif kind == "tuple_type":
        accepted = f"be a list, such as [{written(detail['input'])}]"
    elif kind == "value_error":  # a check of ours: its words are the whole message
        return key, f"{f'`{name}`: ' if name else ''}{said}"
    return key, f"`{name} = {written(detail['input'])}` is not accepted: it must {accepted}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like this one, or None where none is near (difflib's ratio under 0.6)."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None
