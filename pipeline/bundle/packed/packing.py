"""Packs weight codes near their entropy, and programs without the codes that they share.

`targets/runners/expand.py` expands on the device and describes the format. Measured on ResNet-20 (see
`bench/packing.py`): LZMA over the places of the codes that are not zero, and over these as digits,
comes within 3 percent of the codes' order-0 entropy, or below it, since weights of one kernel resemble each
other; over the plain codes it is 11 to 26 percent above. What a program holds twice in other words, because
its runtime wants it so, follows from the rest and is left out (`Product`, `Digest`).
"""

from __future__ import annotations

import bisect
import hashlib
import json
import lzma
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.integer import Parameters
from paredown.targets.runners.expand import (
    CODES,
    LAYER,
    LIMIT,
    LONGEST,
    NUMBER,
    PROGRAMS,
    SKELETON,
    digits_per_byte,
    holds_int4,
    laid_out,
    lzma_filters,
    multiplied,
)

#: With more codes than this a layer has no alphabet: a table of them would cost more than it saves.
LARGEST_ALPHABET = 64
#: Where less than one code in so many is not zero, gaps are shorter than a bitmap under LZMA.
SPARSE = 7
#: Weight arrays of fewer bytes stay in the program: saying where they go costs as much as they do.
SMALLEST = 64
#: Programs of more bytes are not compressed whole for comparison: LZMA takes seconds per MiB.
LARGEST_WHOLE = 4 << 20
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Hole:
    """Where a program holds a weight array.

    Attributes:
        at: of its first byte.
        end: behind its last byte.
        layer: the array's place among the weights.
        form: in which the program has it, see `expand.laid_out`.
    """

    at: int
    end: int
    layer: int
    form: str


@dataclass(frozen=True)
class Product:
    """Where a program holds float32 numbers that are others of its own, times a factor.

    Attributes:
        at: of its first byte.
        end: behind its last byte.
        base: of the first byte of the others.
        factor: a float32 value.
    """

    at: int
    end: int
    base: int
    factor: float


@dataclass(frozen=True)
class Digest:
    """Where a program holds, in hexadecimal text, the sha256 of a part of itself.

    Attributes:
        at: of its first byte.
        end: behind its last byte.
        base: of the part's first byte.
        size: of the part.
    """

    at: int
    end: int
    base: int
    size: int


Filled = Hole | Product | Digest


def pack_codes(*layers: NDArray[np.int8]) -> bytes:
    """Packs the codes of layers into one stream, each with an alphabet of its own.

    Args:
        layers: int8, of any shape.

    Returns:
        Bytes that `targets.runners.expand.unpack_codes` turns into all codes, flat, one layer behind the
        other; equal for equal arguments.

    Raises:
        ValueError: an array is not int8, or they are too large.
    """
    _check(layers)
    heads, places, values, plain = [struct.pack(NUMBER, len(layers))], [], [], 0
    for layer in layers:
        flat = layer.reshape(-1)
        found = np.flatnonzero(flat)
        alphabet = np.unique(flat[found])
        if len(alphabet) > LARGEST_ALPHABET:
            alphabet, plain = alphabet[:0], plain + len(found)
        gaps = _gaps(found, flat.size) if SPARSE * len(found) < flat.size else b""
        heads.append(struct.pack(LAYER, flat.size, len(gaps), len(alphabet)) + alphabet.tobytes())
        places.append(gaps or np.packbits(flat != 0).tobytes())
        values.append(_digits(flat[found], alphabet))
    data = b"".join([*heads, *places, *values])
    # Codes of full range resemble the code before them in size; bitmaps and digits do not.
    lc = 2 if 2 * plain > len(data) else 0
    return _sealed(CODES, bytes([lc]) + _deflated(data, lc, 0, 0))


def _check(layers: Sequence[NDArray[np.int8]]) -> None:
    if any(layer.dtype != np.int8 for layer in layers) or sum(layer.size for layer in layers) >= LIMIT:
        raise ValueError("weight codes are int8, and less than 4 GiB of them")


