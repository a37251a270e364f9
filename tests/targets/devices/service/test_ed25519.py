"""The verifier against RFC 8032's own vectors and `cryptography`, and signatures wrong on purpose."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.targets.devices.service.ed25519 import L, P, verify

#: RFC 8032, section 7.1: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]  # fmt: skip
#: The y of every point whose order divides 8.
SMALL = (
    0, 1, P - 1,
    2707385501144840649318225287225658788936804267575313519463743609750303021022,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
)  # fmt: skip

pytestmark = pytest.mark.unit


def encoded(y: int, odd: int = 0) -> bytes:
    return (y | odd << 255).to_bytes(32, "little")


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(public, message, signature):
    key, text, sig = map(bytes.fromhex, (public, message, signature))
    assert verify(key, text, sig)
    for index in range(0, 64, 7):
        assert not verify(key, text, sig[:index] + bytes([sig[index] ^ 1]) + sig[index + 1 :])
    assert not verify(key, text + b"\0", sig)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(0, 95), st.integers(0, 255))
def test_it_says_what_another_says(seed, message, place, change):
    """A change of any byte of key or signature, or none."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    both = bytearray(private.public_key().public_bytes_raw() + private.sign(message))
    both[place] ^= change
    public, signature = bytes(both[:32]), bytes(both[32:])
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        right = True
    except (InvalidSignature, ValueError):
        right = False
    assert right == (change == 0) == verify(public, message, signature)


def test_a_number_has_one_form():
    """The same s, plus the order of the group: the equation would hold, and another file would be signed."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"x")
    larger = int.from_bytes(signature[32:], "little") + L
    assert verify(public, b"x", signature)
    assert not verify(public, b"x", signature[:32] + larger.to_bytes(32, "little"))


def test_points_of_a_small_order_sign_nothing():
    """With such a key, R = A and s = 0 hold for one message in eight, and with R = A = 1 for every one."""
    for y in SMALL:
        for odd in (0, 1):
            key = encoded(y, odd)
            for message in map(bytes, range(16)):
                assert not verify(key, message, key + bytes(32))
                assert not verify(key, message, encoded(1) + bytes(32))


def test_points_in_another_form_are_refused():
    for y in (0, 1, 18):  # y + P, which fits into 255 bits
        for odd in (0, 1):
            assert not verify(encoded(y + P, odd), b"", encoded(1) + bytes(32))
            assert not verify(bytes.fromhex(VECTORS[0][0]), b"", encoded(y + P, odd) + bytes(32))
    assert not verify(encoded(2), b"", bytes(64))  # no point has this y


def test_other_lengths_are_no_signatures():
    public, signature = bytes.fromhex(VECTORS[0][0]), bytes.fromhex(VECTORS[0][2])
    for key, sig in (
        (public[:-1], signature),
        (public, signature[:-1]),
        (public, signature + b"\0"),
        (b"", b""),
    ):
        assert not verify(key, b"", sig)
