"""The .pte round one call of the XNNPACK delegate: its plan, its segments and its header.

The layout is `program.fbs` and `extended_header.cpp` of ExecuTorch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from paredown.pipeline.lower.executorch.schema import PROGRAM
from paredown.pipeline.lower.executorch.writer.packer import Packer

_HEADER = struct.Struct("<4sIQQQ")  # magic word, its length, bytes of the program, of segments: begin, size
_SEGMENT = 128  # alignment of segments
_TENSOR = 16  # of tensors in memory
_BEYOND = 64  # bytes behind a buffer that XNNPACK may read
_LEAF = '{"type": null, "context": null, "children_spec": []}'
_NEST = '{{"type": "builtins.{}", "context": "{}", "children_spec": [{}]}}'


#: The schema's number of a type, and the bytes that a value takes.
INT8, FLOAT = (1, 1), (6, 4)


def program(
    payload: bytes,
    named: Mapping[str, bytes],
    takes: Sequence[int],
    gives: Sequence[Sequence[int]],
    kind: tuple[int, int],
) -> bytes:
    """A whole .pte.

    Args:
        payload: the delegate's.
        named: its constants, by name.
        takes: shape of the input.
        gives: shapes of the outputs.
        kind: of both: INT8 or FLOAT.
    """
    parts: list[bytes] = [b"", payload]  # no constants of the program's own
    place: dict[bytes, int] = {}
    for data in named.values():
        if data not in place:
            place[data] = len(parts)
            parts.append(data)
    segments, body = [], bytearray()
    for part in parts:
        body += bytes(-len(body) % _SEGMENT)
        segments.append({"offset": len(body), "size": len(part)})
        body += part
    table = {
        "version": 0,
        "execution_plan": [_plan([takes, *gives], *kind)],
        "constant_buffer": [],
        "backend_delegate_data": [],
        "segments": segments,
        "constant_segment": {"segment_index": 0, "offsets": [0]},
        "named_data": [{"key": name, "segment_index": place[data]} for name, data in named.items()],
    }
    packed = Packer(PROGRAM, sorted_fields=False).pack("Program", table)
    size = _HEADER.size + len(packed)
    base = size + -size % _SEGMENT
    root, words = int.from_bytes(packed[:4], "little"), packed[4:8]
    head = (root + _HEADER.size).to_bytes(4, "little") + words
    header = _HEADER.pack(b"eh00", _HEADER.size, size, base, len(body))
    return b"".join((head, header, packed[8:], bytes(base - size), body))


def _plan(shapes: Sequence[Sequence[int]], scalar: int, size: int) -> dict[str, Any]:
    sizes = [size * prod(shape) for shape in shapes]
    offsets, end = [0] * len(shapes), 0
    for index in sorted(range(len(shapes)), key=lambda each: -sizes[each]):
        offsets[index], end = end, end + sizes[index] + -sizes[index] % _TENSOR
    values = [_tensor(shape, offset, scalar) for shape, offset in zip(shapes, offsets, strict=True)]
    places = list(range(len(shapes)))
    given = _NEST.format("tuple", "null", _LEAF), _NEST.format("dict", "[]", "")
    made = [_LEAF] * (len(shapes) - 1)
    call = {"delegate_index": 0, "args": places}
    return {
        "name": "forward",
        "container_meta_type": {
            "encoded_inp_str": f"[1, {_NEST.format('tuple', 'null', ', '.join(given))}]",
            "encoded_out_str": f"[1, {_NEST.format('tuple', 'null', ', '.join(made))}]",
        },
        "values": [{"val": ("Tensor", value)} for value in values],
        "inputs": [0],
        "outputs": places[1:],
        "chains": [{"inputs": [], "outputs": [], "instructions": [{"instr_args": ("DelegateCall", call)}]}],
        "operators": [],
        "delegates": [
            {"id": "XnnpackBackend", "processed": {"location": 1, "index": 1}, "compile_specs": []}
        ],
        "non_const_buffer_sizes": [0, end + _BEYOND],
    }


def _tensor(shape: Sequence[int], offset: int, scalar: int) -> dict[str, Any]:
    return {
        "scalar_type": scalar,
        "sizes": list(shape),
        "dim_order": list(range(len(shape))),
        "allocation_info": {
            "memory_id": 1,
            "memory_offset_low": offset & (2**32 - 1),
            "memory_offset_high": offset >> 32,
        },
    }
