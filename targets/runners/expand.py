"""Expands packed programs, to the very bytes: `python -m paredown.targets.runners.expand PACKED FOLDER`.

For a device: Python's standard library and numpy. `pipeline/bundle/packed/packing.py` packs.

The weights of a sparse low-bit network hold little information, one or two bits each, but a program spends a
byte on each, and two programs of one network spend it twice. Packed, the codes of all layers are one stream,
near their entropy; what is left of the programs, their skeletons, is another; and a directory says which
layer goes back where, in which form. Our design; the coder is LZMA, of the standard library.

    codes      "pdc1", CRC-32 of what follows, a byte lc, LZMA2 of:
               number of layers; for each its size, how many bytes of gaps, and its alphabet with its length;
               then for each where its codes are that are not zero: as gaps, the number of zeros before each
               (255: so many zeros and nothing yet), or, where there are no gaps, as a bit per code;
               then for each those codes: their places in the alphabet, as many digits per byte as fit, or,
               where there is no alphabet, the codes themselves
    programs   "pdp1", CRC-32 of what follows, length of the next part,
               LZMA2 of: the directory (JSON, one line) and the skeletons; packed codes, or nothing.
               Holes of a skeleton are listed in order: how many bytes after the one before, and what fills
               it: a layer and its form; or a place in the program, a count and a factor: the float32 numbers
               there, each times the factor (scales of biases are those of the weights times that of the
               input); or a place and a size: the sha256 of that part, in hexadecimal (ExecuTorch's names)

Numbers are little-endian. The CRC finds accidents before anything is expanded; that the result is the right
one is the business of the sha256 of every program, which the directory holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import struct
import sys
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import InputError, ParedownError

LIMIT = 1 << 32  # bytes of anything expanded: a false size must not ask for all memory
LEAST, RATIO = 64 << 20, 64  # nor may little become more than this, and so many times as much
CODES, PROGRAMS = b"pdc1", b"pdp1"
NUMBER, LAYER = "<I", "<IIB"
LONGEST = 255  # gap in one byte
DIGEST = 64  # bytes of a sha256 as text
#: LZMA's literal and position bits of the skeletons: they are tables of 32-bit numbers.
SKELETON = (1, 2, 2)
_AGAIN = "copy it again, or make it again with `paredown run`"
#: What forged bytes with a right CRC can raise below.
_BROKEN = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError,
    struct.error, lzma.LZMAError,
)  # fmt: skip


def lzma_filters(lc: int, lp: int, pb: int) -> list[dict[str, int]]:
    """Raw LZMA2: no header but ours; see LZMA's documentation for lc, lp and pb."""
    return [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23, "lc": lc, "lp": lp, "pb": pb}]


def digits_per_byte(kinds: int) -> int:
    """How many digits of a number system with so many digits fit into a byte; `kinds` is 2 to 256."""
    return max(k for k in range(1, 9) if kinds**k <= 256)


def unpack_codes(data: bytes, where: object = "packed codes") -> NDArray[np.int8]:
    """The codes of `pipeline.bundle.packed.packing.pack_codes`.

    Args:
        data: what it returned.
        where: names it in errors.

    Returns:
        int8, (n,): all layers, one behind the other, each in its own order.

    Raises:
        InputError: empty, truncated, damaged, or something else.
    """
    body = _unsealed(data, CODES, where)
    try:
        return _codes(_inflated(body[1:], body[0], 0, 0))
    except _BROKEN as error:
        raise InputError(f"these are no packed codes: {error}", where=where, hint=_AGAIN) from error


def expand_programs(data: bytes, where: object = "packed programs") -> dict[str, bytes]:
    """The programs of `pipeline.bundle.packed.packing.pack_programs`, each proved by its sha256.

    Args:
        data: what it returned.
        where: names it in errors.

    Returns:
        Name -> bytes.

    Raises:
        InputError: empty, truncated, damaged, or something else.
    """
    body = _unsealed(data, PROGRAMS, where)
    try:
        (length,) = struct.unpack_from(NUMBER, body)
        start = struct.calcsize(NUMBER)
        codes = body[start + length :]
        line, _, skeletons = _inflated(body[start : start + length], *SKELETON).partition(b"\n")
        layers = unpack_codes(codes, where) if codes else np.zeros(0, np.int8)
        return _programs(json.loads(line), skeletons, layers)
    except _BROKEN as error:
        raise InputError(f"these are no packed programs: {error}", where=where, hint=_AGAIN) from error


