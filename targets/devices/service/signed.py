"""Signed documents: an envelope, the release that it is about, and the document that says whom to trust.

The envelope is DSSE (https://github.com/secure-systems-lab/dsse): JSON with a payload in base64 and
signatures (ed25519) over the payload and its type. Envelope and payload are in one form only, `canonical`, so
no byte of either can change unnoticed. This file is copied to devices and runs there with Python's own
library alone; the same code judges on this machine.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paredown.targets.devices.service import ed25519

FORMAT = 1  # of both payloads
RELEASE = "application/vnd.paredown.release+json"
TRUST = "application/vnd.paredown.trust+json"
ENVELOPE_BYTES = 1 << 16
SIGNATURES = KEYS = 16  # at most
NUMBERS = 10**18
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")
_TEXT = 100  # characters
_SHOWN = 12  # digits of a key's name


class Refused(ValueError):
    """One line: why a document is not believed."""


@dataclass(frozen=True)
class Envelope:
    """An envelope whose form is right; of its signatures nothing is known yet.

    Attributes:
        kind: type of the payload.
        body: the payload.
        signatures: name of the key (sha256 of its 32 bytes) -> 64 bytes.
    """

    kind: str
    body: bytes
    signatures: Mapping[str, bytes]

    def text(self) -> bytes:
        """As it is in a file."""
        listed = [{"keyid": name, "sig": _base64(sig)} for name, sig in sorted(self.signatures.items())]
        return canonical({"payload": _base64(self.body), "payloadType": self.kind, "signatures": listed})

    def signed(self) -> bytes:
        """What the signatures are over: DSSE's pre-authentication encoding."""
        kind = self.kind.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.body), self.body)


@dataclass(frozen=True)
class Release:
    """What a signature on a bundle is about.

    Attributes:
        name: of the bundle.
        app: of its manifest.
        target: card that it is made for.
        release: number; a later one has a larger one.
        expires: last day on which it may be deployed (UTC), as 2027-01-31, or None.
        manifest: sha256 of `manifest.json`, which has that of every member.
        packed: sha256 of `models.packed`, or None where there is none.
    """

    name: str
    app: str
    target: str
    release: int
    expires: str | None
    manifest: str
    packed: str | None

    def body(self) -> bytes:
        """The payload."""
        return canonical({"format": FORMAT, **vars(self)})

    @classmethod
    def of(cls, envelope: Envelope) -> Release:
        """Reads a payload.

        Raises:
            Refused: it is no release.
        """
        given = _fields(envelope, RELEASE, cls)
        release = cls(**given)
        for text in (release.name, release.app, release.target):
            _need(isinstance(text, str) and 0 < len(text) <= _TEXT and text.isprintable(), "a text is none")
        _need(_whole(release.release) and release.release > 0, "its number is none")
        if release.expires is not None:
            _need(_day(release.expires) is not None, "its last day is none")
        _need(_digest(release.manifest) and (release.packed is None or _digest(release.packed)), "a sha256")
        return release

    @property
    def product(self) -> str:
        """Whose numbers are compared: the bundle's app and name."""
        return f"{self.app} {self.name}"

    def expired(self, today: datetime.date) -> bool:
        """Whether it may no longer be deployed."""
        last = _day(self.expires) if self.expires else None
        return last is not None and today > last


@dataclass(frozen=True)
class Key:
    """A public key that is trusted: what its owner calls it, and its 32 bytes."""

    name: str
    public: bytes

    @property
    def id(self) -> str:
        """The sha256 of the key, in hexadecimal."""
        return hashlib.sha256(self.public).hexdigest()


@dataclass(frozen=True)
class Trust:
    """Whom to trust.

    Attributes:
        version: of the document; a later one has a larger one.
        threshold: how many of the keys must sign.
        keys: by their `id`.
        revoked: keys that are never believed again.
    """

    version: int
    threshold: int
    keys: Mapping[str, Key]
    revoked: frozenset[str] = frozenset()

    def body(self) -> bytes:
        """The payload."""
        keys = [
            {"keyid": name, "name": key.name, "public": _base64(key.public)}
            for name, key in sorted(self.keys.items())
        ]
        return canonical({
            "format": FORMAT, "version": self.version, "threshold": self.threshold, "keys": keys,
            "revoked": sorted(self.revoked),
        })  # fmt: skip

    @classmethod
    def of(cls, envelope: Envelope) -> Trust:
        """Reads a payload.

        Raises:
            Refused: it is no trust document, or one that nobody could follow.
        """
        given = _fields(envelope, TRUST, cls)
        keys = {}
        _need(isinstance(given["keys"], list) and 0 < len(given["keys"]) <= KEYS, "its keys")
        for entry in given["keys"]:
            _need(isinstance(entry, dict) and set(entry) == {"keyid", "name", "public"}, "a key")
            _need(isinstance(entry["name"], str) and bool(_NAME.fullmatch(entry["name"])), "a key's name")
            key = Key(entry["name"], _bytes(entry["public"], ed25519.KEY_BYTES))
            _need(entry["keyid"] == key.id, "a key has another's keyid")
            keys[key.id] = key
        revoked = given["revoked"]
        _need(isinstance(revoked, list) and all(map(_digest, revoked)), "its revoked keys")
        trust = cls(given["version"], given["threshold"], keys, frozenset(revoked))
        _need(_whole(trust.version) and trust.version > 0, "its version")
        _need(_whole(trust.threshold) and 0 < trust.threshold <= len(keys), "its threshold")
        _need(trust.body() == envelope.body, "its form")
        _need(len({key.name for key in keys.values()}) == len(keys), "two keys have one name")
        _need(not trust.revoked & set(keys), "a key is trusted and revoked")
        return trust

    def signers(self, envelope: Envelope) -> list[str]:
        """The names of the keys that signed an envelope, if they are enough.

        Raises:
            Refused: a signature is wrong, or they are too few.
        """
        found, others = [], []
        for name, signature in envelope.signatures.items():
            key = self.keys.get(name)
            if key is None:
                kind = "revoked" if name in self.revoked else "unknown"
                others.append(f"{kind} key {name[:_SHOWN]}")
            elif ed25519.verify(key.public, envelope.signed(), signature):
                found.append(key.name)
            else:
                raise Refused(f"the signature of {key.name} is wrong: what it signed was changed")
        if len(found) < self.threshold:
            what = ", ".join([*sorted(found), *others]) or "nobody"
            raise Refused(
                f"signed by {what}; trust document version {self.version} asks for {self.threshold} of "
                + ", ".join(sorted(key.name for key in self.keys.values()))
            )
        return sorted(found)

    def check_follows(self, old: Trust, envelope: Envelope) -> None:
        """Whether this document may take the place of another.

        Args:
            old: the present one.
            envelope: of this one.

        Raises:
            Refused: it is not newer, forgets what was revoked, or the present one's keys did not sign it.
        """
        if self.version <= old.version:
            raise Refused(f"version {self.version} of the trust document; version {old.version} is there")
        if forgotten := old.revoked - self.revoked:
            raise Refused(f"it forgets that key {min(forgotten)[:_SHOWN]} is revoked")
        old.signers(envelope)


