"""A .pte in which constants and the delegate's weights that are the same bytes lie in the file once.

The output layer's codes are XNNPACK's, named data; the embedding's are constants of the program, and the
very same. The file keeps each kind in segments of its own, and nothing in the format forbids that they
overlap: the constants' segment is made longer, over the named data behind it, and the constants' offsets lead
there.
Our design; the layout is `program.fbs` and `extended_header.cpp` of ExecuTorch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_HEADER = struct.Struct("<QQQ")  # bytes of the program, where segments begin, bytes of all segments
_HEADER_AT = 16  # behind the root's offset, two magic words and the header's own length
_NUMBER = struct.Struct("<Q")
_OFFSET, _SIZE, _OFFSETS = 4, 6, 6  # where a DataSegment and a SubsegmentOffsets have these fields
_ALIGNMENT = 128  # of segments
_PADDING = 16  # constants are filled up to multiples of it
_LEAST = 4096  # bytes that are worth it


def share_constants(data: bytes) -> bytes:
    """Rewrites a program; one without such twins stays as it is.

    Args:
        data: a .pte whose constants are its first segment.
    """
    from executorch.exir._serialize._flatbuffer_program import _patch_generated_flatbuffer_aliases as complete
    from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

    complete()  # the generated classes name each other before they are there
    program_bytes, base, _ = _HEADER.unpack_from(data, _HEADER_AT)
    head = bytearray(data[:base])
    program = Program.GetRootAs(head, 0)
    tables = [program.Segments(number) for number in range(program.SegmentsLength())]
    spans = [(base + table.Offset(), table.Size()) for table in tables]
    segments = [data[start : start + size] for start, size in spans]
    listed = program.ConstantSegment()
    starts = [listed.Offsets(number) for number in range(listed.OffsetsLength())]
    constants = [segments[0][start:end] for start, end in pairwise([*starts, len(segments[0])])]
    twins = _twins(constants, segments)
    if not twins:
        return data

    kept = bytearray()
    for number, constant in enumerate(constants):
        starts[number] = len(kept)
        kept += b"" if number in twins else constant
    shared = sorted(set(twins.values()))
    order = [*shared, *(number for number in range(1, len(segments)) if number not in shared)]
    body, places = _laid_out(kept, segments, order)
    ends = [places[number] + len(segments[number]) for number in shared]
    for number, twin in twins.items():
        starts[number] = places[twin]
    for number, place in places.items():
        _put(head, tables[number], _OFFSET, place)
    _put(head, tables[0], _SIZE, max(ends))
    vector = listed._tab.Vector(listed._tab.Offset(_OFFSETS))
    struct.pack_into(f"<{len(starts)}Q", head, vector, *starts)
    _HEADER.pack_into(head, _HEADER_AT, program_bytes, base, len(body))
    return bytes(head + body)


def _twins(constants: Sequence[bytes], segments: Sequence[bytes]) -> dict[int, int]:
    """Numbers of constants, with those of the segments that are the same but for padding."""
    found = {}
    for number, constant in enumerate(constants):
        for twin, segment in enumerate(segments[1:], start=1):
            padding = len(constant) - len(segment)
            if len(segment) >= _LEAST and 0 <= padding < _PADDING and constant.startswith(segment):
                found[number] = twin
    return found


def _laid_out(
    first: bytearray, segments: Sequence[bytes], order: Sequence[int]
) -> tuple[bytearray, dict[int, int]]:
    """Segments behind the first one, and where each begins."""
    body, places = bytearray(first), {}
    for number in order:
        body += bytes(-len(body) % _ALIGNMENT)
        places[number] = len(body)
        body += segments[number]
    return body, places


def _put(head: bytearray, table: Any, field: int, value: int) -> None:
    """Writes a number where the file has it already."""
    _NUMBER.pack_into(head, table._tab.Pos + table._tab.Offset(field), value)