def expand_program(data: bytes, where: object = "packed program") -> bytes:
    """The program of `pipeline.bundle.packed.packing.pack_program`.

    Raises:
        InputError: as `expand_programs`, and where there is not exactly one.
    """
    programs = expand_programs(data, where)
    if len(programs) != 1:
        raise InputError(f"holds {len(programs)} programs, not one", where=where, hint="expand them all")
    return next(iter(programs.values()))


def nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes from -8 to 7, flat, two per byte, the first in the low half, as int4 tensors have them."""
    flat = codes.reshape(-1).view(np.uint8) & np.uint8(15)
    low, high = flat[::2], flat[1::2]
    return low | (np.append(high, np.zeros(len(low) - len(high), np.uint8)) << np.uint8(4))


def holds_int4(codes: NDArray[np.int8]) -> bool:
    """Whether all codes are from -8 to 7."""
    return bool(codes.min(initial=0) >= -8 and codes.max(initial=0) <= 7)


def laid_out(layer: NDArray[np.int8], form: str) -> bytes:
    """A layer's codes as a program holds them.

    Args:
        layer: as the integer graph has it.
        form: the order of its axes, a digit each; then nothing for a byte per code, `n` for `nibbles`
            (TFLite's int4), `o` for nibbles of the codes plus 8 (XNNPACK's int4 in ExecuTorch).
    """
    codes = np.ascontiguousarray(layer.transpose([int(axis) for axis in form.rstrip("no")]))
    if form.endswith("o"):
        codes = (codes + np.int8(8)).astype(np.int8)
    return (nibbles(codes) if form.endswith(("n", "o")) else codes).tobytes()


def laid_out_bytes(codes: int, form: str) -> int:
    """How many bytes `laid_out` makes of so many codes."""
    return -(-codes // 2) if form.endswith(("n", "o")) else codes


def multiplied(numbers: NDArray[np.float32], factor: float) -> bytes:
    """Float32 numbers times a factor, in float32, as a program holds them."""
    with np.errstate(all="ignore"):
        return (numbers * np.float32(factor)).astype("<f4").tobytes()


def expandable(size: int) -> int:
    """To how many bytes so many may expand: zeros and low bits make a program some twenty times smaller."""
    return min(LEAST + RATIO * size, LIMIT)


def leads_out(name: str) -> bool:
    """Whether a file of this relative name could come to lie outside the folder it is written below."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name


def _unsealed(data: bytes, magic: bytes, where: object) -> bytes:
    """What follows magic and CRC-32, once both are right."""
    kind = "codes" if magic == CODES else "programs"
    if not data.startswith(magic):
        what = f"these are no packed {kind} ({len(data)} bytes)" if data else "empty (0 bytes)"
        raise InputError(what, where=where, hint=_AGAIN)
    start = len(magic) + struct.calcsize(NUMBER)
    if len(data) <= start or data[len(magic) : start] != struct.pack(NUMBER, zlib.crc32(data[start:])):
        raise InputError(f"packed {kind}, truncated or damaged ({len(data)} bytes)", where=where, hint=_AGAIN)
    return data[start:]


