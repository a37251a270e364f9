"""Is a .pte what its runtime takes for granted? Looked at before a runtime sees it.

ExecuTorch's wheel verifies nothing: indices that point nowhere, tensors larger than their memory and segments
beyond the file end the process, or read what is not theirs. Source of what is checked: `program.cpp`,
`method.cpp` and `tensor_parser_portable.cpp` of ExecuTorch, which rely on it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from paredown.pipeline.lower.executorch.schema import PROGRAM, Table, schema
from paredown.pipeline.lower.executorch.verify.delegated import check_graph
from paredown.pipeline.lower.executorch.verify.flatbuffer import Damaged, Reader
from paredown.targets.errors import InputError

_HEADER = struct.Struct("<4sIQQ")  # behind root and identifier: magic word, its length, program, segments
_WIDTHS = {
    "BYTE": 1, "CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 8, "HALF": 2, "FLOAT": 4, "DOUBLE": 8, "BOOL": 1,
    "QINT8": 1, "QUINT8": 1, "QINT32": 4, "BFLOAT16": 2, "UINT16": 2, "UINT32": 4, "UINT64": 8, "BITS16": 2,
}  # fmt: skip
LARGEST = 1 << 40  # bytes of a tensor: far more than any device has
SEGMENT = 1  # where data lie


def check_program(data: bytes, where: object = ".pte") -> None:
    """Looks at all that a runtime reads of a .pte before and while it runs.

    Args:
        data: its bytes.
        where: named in errors.

    Raises:
        InputError: it is cut off, damaged, or refers to what it does not have; the line says where.
    """
    try:
        _Program(data).check()
    except Damaged as error:
        raise InputError(
            f"not an ExecuTorch program: {error}", where=where, hint="make it again with `paredown run`"
        ) from error


class _Program:
    def __init__(self, data: bytes) -> None:
        if data[4:8] != schema(PROGRAM).identifier:
            raise Damaged("it does not begin as one (ET12)")
        self._data, size, self._base = memoryview(data), len(data), 0
        if len(data) >= 8 + _HEADER.size and data[8:12] == b"eh00":
            _, _, size, self._base = _HEADER.unpack_from(data, 8)
        if size > len(data):
            raise Damaged(f"it is cut off: {len(data):,} bytes are left of more than {size:,}")
        self._table = Reader(PROGRAM, self._data[:size]).read("Program")
        self._segments = [self._segment(each) for each in self._table.get("segments", ())]

    def _segment(self, table: Table) -> memoryview:
        begin, size = self._base + table.get("offset", 0), table.get("size", 0)
        if not self._base or begin + size > len(self._data):
            raise Damaged(f"a segment of {size:,} bytes at {begin:,} reaches beyond the file")
        return self._data[begin : begin + size]

    def check(self) -> None:
        table = self._table
        named = {}
        for each in table.get("named_data", ()):
            index = _index(each.get("segment_index", 0), self._segments, "named_data")
            named[each.get("key", "")] = len(self._segments[index])
        self._constants = [len(each.get("storage", b"")) for each in table.get("constant_buffer", ())]
        if constant := table.get("constant_segment"):
            offsets = [int(each) for each in constant.get("offsets", ())]
            if offsets:
                index = _index(constant.get("segment_index", 0), self._segments, "constant_segment")
                self._constants = self._constants or self._parts(offsets, len(self._segments[index]))
        plans = table.get("execution_plan", ())
        if not plans:
            raise Damaged("it has no method")
        for plan in plans:
            self._plan(plan, named)

    def _parts(self, offsets: Sequence[int], size: int) -> list[int]:
        """The bytes behind each offset of the segment of constants."""
        if any(offset > size for offset in offsets):
            raise Damaged("a constant begins beyond its segment")
        return [size - offset for offset in offsets]

    def _plan(self, plan: Table, named: dict[str, int]) -> None:
        values, name = plan.get("values", ()), plan.get("name", "")
        memory = [int(each) for each in plan.get("non_const_buffer_sizes", ())]
        if any(not 0 <= size < LARGEST for size in memory):
            raise Damaged(f"method {name!r} wants {max(memory):,} bytes of memory")
        for index, value in enumerate(values):
            self._value(value, values, memory, f"value {index} of method {name!r}")
        for word in ("inputs", "outputs"):
            _indices(plan.get(word, ()), values, f"{word} of method {name!r}")
        delegates = plan.get("delegates", ())
        takes = [self._delegate(each, named) for each in delegates]
        for chain in plan.get("chains", ()):
            steps = chain.get("instructions", ())
            for step in steps:
                self._step(step, steps, values, plan, takes)

    def _value(self, value: Table, values: Sequence[Table], memory: Sequence[int], where: str) -> None:
        if "val" not in value:
            raise Damaged(f"{where} has no kind")
        kind, table = value["val"]
        if kind == "Tensor":
            self._tensor(table, memory, where)
        elif kind in ("TensorList", "OptionalTensorList"):
            some = [each for each in table.get("items", ()) if kind == "TensorList" or each != -1]
            _indices(some, values, where)
            if any(values[each].get("val", ("",))[0] not in ("Tensor", "Null") for each in some):
                raise Damaged(f"{where} lists what is no tensor")
        elif kind == "IntList":
            _indices(table.get("items", ()), values, where)

    def _tensor(self, table: Table, memory: Sequence[int], where: str) -> None:
        sizes, order = table.get("sizes", ()), table.get("dim_order", ())
        if any(size < 0 for size in sizes) or sorted(order) != list(range(len(sizes))):
            raise Damaged(f"{where} has a shape that is none")
        kinds = schema(PROGRAM).enums["ScalarType"][1]
        width = next((_WIDTHS.get(n) for n, v in kinds.items() if v == table.get("scalar_type", 0)), None)
        if width is None:
            raise Damaged(f"{where} is of type {table.get('scalar_type', 0)}, which no kernel has")
        size = width * math.prod(int(each) for each in sizes)
        if size >= LARGEST:
            raise Damaged(f"{where} has {size:,} bytes")
        place, buffer = table.get("allocation_info"), table.get("data_buffer_idx", 0)
        if table.get("shape_dynamism", 0) not in (0, 1, 2):
            raise Damaged(f"{where} has a shape of no known kind")
        if place is not None and not buffer:
            offset = (place.get("memory_offset_high", 0) << 32) + place.get("memory_offset_low", 0)
            room = memory[_index(place.get("memory_id", 0), memory, where)]
            if not place.get("memory_id", 0) or offset + size > room:
                raise Damaged(
                    f"{where} does not fit into its memory ({size:,} bytes at {offset:,} of {room:,})"
                )
        elif buffer and (table.get("extra_tensor_info") or {}).get("location", 0) == 0 and place is None:
            held = self._constants[_index(buffer, self._constants, where)]
            if size > held:
                raise Damaged(f"{where} has {size:,} bytes, its constant {held:,}")

    def _delegate(self, table: Table, named: dict[str, int]) -> int:
        """Returns how many inputs and outputs a delegate of XNNPACK has; 0 of another one's."""
        place, name = table.get("processed") or {}, table.get("id", "")
        if place.get("location", 0) == SEGMENT:
            data = self._segments[_index(place.get("index", 0), self._segments, f"delegate {name}")]
        else:
            inline = self._table.get("backend_delegate_data", ())
            data = memoryview(
                inline[_index(place.get("index", 0), inline, f"delegate {name}")].get("data", b"")
            )
        return check_graph(data, named) if name == "XnnpackBackend" else 0

    def _step(
        self, step: Table, steps: Sequence[Table], values: Sequence[Table], plan: Table, takes: Sequence[int]
    ) -> None:
        if "instr_args" not in step:
            raise Damaged("an instruction has no kind")
        kind, table = step["instr_args"]
        _indices(table.get("args", ()), values, kind)
        if kind == "KernelCall":
            _index(table.get("op_index", 0), plan.get("operators", ()), kind)
        elif kind == "DelegateCall":
            wanted = takes[_index(table.get("delegate_index", 0), takes, kind)]
            tensors = [values[each].get("val", ("",))[0] == "Tensor" for each in table.get("args", ())]
            if wanted and (len(tensors) < wanted or not all(tensors)):
                raise Damaged(f"a call of XNNPACK passes {sum(tensors)} tensors, its graph has {wanted}")
        elif kind == "MoveCall":
            _indices((table.get("move_from", 0), table.get("move_to", 0)), values, kind)
        elif kind == "JumpFalseCall":
            _index(table.get("cond_value_index", 0), values, kind)
            _index(table.get("destination_instruction", 0), steps, kind)
        else:
            _index(table.get("value_index", 0), values, kind)


def _index(index: int, of: Sequence[Any], where: str) -> int:
    if not 0 <= index < len(of):
        raise Damaged(f"{where} refers to number {index} of {len(of)}")
    return int(index)


def _indices(indices: Iterable[Any], of: Sequence[Any], where: str) -> None:
    for index in indices:
        _index(int(index), of, where)
