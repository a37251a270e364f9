"""Is the graph within a .pte one that XNNPACK's delegate can build? It looks ids up without a question.

Source of what is checked: `XNNCompiler.cpp` of ExecuTorch, which relies on it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from paredown.pipeline.lower.executorch.schema import XNNPACK, Table, schema
from paredown.pipeline.lower.executorch.verify.flatbuffer import Damaged, Reader

_HEADER = struct.Struct("<4x4sHIIIQ")
_NONE = 2**32 - 1
_MOST_AXES = 6
_EXTERNAL = 3  # flags of a value that comes from outside or goes there
_BITS: Mapping[str, int] = {
    "fp32": 32, "fp16": 16, "qint8": 8, "quint8": 8, "qint32": 32, "qcint8": 8, "qcint32": 32, "qcint4": 4,
    "qdint8": 8, "qbint4": 4, "qpint8": 8, "int32": 32, "pfp32": 32, "bf16": 16,
}  # fmt: skip


def check_graph(data: memoryview, named: Mapping[str, int]) -> int:
    """Looks at what a delegate of XNNPACK is made from.

    Args:
        data: its bytes: a header, the graph, perhaps constants.
        named: name -> bytes of the constants that the program has for it.

    Returns:
        How many inputs and outputs it has.

    Raises:
        Damaged: XNNPACK could not build it, and might not come back from trying.
    """
    begin, size, constants, room = 0, len(data), 0, 0
    if len(data) >= _HEADER.size and bytes(data[4:8]) == b"XH00":
        _, _, begin, size, constants, room = _HEADER.unpack_from(data)
    if begin + size > len(data) or constants + room > len(data):
        raise Damaged("XNNPACK's graph reaches beyond the file")
    graph = data[begin : begin + size]
    if bytes(graph[4:8]) not in (b"XN00", schema(XNNPACK).identifier):
        raise Damaged("XNNPACK's graph does not begin as one (XN01)")
    table = Reader(XNNPACK, graph).read("XNNGraph")
    held = [_constant(each, room, named) for each in table.get("constant_data", ())]
    if not held:
        held = [len(each.get("storage", b"")) for each in table.get("constant_buffer", ())]
    externs, known = table.get("num_externs", 0), set[int]()
    for index, value in enumerate(table.get("xvalues", ())):
        known.add(_value(value, held, externs, f"value {index} of XNNPACK's graph"))
    for index, node in enumerate(table.get("xnodes", ())):
        _node(node, known, f"node {index} of XNNPACK's graph")
    ends = [int(each) for word in ("input_ids", "output_ids") for each in table.get(word, ())]
    if not known.issuperset(ends) or len(set(ends)) != len(ends):
        raise Damaged("XNNPACK's graph has inputs or outputs that are none of its values")
    return len(ends)


def _constant(table: Table, room: int, named: Mapping[str, int]) -> int:
    """The bytes of a constant."""
    size, name = table.get("size", 0), table.get("named_key", "")
    if name:
        if name not in named:
            raise Damaged(f"XNNPACK's graph wants data called {name[:40]!r}, which the program has not")
        return named[name]
    if table.get("offset", 0) + size > room:
        raise Damaged("a constant of XNNPACK's graph reaches beyond the file")
    return int(size)


def _value(value: Table, held: Sequence[int], externs: int, where: str) -> int:
    """Returns its id."""
    if "xvalue_union" not in value:
        raise Damaged(f"{where} has no kind")
    kind, table = value["xvalue_union"]
    quantized = table if kind == "XNNQuantizedTensorValue" else {}
    tensor = table.get("tensor_value", {}) if quantized else table
    dims = [int(each) for each in tensor.get("dims", ())]
    if tensor.get("num_dims", 0) != len(dims) or len(dims) > _MOST_AXES:
        raise Damaged(f"{where} has a shape that is none")
    numbers = schema(XNNPACK).enums["XNNDatatype"][1]
    kinds = {number: _BITS.get(name.removeprefix("xnn_datatype_")) for name, number in numbers.items()}
    bits = kinds.get(tensor.get("datatype", 0))
    if bits is None:
        raise Damaged(f"{where} is of no type that XNNPACK has")
    if tensor.get("flags", 0) & _EXTERNAL and tensor.get("external_id", 0) >= externs:
        raise Damaged(f"{where} comes from an input or output that the graph has not")
    size = (math.prod(dims) * bits + 7) // 8
    if size >= 1 << 40:
        raise Damaged(f"{where} has {size:,} bytes")
    if index := tensor.get("constant_buffer_idx", 0):
        if index >= len(held) or size > held[index]:
            raise Damaged(f"{where} has {size:,} bytes, and its constant is shorter or missing")
    if "quant_params" in quantized:
        how, scales = quantized["quant_params"]
        _scales(how, scales, dims, held, where)
    elif quantized:
        raise Damaged(f"{where} has codes without a scale")
    return int(tensor.get("id_out", 0))


def _scales(kind: str, table: Table, dims: Sequence[int], held: Sequence[int], where: str) -> None:
    if kind == "PerTokenDynamicQuant":
        if table.get("num_nonbatch_dims", 0) > len(dims):
            raise Damaged(f"{where} has scales of axes that it has not")
        return
    if kind == "PerTensorQuant":
        return
    axis = table.get("channel_dim", 0)
    if not 0 <= axis < len(dims):
        raise Damaged(f"{where} has scales along an axis that it has not")
    wanted, width = dims[axis], 4
    if kind == "PerChannelGroupQuant":
        group = table.get("group_size", 0)
        if group <= 0:
            raise Damaged(f"{where} has scales of groups of {group}")
        wanted, width = math.prod(dims) // group, 2
    if buffer := table.get("scale_buffer_idx", 0):
        count = held[buffer] // width if buffer < len(held) else -1
    else:
        count = max(len(table.get(word, ())) for word in ("scale", "scale_bf16"))
    if count < wanted:
        raise Damaged(f"{where} has {max(count, 0)} scales, and {wanted} channels")


def _node(node: Table, known: set[int], where: str) -> None:
    if "xnode_union" not in node:
        raise Damaged(f"{where} has no kind")
    kind, table = node["xnode_union"]
    fields = schema(XNNPACK).tables[schema(XNNPACK).unions["XNodeUnion"][kind][1]]
    for word in fields:
        if not word.endswith("_id") or _unread(kind, word):
            continue
        value: Any = table.get(word, 0)
        if value not in known and not (word == "bias_id" and value == _NONE):
            raise Damaged(f"{where} ({kind}) reads or writes value {value}, which the graph has not")


def _unread(kind: str, word: str) -> bool:
    """Whether a field is one of those that only a concatenation of more inputs reads."""
    if not kind.startswith("XNNConcatenate") or not word.startswith("input"):
        return False
    return int(word[len("input")]) > int(kind[-1])
