"""Signed releases: signatures on a bundle or on a trust document, and what they are worth on this machine.

A bundle's signatures are an envelope (`targets/devices/service/signed.py`) in the bundle itself, its last
entry, `release.dsse.json`. All other bytes stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paredown.pipeline.bundle.archive import SIGNED, Bundle, sealed, unpack, zip_entry
from paredown.pipeline.bundle.limits import bounded
from paredown.pipeline.bundle.manifest import PACKED
from paredown.targets.devices.service import guard, signed
from paredown.targets.devices.service.signed import Envelope, Key, Refused, Release, Trust
from paredown.targets.errors import InputError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NUMBER = "%Y%m%d%H%M%S"  # of a release that was given none: the time in UTC


@dataclass(frozen=True)
class Verified:
    """A release and the signatures on it.

    Attributes:
        release: what they are about.
        signers: name of each key that signed, as the trust document calls it.
        keys: all keys that signed, known or not, by their id.
    """

    release: Release
    signers: tuple[str, ...]
    keys: tuple[str, ...]


def sign_bundle(
    path: Path, key: Ed25519PrivateKey, number: int | None = None, expires: str | None = None,
    anew: bool = False,
) -> Envelope:  # fmt: skip
    """Signs a bundle, in its file.

    Args:
        path: of the bundle.
        key: private.
        number: of the release; None = that of the signatures that are there, or the time as YYYYMMDDHHMMSS.
        expires: last day on which it may be deployed, as 2027-01-31; None = likewise, or no such day.
        anew: whether signatures that are there are dropped.

    Returns:
        All signatures that are there now.

    Raises:
        InputError: it is no bundle, its signatures are damaged, or it cannot be written.
        UsageError: number or day are none, or not those that others signed.
    """
    bundle = unpack(path)
    with at(path):
        envelope = None if anew or bundle.signed is None else signed.opened(bundle.signed, signed.RELEASE)
        if envelope is None:
            number = number if number is not None else int(time.strftime(NUMBER, time.gmtime()))
            envelope = Envelope(signed.RELEASE, release_of(bundle, number, expires).body(), {})
            try:
                Release.of(envelope)
            except Refused as error:
                hint = "--release takes a whole number, --expires a day as 2027-01-31"
                raise UsageError(str(error).rpartition(": ")[2], hint=hint) from None
        else:
            there = covered(bundle, envelope)
            if (number or there.release, expires or there.expires) != (there.release, there.expires):
                what = f"signed already, as release {there.release} (expires: {there.expires})"
                hint = "leave --release and --expires out to add a signature, or add --anew to drop those"
                raise UsageError(what, where=path, hint=hint)
    envelope = signed_by(envelope, key)
    _replace(path, with_signatures(bounded(path), envelope.text()))
    return envelope


def sign_trust(path: Path, key: Ed25519PrivateKey) -> Envelope:
    """Adds a signature to a trust document, in its file.

    Raises:
        InputError: it is no trust document, or cannot be written.
    """
    envelope, _ = read_trust(path)
    envelope = signed_by(envelope, key)
    _replace(path, envelope.text())
    return envelope


def read_trust(path: Path) -> tuple[Envelope, Trust]:
    """Reads a trust document, whoever signed it.

    Raises:
        InputError: it is none.
    """
    try:
        text = bounded(path, signed.ENVELOPE_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read it: {getattr(error, 'strerror', None) or error}", where=path
        ) from error
    with at(path):
        envelope = signed.opened(text, signed.TRUST)
        return envelope, Trust.of(envelope)


def new_trust(path: Path, trust: Trust) -> None:
    """Writes a trust document that nobody has signed yet.

    Raises:
        UsageError: nobody could follow it.
        InputError: the file is there already, or cannot be written.
    """
    envelope = Envelope(signed.TRUST, trust.body(), {})
    try:
        Trust.of(envelope)
    except Refused as error:
        raise UsageError(str(error).rpartition(": ")[2], hint="see `paredown trust new --help`") from None
    if path.exists():
        raise InputError("there already", where=path, hint="give another --out")
    _replace(path, envelope.text())


def signed_by(envelope: Envelope, key: Ed25519PrivateKey) -> Envelope:
    """The envelope with one more signature."""
    own = Key("", key.public_key().public_bytes_raw())
    signatures = {**envelope.signatures, own.id: key.sign(envelope.signed())}
    return replace(envelope, signatures=signatures)


def release_of(bundle: Bundle, number: int, expires: str | None) -> Release:
    """What a signature on a bundle is about."""
    manifest = bundle.manifest
    packed = None
    if any(entry.stored == PACKED for entry in manifest.members.values()):
        with zipfile.ZipFile(bundle.path) as archive:
            packed = hashlib.sha256(archive.read(PACKED)).hexdigest()
    digest = hashlib.sha256(bundle.text).hexdigest()
    return Release(manifest.name, manifest.app, manifest.target, number, expires, digest, packed)


def covered(bundle: Bundle, envelope: Envelope) -> Release:
    """The release that an envelope is about, if it is this bundle's.

    Raises:
        Refused: it is that of another, or none.
    """
    release = Release.of(envelope)
    if release != release_of(bundle, release.release, release.expires):
        raise Refused("its signatures are those of another bundle")
    return release


def verify_bundle(bundle: Bundle, trust: Trust | None) -> Verified:
    """What the signatures on a bundle are worth.

    Args:
        bundle: opened.
        trust: whom to believe; None = nobody, which tells what is there and is no proof of it.

    Raises:
        InputError: it is not signed, by too few, of another bundle, or has expired.
    """
    with at(bundle.path):
        if bundle.signed is None:
            raise Refused("not signed")
        envelope = signed.opened(bundle.signed, signed.RELEASE)
        release = covered(bundle, envelope)
        signers: list[str] = []
        if trust is not None:
            _, signers = signed.check(envelope, trust, None, {}, True)
    return Verified(release, tuple(signers), tuple(sorted(envelope.signatures)))


def trusted_here(bundle: Bundle) -> bool:
    """Whether a bundle is signed by those whom this machine's trust document names.

    Raises:
        InputError: this machine's trust document is damaged.
    """
    with at(None):
        trust = guard.present()
    if trust is None or bundle.signed is None:
        return False
    try:
        verify_bundle(bundle, trust)
    except InputError:
        return False
    return True


def of_keys(keys: Mapping[str, Key]) -> Trust:
    """A trust document of these keys alone, each of which must sign."""
    return Trust(1, len(keys), keys)


def with_signatures(data: bytes, envelope: bytes) -> bytes:
    """A bundle's bytes with another envelope, its last entry; all else stays as it is."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        if SIGNED in archive.namelist():
            old = archive.filelist.pop()
            archive.start_dir = old.header_offset  # where the next entry is written
            del archive.NameToInfo[old.filename]
        archive.writestr(zip_entry(SIGNED), envelope)
    return sealed(buffer.getvalue())


@contextlib.contextmanager
def at(where: object | None) -> Iterator[None]:
    """Turns what is refused into the one line of a bad file."""
    try:
        yield
    except Refused as error:
        raise InputError(str(error), where=where) from None


def _replace(path: Path, data: bytes) -> None:
    try:
        guard.write_bytes(path, data)
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", where=path) from error
