"""Keys, envelopes and small releases as the specifications say (DSSE, RFC 8032), without code of ours."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RELEASE = "application/vnd.paredown.release+json"
TRUST = "application/vnd.paredown.trust+json"
#: An app that says that it is ready, and stays.
APP = """
import os, pathlib, time
pathlib.Path(os.environ["PAREDOWN_READY"]).touch()
while True:
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Signer:
    """Somebody with a key, the same one every time."""

    name: str

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(self.name.encode()).digest())

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def id(self) -> str:
        return hashlib.sha256(self.public).hexdigest()


A, B, C, D = map(Signer, ("alice", "bob", "carol", "dora"))


def dumped(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def enveloped(kind: str, payload: object, *signers: Signer) -> bytes:
    body = dumped(payload)
    text = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(body)).encode(), body])
    signatures = [
        {"keyid": signer.id, "sig": base64.b64encode(signer.key.sign(text)).decode()}
        for signer in sorted(signers, key=lambda signer: signer.id)
    ]
    return dumped({
        "payload": base64.b64encode(body).decode(), "payloadType": kind, "signatures": signatures,
    })  # fmt: skip


def trusting(
    keys: tuple[Signer, ...], *signers: Signer, version: int = 1, threshold: int = 1,
    revoked: tuple[Signer, ...] = (),
) -> bytes:  # fmt: skip
    """A trust document; signed by all of its keys where no signer is named."""
    listed = [
        {"keyid": key.id, "name": key.name, "public": base64.b64encode(key.public).decode()}
        for key in sorted(keys, key=lambda key: key.id)
    ]
    payload = {
        "format": 1, "version": version, "threshold": threshold, "keys": listed,
        "revoked": sorted(key.id for key in revoked),
    }  # fmt: skip
    return enveloped(TRUST, payload, *(signers or keys))


def released(*signers: Signer, **fields: Any) -> bytes:
    """The envelope of a release."""
    usual = {
        "format": 1, "name": "digits", "app": "apps.detector", "target": "raspberry-pi-5", "release": 7,
        "expires": None, "manifest": 64 * "0", "packed": None,
    }  # fmt: skip
    return enveloped(RELEASE, usual | fields, *signers)


def manifested(files: Mapping[str, bytes]) -> bytes:
    members = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "stored": name}
        for name, data in files.items()
    }
    return json.dumps({"members": members}).encode()


def small_release(
    *signers: Signer, app: str = APP, extra: Mapping[str, bytes] | None = None, **fields: Any
) -> tuple[bytes, bytes, str]:
    """An app of a few lines: the archive, its envelope, and its name. `extra` is in the archive alone."""
    files = {"app.py": app.encode(), "targets/runners/prove.py": b"print('{}')"}
    manifest = manifested(files)
    envelope = released(*signers, manifest=hashlib.sha256(manifest).hexdigest(), **fields)
    archive = tarred({"manifest.json": manifest, **files, **(extra or {})})
    return archive, envelope, hashlib.sha256(archive).hexdigest()[:12]


def tarred(files: Mapping[str, bytes]) -> bytes:
    """The files in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
