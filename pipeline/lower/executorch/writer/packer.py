"""Writes flatbuffers by a schema that is read at run time.

The bytes are those that `flatc` makes of JSON, or those of its generated Python classes: both are used by the
exporter, and they lay out the fields of a table differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paredown.pipeline.lower.executorch.schema import SIZES, Table, schema

_PUT: Mapping[str, str] = {
    "bool": "Bool", "byte": "Int8", "ubyte": "Uint8", "short": "Int16", "ushort": "Uint16", "int": "Int32",
    "uint": "Uint32", "uint32": "Uint32", "float": "Float32", "long": "Int64", "int64": "Int64",
    "uint64": "Uint64", "double": "Float64",
}  # fmt: skip
_OFFSET = 4  # bytes of a reference


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
            elif (kind := self._schema.number(field.type)) is not None:
                whole = self._schema.enums[field.type][1][value] if isinstance(value, str) else value
                put.append((field.slot, kind, whole))
            else:
                put.append((field.slot, "", self._reference(field.type, value)))
        slots = max((field.slot for field in fields.values()), default=-1) + 1
        return self._object(slots, sorted(put))

    def _object(self, slots: int, put: Sequence[tuple[int, str, float | int]]) -> int:
        self._builder.StartObject(slots)
        if self._sorted:  # the sort is stable
            put = sorted(reversed(put), key=lambda each: -SIZES.get(each[1], _OFFSET))
        for slot, kind, value in put:
            if kind:
                getattr(self._builder, f"Prepend{_PUT[kind]}Slot")(slot, value, 0)
            else:
                self._builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return self._builder.EndObject()

    def _reference(self, kind: str, value: Any) -> int:
        if kind == "string":
            return self._builder.CreateString(value)
        if not kind.startswith("["):
            return self._table(kind, value)
        inner, builder = kind[1:-1], self._builder
        number = self._schema.number(inner)
        items = value if number is not None else [self._reference(inner, each) for each in value]
        size = SIZES[number] if number is not None else _OFFSET
        builder.StartVector(size, len(items), size)
        for each in reversed(items):
            if number is None:
                builder.PrependUOffsetTRelative(each)
            else:
                getattr(builder, f"Prepend{_PUT[number]}")(each)
        return builder.EndVector()
