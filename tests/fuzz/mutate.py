"""Damage: inputs made of a good one, by a number; the same number always makes the same."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

#: Values that parsers stumble over, instead of one that is there.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, -(2**31), 2**63, 10**30, 1e308, -1e-300, 0.5, "", "x", "\x1b[2J", "../x",
    "a" * 5000, "\ud800", [], {}, [[]], ["x"], {"x": 1}, "1", "nan",
)  # fmt: skip
WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def of_bytes(seed: bytes, chance: random.Random) -> bytes:
    """A few bytes are others, missing, twice there, or the end is."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if not data:
            break
        at = chance.randrange(len(data))
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                form = chance.choice(("<H", "<I", ">I", "<Q"))
                word = chance.choice(WORDS) & (2 ** (8 * struct.calcsize(form)) - 1)
                data[at : at + struct.calcsize(form)] = struct.pack(form, word)
            case 3:
                del data[at : at + chance.randrange(1, 64)]
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 64)]
            case 5:
                del data[at:]
            case 6:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
    return bytes(data)


def of_text(seed: bytes, chance: random.Random) -> bytes:
    """Lines are missing, swapped, twice there or damaged; numbers are others."""
    lines = seed.split(b"\n")
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        match chance.randrange(6):
            case 0:
                del lines[at]
                lines = lines or [b""]
            case 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            case 2:
                lines[at] = of_bytes(lines[at], chance)
            case 3:
                parts = lines[at].split()
                if parts:
                    odd = (b"-1", b"0", b"1e999", b"nan", b"", b"999999999999", b"x" * 300, b"\xff")
                    parts[chance.randrange(len(parts))] = chance.choice(odd)
                lines[at] = b" ".join(parts)
            case 4:
                key, equals, _ = lines[at].partition(b"=")
                lines[at] = key + equals + str(chance.choice(ODD)).encode(errors="replace")
            case 5:
                return of_bytes(b"\n".join(lines), chance)
    return b"\n".join(lines)


def of_json(seed: Any, chance: random.Random) -> Any:
    """Values are others, of another kind, missing, or in another place."""
    document = _copied(seed)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = _places(document)
        if not places:
            return _copied(chance.choice(ODD))
        parent, key = chance.choice(places)
        match chance.randrange(5):
            case 0 | 1:
                parent[key] = _copied(chance.choice(ODD))
            case 2:
                other, its = chance.choice(places)
                parent[key] = _copied(other[its])
            case 3:
                del parent[key]
            case 4:
                value = parent[key]
                if isinstance(value, int) and not isinstance(value, bool):
                    parent[key] = value + chance.choice((-1, 1, 256, -value * 2))
                elif isinstance(value, list) and value:
                    value.append(_copied(chance.choice(value)))
                elif isinstance(value, dict):
                    value["unknown"] = _copied(chance.choice(ODD))
    return document


def _copied(value: Any) -> Any:
    """A copy of JSON's values, three times as fast as `deepcopy`."""
    return pickle.loads(pickle.dumps(value))


def _places(document: Any) -> list[tuple[Any, Any]]:
    found, waiting = list[tuple[Any, Any]](), [document]
    while waiting:
        value = waiting.pop()
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in list(keys):
            found.append((value, key))
            waiting.append(value[key])
    return found


def json_bytes(
    mutate: Callable[[Any, random.Random], Any] = of_json,
) -> Callable[[bytes, random.Random], bytes]:
    """The same for the bytes of a JSON file; one in four is damaged as bytes."""

    def made(seed: bytes, chance: random.Random) -> bytes:
        if not chance.randrange(4):
            return of_bytes(seed, chance)
        text = json.dumps(mutate(json.loads(seed), chance), ensure_ascii=bool(chance.randrange(2)))
        return text.encode(errors="surrogatepass")

    return made
