"""Envelopes, releases and trust documents: what is believed, and what each wrong one is refused for."""

from __future__ import annotations

import base64
import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signing import RELEASE, TRUST, A, B, C, D, dumped, enveloped, released, trusting

from paredown.targets.devices.service import signed
from paredown.targets.devices.service.signed import Refused, Trust, opened

pytestmark = pytest.mark.unit


def trust_of(text: bytes) -> Trust:
    return Trust.of(opened(text, TRUST))


def check(envelope: bytes, trust: bytes, target=None, newest=None, older=False):
    return signed.check(opened(envelope, RELEASE), trust_of(trust), target, newest or {}, older)


def test_a_release_of_a_trusted_key_is_believed():
    release, signers = check(released(A, expires="2999-12-31"), trusting((A, B)), "raspberry-pi-5")
    assert (release.name, release.release, signers) == ("digits", 7, ["alice"])
    assert opened(released(A)).text() == released(A)


def test_a_change_of_any_byte_is_refused():
    """Of the envelope as it is in the file; what is still an envelope has a wrong signature."""
    text, trust = released(A), trusting((A,))
    for index in range(len(text)):
        for change in (1, 32, 128):
            bad = text[:index] + bytes([text[index] ^ change]) + text[index + 1 :]
            with pytest.raises(Refused):
                check(bad, trust)
    for bad in (text[:-1], text + b"\n", b" " + text, b"", b"[]", b"1", b"[" * 100000, text * 2):
        with pytest.raises(Refused):
            check(bad, trust)


@pytest.mark.parametrize(
    ("signers", "said"),
    [
        ((), "signed by nobody"),
        ((A,), "signed by alice; trust document version 1 asks for 2 of alice, bob, carol"),
        ((A, D), f"signed by alice, unknown key {D.id[:12]}"),
    ],
)
def test_two_of_three_must_sign(signers, said):
    trust = trusting((A, B, C), threshold=2)
    assert check(released(B, C), trust)[1] == ["bob", "carol"]
    assert check(released(A, B, D), trust)[1] == ["alice", "bob"]
    with pytest.raises(Refused, match=said):
        check(released(*signers), trust)


def test_one_key_under_two_names_signs_once():
    document = json.loads(released(A))
    document["signatures"].append(document["signatures"][0])
    with pytest.raises(Refused, match="its form"):
        check(dumped(document), trusting((A, B), threshold=2))


def test_a_wrong_signature_is_refused_though_others_are_right():
    document = json.loads(released(A, B))
    document["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()
    with pytest.raises(Refused, match="the signature of .* is wrong"):
        check(dumped(document), trusting((A, B)))


def test_what_may_not_be_deployed():
    trust = trusting((A,))
    newest = {"apps.detector digits": 8}
    yesterday = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)).date().isoformat()
    with pytest.raises(Refused, match="made for raspberry-pi-5, and this device is a raspberry-pi-4"):
        check(released(A), trust, "raspberry-pi-4")
    with pytest.raises(Refused, match=f"release 7 expired on {yesterday}"):
        check(released(A, expires=yesterday), trust)
    with pytest.raises(Refused, match="release 7 of digits is older than 8, .*; --allow-older"):
        check(released(A), trust, None, newest)
    assert check(released(A), trust, None, newest, older=True)
    assert check(released(A, name="other"), trust, None, newest)
    assert check(released(A, expires=signed.today().isoformat()), trust)


def test_a_payload_of_another_kind_is_none():
    trust = json.loads(base64.b64decode(json.loads(trusting((A,)))["payload"]))
    with pytest.raises(Refused, match="its type"):
        check(enveloped(TRUST, trust, A), trusting((A,)))
    with pytest.raises(Refused, match="its fields"):
        check(enveloped(RELEASE, trust, A), trusting((A,)))
    for field, value in [
        ("format", 2), ("format", True), ("release", 0), ("release", "7"), ("release", 10**18),
        ("release", True), ("expires", "2027-1-1"), ("expires", "2027-02-30"), ("expires", 1),
        ("manifest", "x"), ("packed", 5), ("name", ""), ("name", "a\x1b[2J"), ("app", 3), ("target", None),
        ("more", 1),
    ]:  # fmt: skip
        with pytest.raises(Refused):
            check(released(A, **{field: value}), trusting((A,)))


def test_a_trust_document_that_nobody_could_follow():
    good = json.loads(base64.b64decode(json.loads(trusting((A, B)))["payload"]))
    key = good["keys"][0]
    for change in (
        {"threshold": 0}, {"threshold": 3}, {"version": 0}, {"version": True}, {"keys": []},
        {"keys": [key, key]}, {"keys": [key | {"keyid": 64 * "0"}]}, {"keys": [key | {"name": "a b"}]},
        {"keys": [key | {"more": 1}]}, {"keys": list(reversed(good["keys"]))}, {"revoked": [key["keyid"]]},
        {"revoked": ["x"]}, {"revoked": 1},
        {"keys": [key | {"public": "AAAA"}]}, {"keys": [key, good["keys"][1] | {"name": key["name"]}]},
    ):  # fmt: skip
        with pytest.raises(Refused):
            trust_of(enveloped(TRUST, good | change, A, B))
    assert trust_of(enveloped(TRUST, good, A)).threshold == 1


def test_a_document_follows_another_only_with_its_keys():
    old = trusting((A, B, C), threshold=2)

    def follow(text: bytes) -> None:
        envelope = opened(text, TRUST)
        Trust.of(envelope).check_follows(trust_of(old), envelope)

    follow(trusting((B, C, D), A, B, D, version=2, threshold=2, revoked=(A,)))
    with pytest.raises(Refused, match="version 1 of the trust document; version 1 is there"):
        follow(trusting((D,), A, B, C, D))
    with pytest.raises(Refused, match="signed by alice, unknown key"):
        follow(trusting((D,), A, D, version=2))
    newer = trusting((B,), A, B, version=2, revoked=(A,))
    with pytest.raises(Refused, match="forgets that key"):
        envelope = opened(trusting((A, B), version=3), TRUST)
        Trust.of(envelope).check_follows(trust_of(newer), envelope)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(A.id),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
FIELDS = ("format", "name", "app", "target", "release", "expires", "manifest", "packed", "version",
          "threshold", "keys", "revoked")  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from((RELEASE, TRUST)), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_whatever_is_signed_is_read_or_refused(kind, changes):
    """By a key that is trusted: nothing but a refusal may come of it."""
    usual = json.loads(
        base64.b64decode(json.loads(released(A) if kind == RELEASE else trusting((A,)))["payload"])
    )
    try:
        envelope = opened(enveloped(kind, usual | changes, A), kind)
        read = (signed.Release if kind == RELEASE else Trust).of(envelope)
    except Refused:
        return
    assert read.body() == envelope.body


@settings(max_examples=100, deadline=None)
@given(JSON | st.binary(max_size=40))
def test_whatever_is_in_a_file_is_read_or_refused(document):
    with pytest.raises(Refused):
        opened(document if isinstance(document, bytes) else json.dumps(document).encode())