def _gaps(places: NDArray[np.int64], size: int) -> bytes:
    """The zeros before each place and behind the last, as bytes; see `expand._places`."""
    zeros = np.diff(places, prepend=-1, append=size) - 1
    ends = np.cumsum(zeros // LONGEST + 1)
    gaps = np.full(ends[-1], LONGEST, np.uint8)
    gaps[ends - 1] = zeros % LONGEST
    return gaps[:-1].tobytes()  # what is less than a byte at the end needs no saying


def _digits(values: NDArray[np.int8], alphabet: NDArray[np.int8]) -> bytes:
    """Codes as digits of a number system that has the alphabet's size; see `expand._values`."""
    kinds = len(alphabet)
    if not kinds:
        return values.tobytes()
    if kinds == 1:
        return b""
    digits = digits_per_byte(kinds)
    places = np.zeros(-(-len(values) // digits) * digits, np.uint8)
    places[: len(values)] = np.searchsorted(alphabet, values)
    powers = np.array([kinds**digit for digit in range(digits)], np.uint8)
    return (places.reshape(-1, digits) * powers).sum(axis=1, dtype=np.uint8).tobytes()


def pack_programs(
    programs: Mapping[str, bytes],
    weights: Sequence[NDArray[np.int8]],
    parameters: Sequence[Parameters] = (),
) -> bytes:
    """Packs programs that hold the same weight codes, and stores these once.

    What follows from the rest of a program is not stored at all: the scales of biases, and ExecuTorch's names
    of constants, which are their sha256. An array that is in none of the programs, in no form that a runtime
    uses, is not stored; one that is missing in some is left out of the others only. Where the codes as a
    stream of their own do not pay, programs of up to `LARGEST_WHOLE` are compressed as they are.

    Args:
        programs: name -> bytes.
        weights: int8, as `IntegerNode.weight` has them: (out, in / groups, kh, kw) or (out, in).
        parameters: of the same layers, or of some.

    Returns:
        Bytes that `targets.runners.expand.expand_programs` turns into the programs; equal for equal
        arguments.

    Raises:
        ValueError: an array is not int8, or the programs are too large.
    """
    _check(weights)
    if sum(map(len, programs.values())) >= LIMIT:
        raise ValueError("programs of 4 GiB or more")
    holes = {name: find_holes(program, weights, parameters) for name, program in programs.items()}
    found = [_packed(programs, holes, weights)]
    if any(holes.values()) and sum(map(len, programs.values())) <= LARGEST_WHOLE:
        found.append(_packed(programs, dict.fromkeys(programs, ()), weights))
    return min(found, key=len)


def pack_program(
    program: bytes, weights: Sequence[NDArray[np.int8]], parameters: Sequence[Parameters] = ()
) -> bytes:
    """Packs one program, for `targets.runners.expand.expand_program`; see `pack_programs`."""
    return pack_programs({"program": program}, weights, parameters)


def find_holes(
    program: bytes, weights: Sequence[NDArray[np.int8]], parameters: Sequence[Parameters] = ()
) -> tuple[Filled, ...]:
    """Everything that a program's skeleton need not have, in the program's order; none overlaps another.

    Args:
        program: a runtime's file.
        weights: int8 arrays.
        parameters: of layers.
    """
    codes = find_weights(program, weights)
    products = find_products(program, parameters, codes)
    holes: list[Filled] = [*codes, *products]
    parts = [(hole.at, hole.end) for hole in holes]
    parts += [(hole.base, hole.base + hole.end - hole.at) for hole in products]
    for data in (array.tobytes() for layer in parameters for array in (layer.scale, layer.bias)):
        if (at := program.find(data)) >= 0:
            parts.append((at, at + len(data)))
    return tuple(sorted([*holes, *find_digests(program, parts)], key=_place))


def find_weights(program: bytes, weights: Sequence[NDArray[np.int8]]) -> tuple[Hole, ...]:
    """Where a program holds weight arrays, in the program's order; none overlaps another.

    Args:
        program: a runtime's file.
        weights: int8 arrays.
    """
    holes: list[Hole] = []
    # The largest first: a small array of zeros is found in many a larger one.
    for layer in sorted(range(len(weights)), key=lambda index: (-weights[index].size, index)):
        array = weights[layer]
        if array.size < SMALLEST:
            continue
        for form in _forms(array):
            wanted = laid_out(array, form)
            at = _find(program, wanted, holes)
            if at >= 0:
                holes.append(Hole(at, at + len(wanted), layer, form))
                holes.sort(key=lambda hole: hole.at)
                break
    return tuple(holes)


def find_products(
    program: bytes, parameters: Sequence[Parameters], holes: Sequence[Filled] = ()
) -> tuple[Product, ...]:
    """Where a program holds the products of scales, and the scales themselves.

    Args:
        program: a runtime's file.
        parameters: of its layers.
        holes: places that are taken, in order.

    Returns:
        In the program's order; none overlaps another, a hole, or the numbers that another is made from.
    """
    taken = sorted(holes, key=_place)
    found: list[tuple[Product, bytes]] = []
    for scale, factor, _ in sorted(parameters, key=lambda layer: -layer.scale.size):
        base, wanted = scale.astype("<f4").tobytes(), multiplied(scale, factor)
        at = _find(program, wanted, taken) if len(wanted) >= SMALLEST and wanted != base else -1
        if at >= 0:
            found.append((Product(at, at + len(wanted), -1, float(np.float32(factor))), base))
            bisect.insort(taken, found[-1][0], key=_place)
    places = sorted((product for product, _ in found), key=_place)
    made = [replace(product, base=_find(program, base, places)) for product, base in found]
    return tuple(sorted((each for each in made if each.base >= 0), key=_place))


def find_digests(program: bytes, parts: Sequence[tuple[int, int]]) -> tuple[Digest, ...]:
    """Where a program holds the sha256 of parts of it as text, outside of them all.

    Args:
        program: a runtime's file.
        parts: from and to which byte.
    """
    known = {hashlib.sha256(program[at:end]).hexdigest().encode(): (at, end - at) for at, end in parts}
    found = []
    for match in _DIGEST.finditer(program):
        inside = any(at < match.end() and match.start() < end for at, end in parts)
        if match.group() in known and not inside:
            found.append(Digest(*match.span(), *known[match.group()]))
    return tuple(found)


def _place(hole: Filled) -> int:
    return hole.at


def _forms(array: NDArray[np.int8]) -> Iterator[str]:
    """Those that runtimes use: as given, OHWI, 1HWC (depthwise), HWIO; (in, out); and matrices as int4."""
    yield "0123"[: array.ndim]
    if array.ndim == 4:
        yield from ("0231", "1230", "2310")
    elif array.ndim == 2:
        yield "10"
        if holds_int4(array):
            yield from ("01n", "01o")


def _find(program: bytes, wanted: bytes, taken: Sequence[Filled]) -> int:
    """The first place of these bytes that is free, or -1; `taken` is in order."""
    at = program.find(wanted)
    for hole in taken:
        if at < 0 or at + len(wanted) <= hole.at:
            break
        if at < hole.end:  # every place from here to the hole's end overlaps it
            at = program.find(wanted, hole.end)
    return at


def _packed(
    programs: Mapping[str, bytes],
    holes: Mapping[str, Sequence[Filled]],
    weights: Sequence[NDArray[np.int8]],
) -> bytes:
    used = sorted({hole.layer for found in holes.values() for hole in found if isinstance(hole, Hole)})
    entries, skeletons = [], []
    for name, program in sorted(programs.items()):
        at, listed = 0, list[list[int | float | str]]()
        for hole in holes[name]:
            skeletons.append(program[at : hole.at])
            if isinstance(hole, Hole):
                listed.append([hole.at - at, used.index(hole.layer), hole.form])
            elif isinstance(hole, Product):
                listed.append([hole.at - at, hole.base, (hole.end - hole.at) // 4, hole.factor])
            else:
                listed.append([hole.at - at, hole.base, hole.size])
            at = hole.end
        skeletons.append(program[at:])
        digest = hashlib.sha256(program).hexdigest()
        entries.append({"name": name, "bytes": len(program), "sha256": digest, "holes": listed})
    directory = {"layers": [weights[layer].shape for layer in used], "programs": entries}
    line = json.dumps(directory, separators=(",", ":")).encode()
    # One stream for all skeletons: programs of one network share scales and biases.
    first = _deflated(b"\n".join([line, b"".join(skeletons)]), *SKELETON)
    codes = pack_codes(*(weights[layer] for layer in used)) if used else b""
    return _sealed(PROGRAMS, struct.pack(NUMBER, len(first)) + first + codes)


def _deflated(data: bytes, lc: int, lp: int, pb: int) -> bytes:
    filters = [{**f, "mode": lzma.MODE_NORMAL, "nice_len": 273} for f in lzma_filters(lc, lp, pb)]
    return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


def _sealed(magic: bytes, body: bytes) -> bytes:
    return magic + struct.pack(NUMBER, zlib.crc32(body)) + body