def opened(text: bytes, kind: str | None = None) -> Envelope:
    """Reads an envelope.

    Args:
        text: of a file.
        kind: of payload that is wanted; None = any of ours.

    Raises:
        Refused: it is none, or not in its only form.
    """
    try:
        _need(len(text) <= ENVELOPE_BYTES, "it is too large")
        document = json.loads(text)
        _need(isinstance(document, dict), "it is none")
        _need(set(document) == {"payload", "payloadType", "signatures"}, "its fields")
        listed = document["signatures"]
        _need(isinstance(listed, list) and len(listed) <= SIGNATURES, "its signatures")
        signatures = {}
        for entry in listed:
            _need(isinstance(entry, dict) and set(entry) == {"keyid", "sig"}, "a signature")
            _need(_digest(entry["keyid"]), "a keyid")
            signatures[entry["keyid"]] = _bytes(entry["sig"], ed25519.SIGNATURE_BYTES)
        kinds = (RELEASE, TRUST) if kind is None else (kind,)
        _need(document["payloadType"] in kinds, "its type")
        envelope = Envelope(document["payloadType"], _bytes(document["payload"]), signatures)
        _need(envelope.text() == text, "its form")
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"no signed document: {error}") from None
    return envelope


def canonical(document: Any) -> bytes:
    """The one form of a document: JSON in ASCII, keys sorted, no spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def check(
    envelope: Envelope, trust: Trust, target: str | None, newest: Mapping[str, int], allow_older: bool
) -> tuple[Release, list[str]]:
    """Whether a release may be deployed.

    Args:
        envelope: of the release.
        trust: whom this device trusts.
        target: what this device is; None = not known yet.
        newest: product -> the largest number that was here.
        allow_older: whether a smaller one may be, all the same.

    Returns:
        The release and who signed it.

    Raises:
        Refused: it may not.
    """
    release, signers = Release.of(envelope), trust.signers(envelope)
    if target is not None and release.target != target:
        raise Refused(f"made for {release.target}, and this device is a {target}")
    if release.expired(today()):
        raise Refused(f"release {release.release} expired on {release.expires}; sign it again")
    before = newest.get(release.product, 0)
    if release.release < before and not allow_older:
        what = f"release {release.release} of {release.name} is older than {before}, which was here"
        raise Refused(f"{what}; --allow-older goes back")
    return release, signers


def today() -> datetime.date:
    """The day in UTC, by this machine's clock."""
    return datetime.date(*time.gmtime()[:3])


def _fields(envelope: Envelope, kind: str, cls: type[Any]) -> dict[str, Any]:
    """The fields of a payload; each is there, and no other."""
    _need(envelope.kind == kind, "its type")
    try:
        given = json.loads(envelope.body)
        _need(isinstance(given, dict) and canonical(given) == envelope.body, "its form")
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"no signed document: {error}") from None
    made = given.pop("format", None)
    if made != FORMAT or isinstance(made, bool):
        raise Refused(f"signed document of format {made}, this version reads {FORMAT}")
    _need(set(given) == set(cls.__dataclass_fields__), "its fields")
    return dict(given)


def _need(right: bool, what: str) -> None:
    if not right:
        raise Refused(f"no signed document of ours, or damaged: {what}")


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < NUMBERS


def _digest(text: object) -> bool:
    return isinstance(text, str) and bool(_HEX.fullmatch(text))


def _day(text: object) -> datetime.date | None:
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: object, size: int | None = None) -> bytes:
    _need(isinstance(text, str), "base64")
    try:
        data = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("no signed document of ours, or damaged: base64") from None
    _need(size is None or len(data) == size, "a size")
    return data


def is_name(text: str) -> bool:
    """Whether a key may be called this."""
    return bool(_NAME.fullmatch(text))
