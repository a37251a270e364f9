"""The schemas of ExecuTorch's flatbuffers, from the files of its wheel."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM, XNNPACK = "exir/_serialize/program.fbs", "backends/xnnpack/serialization/schema.fbs"
#: Bytes of a number, by the type's name.
SIZES: Mapping[str, int] = {
    "bool": 1, "byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "uint32": 4, "float": 4,
    "long": 8, "int64": 8, "uint64": 8, "double": 8,
}  # fmt: skip

#: A table's fields by name; a field that is a union is a pair of the member's name and its table.
Table = Mapping[str, Any]


class Field(NamedTuple):
    """A field of a table.

    Attributes:
        slot: its number.
        type: its name, in brackets for a vector.
    """

    slot: int
    type: str


@dataclass(frozen=True)
class Schema:
    """What a schema file says.

    Attributes:
        tables: name -> name of a field -> the field.
        enums: name -> its type, and name of a value -> the value.
        unions: name -> name of a member -> its number and the table that it has.
        identifier: of files.
    """

    tables: Mapping[str, Mapping[str, Field]]
    enums: Mapping[str, tuple[str, Mapping[str, int]]]
    unions: Mapping[str, Mapping[str, tuple[int, str]]]
    identifier: bytes

    def number(self, kind: str) -> str | None:
        """The type of numbers that a type is; None where it is none."""
        if kind in self.enums:
            return self.enums[kind][0]
        return kind if kind in SIZES else None


@functools.cache
def schema(name: str) -> Schema:
    """Reads a schema file of the installed ExecuTorch, without importing any of it.

    Args:
        name: within the package.
    """
    found = importlib.util.find_spec("executorch")
    assert found is not None and found.submodule_search_locations
    # The package has no __init__.py: any folder of that name on the path is a part of it.
    places = [Path(place) / name for place in found.submodule_search_locations]
    path = next((place for place in places if place.exists()), places[0])
    text = "".join(_text(path.with_name(each)) for each in (*_included(path), path.name))
    enums: dict[str, tuple[str, Mapping[str, int]]] = {}
    unions = {}
    for word, kind, body in re.findall(r"enum\s+(\w+)\s*:\s*(\w+)\s*{(.*?)}", text, re.S):
        enums[word] = kind, _numbered(body)
    for word, body in re.findall(r"union\s+(\w+)\s*{(.*?)}", text, re.S):
        members = [[part.strip() for part in each.split(":")] for each in body.split(",") if each.strip()]
        unions[word] = {each[0]: (index, each[-1]) for index, each in enumerate(members, 1)}
    tables = {
        word: _fields(body, unions) for word, body in re.findall(r"table\s+(\w+)\s*{(.*?)}", text, re.S)
    }
    (identifier,) = re.findall(r'file_identifier\s+"(\w+)"', text)
    return Schema(tables, enums, unions, identifier.encode())


def _text(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def _included(path: Path) -> list[str]:
    return re.findall(r'include\s+"([\w.]+)"', path.read_text())


def _numbered(body: str) -> dict[str, int]:
    found, number = {}, -1
    for each in filter(None, map(str.strip, body.split(","))):
        word, _, value = map(str.strip, each.partition("="))
        number = int(value) if value else number + 1
        found[word] = number
    return found


def _fields(body: str, unions: Mapping[str, Any]) -> dict[str, Field]:
    found, slot = {}, 0
    for word, kind in re.findall(r"(\w+)\s*:\s*(\[?\w+\]?)[^;]*;", body):
        slot += kind in unions  # before it is the number of its member
        found[word] = Field(slot, kind)
        slot += 1
    return found
