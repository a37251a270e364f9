"""Reads a flatbuffer of anybody's by its schema: what FlatBuffers' own verifier checks, and nothing beyond.

Every reference, table, vector and string lies within the file and is aligned as its type is; strings end in
a zero; tables are nested at most 64 deep and at most a million. Source: `flatbuffers/verifier.h`.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from paredown.pipeline.lower.executorch.schema import SIZES, Field, Table, schema

DEEPEST, MOST_TABLES = 64, 1_000_000
_FORMS = {
    "bool": "<u1", "byte": "<i1", "ubyte": "<u1", "short": "<i2", "ushort": "<u2", "int": "<i4",
    "uint": "<u4", "uint32": "<u4", "float": "<f4", "long": "<i8", "int64": "<i8", "uint64": "<u8",
    "double": "<f8",
}  # fmt: skip


class Damaged(ValueError):
    """What is wrong with a file, in words that follow its name."""


class Reader:
    """Reads tables.

    Args:
        name: of the schema's file.
        data: of the flatbuffer, from its first byte to its last.
    """

    def __init__(self, name: str, data: bytes | memoryview) -> None:
        self._schema, self._data = schema(name), memoryview(data)
        self._known: dict[tuple[str, int], Table] = {}

    def read(self, root: str) -> Table:
        """The root table and all that is in it; numbers of vectors are arrays that look into the file.

        Args:
            root: name of the table.

        Raises:
            Damaged: the file is not such a flatbuffer.
        """
        return self._table(self._reference(0, root), root, root, 1)

    def _number(self, at: int, form: str, where: str) -> Any:
        size = np.dtype(form).itemsize
        self._within(at, size, where)
        if at % size:
            raise Damaged(f"{where} is not aligned")
        return np.frombuffer(self._data, form, 1, at)[0].item()

    def _within(self, at: int, size: int, where: str) -> None:
        if at < 0 or size < 0 or at + size > len(self._data):
            raise Damaged(f"{where} reaches beyond the file")

    def _reference(self, at: int, where: str) -> int:
        offset = self._number(at, "<u4", where)
        if not 0 < offset < 1 << 31:
            raise Damaged(f"{where} refers to nothing")
        self._within(at + offset, 1, where)
        return int(at + offset)

    def _table(self, at: int, name: str, where: str, depth: int) -> Table:
        if (name, at) in self._known:
            return self._known[name, at]
        if depth > DEEPEST or len(self._known) >= MOST_TABLES:
            raise Damaged(f"{where} is nested too deep" if depth > DEEPEST else "it has too many tables")
        slots = at - self._number(at, "<i4", where)
        size = self._number(slots, "<u2", where)
        self._within(slots, size, where)
        if size % 2 or size < 4:
            raise Damaged(f"{where} has no table of fields")
        offsets = struct.unpack_from(f"<{size // 2 - 2}H", self._data, slots + 4)

        def place(slot: int) -> int:
            return at + offsets[slot] if slot < len(offsets) and offsets[slot] else 0

        found: dict[str, Any] = {}
        for word, field in self._schema.tables[name].items():
            if spot := place(field.slot):
                kind = place(field.slot - 1) if field.type in self._schema.unions else 0
                found[word] = self._field(spot, field, kind, f"{where}.{word}", depth)
            elif field.type in self._schema.unions and (kind := place(field.slot - 1)):
                if self._number(kind, "<u1", where):
                    raise Damaged(f"{where}.{word} is not there, and its kind is")
        self._known[name, at] = found
        return found

    def _field(self, at: int, field: Field, kind: int, where: str, depth: int) -> Any:
        if members := self._schema.unions.get(field.type):
            number = self._number(kind, "<u1", where) if kind else 0
            for member, (own, table) in members.items():
                if own == number:
                    return member, self._table(self._reference(at, where), table, where, depth + 1)
            raise Damaged(f"{where} is of kind {number}, which the schema has not")
        if number_type := self._schema.number(field.type):
            return self._number(at, _FORMS[number_type], where)
        spot = self._reference(at, where)
        if field.type == "string":
            return self._string(spot, where)
        if field.type.startswith("["):
            return self._vector(spot, field.type[1:-1], where, depth)
        return self._table(spot, field.type, where, depth + 1)

    def _string(self, at: int, where: str) -> str:
        count = self._number(at, "<u4", where)
        self._within(at + 4, count + 1, where)
        if self._data[at + 4 + count]:
            raise Damaged(f"{where} does not end")
        return bytes(self._data[at + 4 : at + 4 + count]).decode("utf-8", "replace")

    def _vector(self, at: int, kind: str, where: str, depth: int) -> Any:
        count, number = self._number(at, "<u4", where), self._schema.number(kind)
        size = SIZES[number] if number else 4
        self._within(at + 4, count * size, where)
        if (at + 4) % size:
            raise Damaged(f"{where} is not aligned")
        if number:
            return np.frombuffer(self._data, _FORMS[number], count, at + 4)
        spots = [self._reference(at + 4 + 4 * index, where) for index in range(count)]
        if kind == "string":
            return [self._string(spot, f"{where}[{index}]") for index, spot in enumerate(spots)]
        return [self._table(spot, kind, f"{where}[{index}]", depth + 1) for index, spot in enumerate(spots)]
