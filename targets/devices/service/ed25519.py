"""Ed25519 signatures, verified with Python's own library alone: RFC 8032, section 5.1.7.

It runs on a board that has nothing else. There is nothing secret in it: keys and signing are
`pipeline/bundle/signing/keys.py`, by `cryptography`. It is as strict as can be, so that no two readers
disagree about a signature: numbers must be in their smallest form, points of a small order are refused, and
the equation is the one without the cofactor.
"""

from __future__ import annotations

import hashlib

P = (1 << 255) - 19
#: Order of the base point.
L = (1 << 252) + 27742317777372353535851937790883648493
#: -121665 / 121666, and a square root of -1, both modulo P.
D = 37095705934669439343138083508754565189542113879843219016388785533085940283555
ROOT = 19681161376707505956807079304988542015446066515923890162744021073123829784752
#: A point: X, Y, Z and T with x = X / Z, y = Y / Z and x * y = T / Z.
Point = tuple[int, int, int, int]
BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960
BASE: Point = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)
NOTHING: Point = (0, 1, 1, 0)  # the neutral point
KEY_BYTES, SIGNATURE_BYTES = 32, 64


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is this key's, of this message.

    Args:
        public: 32 bytes.
        message: of any length.
        signature: 64 bytes.
    """
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    key, first = _point(public), _point(signature[:KEY_BYTES])
    scalar = int.from_bytes(signature[KEY_BYTES:], "little")
    if key is None or first is None or scalar >= L or _small(key) or _small(first):
        return False
    digest = hashlib.sha512(signature[:KEY_BYTES] + public + message).digest()
    x, y, z, t = key
    expected = _sum_of(scalar, BASE, int.from_bytes(digest, "little") % L, (P - x, y, z, P - t))
    return _equal(expected, first)


def _point(data: bytes) -> Point | None:
    """Reads a point (section 5.1.3); None where it is none, or not in its only form."""
    number = int.from_bytes(data, "little")
    y, odd = number & ((1 << 255) - 1), number >> 255
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == P - u:
        x = x * ROOT % P
    if (v * x * x - u) % P or (x == 0 and odd):
        return None
    if x & 1 != odd:
        x = P - x
    return x, y, 1, x * y % P


def _add(a: Point, b: Point) -> Point:
    """Section 5.1.4."""
    s = (a[1] - a[0]) * (b[1] - b[0]) % P
    t = (a[1] + a[0]) * (b[1] + b[0]) % P
    u, v = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = t - s, v - u, v + u, t + s
    return e * f % P, g * h % P, f * g % P, e * h % P


def _double(a: Point) -> Point:
    """Section 5.1.4."""
    s, t = a[0] * a[0] % P, a[1] * a[1] % P
    h = s + t
    e, g = h - (a[0] + a[1]) ** 2 % P, s - t
    f = 2 * a[2] * a[2] % P + g
    return e * f % P, g * h % P, f * g % P, e * h % P


def _sum_of(i: int, a: Point, j: int, b: Point) -> Point:
    """Point i * a + j * b, bit by bit of both at once (Shamir's way)."""
    table = (NOTHING, a, b, _add(a, b))
    total = NOTHING
    for bit in range(max(i.bit_length(), j.bit_length()) - 1, -1, -1):
        total = _double(total)
        if which := (i >> bit & 1) | (j >> bit & 1) << 1:
            total = _add(total, table[which])
    return total


def _equal(a: Point, b: Point) -> bool:
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def _small(point: Point) -> bool:
    """Whether eight times a point is nothing: everybody could sign with such a key."""
    return _equal(_double(_double(_double(point))), NOTHING)