def _inflated(data: bytes, lc: int, lp: int, pb: int) -> bytes:
    """Decompresses one whole stream, as far as it may expand."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(lc, lp, pb))
    limit = expandable(len(data))
    expanded = decoder.decompress(data, limit + 1)
    if len(expanded) > limit:
        raise ValueError(f"more than {limit} bytes")
    if not decoder.eof or decoder.unused_data:
        raise ValueError("its end is missing or not the end")
    return expanded


def _codes(data: bytes) -> NDArray[np.int8]:
    (count,) = struct.unpack_from(NUMBER, data)
    at = struct.calcsize(NUMBER)
    heads = []
    for _ in range(count):
        size, gaps, kinds = struct.unpack_from(LAYER, data, at)
        at += struct.calcsize(LAYER)
        heads.append((size, gaps, np.frombuffer(data, np.int8, kinds, at)))
        at += kinds
    total = sum(size for size, _, _ in heads)
    places = []
    for size, gaps, _ in heads:
        found, at = _places(data, at, size, gaps)
        places.append(found)
    codes, start = np.zeros(total, np.int8), 0
    for (size, _, alphabet), found in zip(heads, places, strict=True):
        values, at = _values(data, at, int(np.count_nonzero(found)), alphabet)
        codes[start : start + size][found] = values
        start += size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes too many")
    return codes


def _places(data: bytes, at: int, size: int, gaps: int) -> tuple[NDArray[np.bool_], int]:
    """Whether each code of a layer is not zero, and where the next layer's begin."""
    if not gaps:
        bitmap = np.frombuffer(data, np.uint8, -(-size // 8), at)
        return np.unpackbits(bitmap, count=size).view(np.bool_), at + len(bitmap)
    if size > (LONGEST + 1) * (gaps + 1):  # zeros at the end are gaps too: a false size gets no memory
        raise ValueError(f"{gaps} bytes of gaps do not reach over {size} codes")
    steps = np.frombuffer(data, np.uint8, gaps, at)
    ends = np.cumsum(steps + (steps != LONGEST), dtype=np.int64)
    found = np.zeros(size, np.bool_)
    found[ends[steps != LONGEST] - 1] = True
    return found, at + gaps


def _values(data: bytes, at: int, count: int, alphabet: NDArray[np.int8]) -> tuple[NDArray[np.int8], int]:
    """A layer's codes that are not zero, and where the next layer's begin."""
    kinds = len(alphabet)
    if not kinds:
        return np.frombuffer(data, np.int8, count, at), at + count
    if kinds == 1:
        return alphabet.repeat(count), at
    digits = digits_per_byte(kinds)
    packed = np.frombuffer(data, np.uint8, -(-count // digits), at)
    powers = np.array([kinds**digit for digit in range(digits)], np.uint8)
    places = packed[:, None] // powers % np.uint8(kinds)
    return alphabet[places.ravel()[:count]], at + len(packed)


def _programs(directory: Any, skeletons: bytes, codes: NDArray[np.int8]) -> dict[str, bytes]:
    shapes: list[list[int]] = directory["layers"]
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != len(codes) or any(size < 0 for size in sizes):
        raise ValueError(f"{sum(sizes)} codes are needed, {len(codes)} are there")
    if sum(entry["bytes"] for entry in directory["programs"]) > LIMIT:
        raise ValueError(f"more than {LIMIT} bytes")
    ends = np.cumsum([0, *sizes]).tolist()
    layers = [codes[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]
    programs, at = {}, 0
    for entry in directory["programs"]:
        name, size, holes = entry["name"], entry["bytes"], entry["holes"]
        filled = sum(laid_out_bytes(sizes[what[0]], what[1]) for _, *what in holes if _is_layer(what))
        derived = sum(DIGEST if len(what) == 2 else 4 * what[1] for _, *what in holes if not _is_layer(what))
        end = at + size - filled - derived  # of its skeleton
        name.encode()  # refuses what is no name, or none that can be written
        if not at <= end <= len(skeletons):
            raise ValueError(f"{name} and its weights have other sizes")
        made, products, digests = bytearray(), [], []
        for skip, *what in holes:
            if not 0 <= skip <= end - at:  # or forged skips could make much of little
                raise ValueError(f"{name} has weights outside of it")
            made += skeletons[at : at + skip]
            at += skip
            if _is_layer(what):
                made += laid_out(layers[what[0]], what[1])
            elif len(what) == 2:
                digests.append((len(made), *what))
                made += bytes(DIGEST)
            else:
                if not 4 * what[1] <= size - derived:  # likewise
                    raise ValueError(f"{name} has numbers made of none")
                products.append((len(made), *what))
                made += bytes(4 * what[1])
        made += skeletons[at:end]
        for to, base, count, factor in products:
            made[to : to + 4 * count] = multiplied(np.frombuffer(made, "<f4", count, base), factor)
        for to, base, count in digests:
            made[to : to + DIGEST] = hashlib.sha256(made[base : base + count]).hexdigest().encode()
        programs[name], at = bytes(made), end
        if hashlib.sha256(programs[name]).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name} does not become what its sha256 says")
    if at != len(skeletons):
        raise ValueError(f"{len(skeletons) - at} bytes too many")
    return programs


def _is_layer(what: Sequence[Any]) -> bool:
    """Whether a hole is filled by a layer's codes."""
    return len(what) == 2 and isinstance(what[1], str)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code. Nothing is written unless every program is right."""
    parser = argparse.ArgumentParser(description="Expands packed programs to the files they were made from.")
    parser.add_argument("packed", type=Path, help="the packed programs of a bundle")
    parser.add_argument("folder", type=Path, help="where the programs are written")
    given = parser.parse_args(arguments)
    try:
        try:
            data = given.packed.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read this file: {error.strerror}", where=given.packed) from error
        programs = expand_programs(data, given.packed)
        for name in programs:
            if leads_out(name):
                raise InputError(f"program {name!r} leads out of the folder", where=given.packed)
        for name, program in programs.items():
            path = given.folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(program)
            except OSError as error:
                raise InputError(f"cannot write here: {error.strerror}", where=path) from error
            print(f"{path}: {len(program)} bytes")
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
