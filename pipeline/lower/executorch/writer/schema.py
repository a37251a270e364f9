"""Flatbuffers by a schema that is read at run time: those of ExecuTorch, from the files of its wheel.

The bytes are those that `flatc` makes of JSON, or those of its generated Python classes: both are used by the
exporter, and they lay out the fields of a table differently.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM, XNNPACK = "exir/_serialize/program.fbs", "backends/xnnpack/serialization/schema.fbs"
_SIZES: Mapping[str, int] = {
    "bool": 1, "byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "uint32": 4, "float": 4,
    "long": 8, "int64": 8, "uint64": 8, "double": 8,
}  # fmt: skip
_PUT: Mapping[str, str] = {
    "bool": "Bool", "byte": "Int8", "ubyte": "Uint8", "short": "Int16", "ushort": "Uint16", "int": "Int32",
    "uint": "Uint32", "uint32": "Uint32", "float": "Float32", "long": "Int64", "int64": "Int64",
    "uint64": "Uint64", "double": "Float64",
}  # fmt: skip
_OFFSET = 4  # bytes of a reference

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


class Packer:
    """Writes a table and all that is in it.

    Args:
        name: of the schema's file.
        sorted_fields: the larger fields of a table first, as flatc does.
    """

    def __init__(self, name: str, *, sorted_fields: bool) -> None:
        import flatbuffers

        self._schema, self._sorted = schema(name), sorted_fields
        self._builder = flatbuffers.Builder(1024)

    def pack(self, root: str, table: Table) -> bytes:
        """The bytes of a file.

        Args:
            root: name of the table.
            table: its fields; none of those that are left out is written.
        """
        self._builder.Finish(self._table(root, table), self._schema.identifier)
        return bytes(self._builder.Output())

    def _table(self, name: str, table: Table) -> int:
        fields = self._schema.tables[name]
        put: list[tuple[int, str, float | int]] = []
        for word, value in table.items():
            field = fields[word]
            if value is None:
                continue
            if field.type in self._schema.unions:
                number, member = self._schema.unions[field.type][value[0]]
                put += [(field.slot - 1, "ubyte", number), (field.slot, "", self._table(member, value[1]))]
            elif (kind := self._number(field.type)) is not None:
                whole = self._schema.enums[field.type][1][value] if isinstance(value, str) else value
                put.append((field.slot, kind, whole))
            else:
                put.append((field.slot, "", self._reference(field.type, value)))
        slots = max((field.slot for field in fields.values()), default=-1) + 1
        return self._object(slots, sorted(put))

    def _object(self, slots: int, put: Sequence[tuple[int, str, float | int]]) -> int:
        self._builder.StartObject(slots)
        if self._sorted:  # the sort is stable
            put = sorted(reversed(put), key=lambda each: -_SIZES.get(each[1], _OFFSET))
        for slot, kind, value in put:
            if kind:
                getattr(self._builder, f"Prepend{_PUT[kind]}Slot")(slot, value, 0)
            else:
                self._builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return self._builder.EndObject()

    def _number(self, kind: str) -> str | None:
        """The type of numbers that a type is; None where it is none."""
        if kind in self._schema.enums:
            return self._schema.enums[kind][0]
        return kind if kind in _SIZES else None

    def _reference(self, kind: str, value: Any) -> int:
        if kind == "string":
            return self._builder.CreateString(value)
        if not kind.startswith("["):
            return self._table(kind, value)
        inner, builder = kind[1:-1], self._builder
        number = self._number(inner)
        items = value if number is not None else [self._reference(inner, each) for each in value]
        size = _SIZES[number] if number is not None else _OFFSET
        builder.StartVector(size, len(items), size)
        for each in reversed(items):
            if number is None:
                builder.PrependUOffsetTRelative(each)
            else:
                getattr(builder, f"Prepend{_PUT[number]}")(each)
        return builder.EndVector()
