"""Bundles as a stranger makes them: anything inside, and right in every hash."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paredown.pipeline.bundle.manifest import FORMAT, MANIFEST

SEAL = b"paredown sha256 "
COMMENT = len(SEAL) + 64
Entry = tuple[str | zipfile.ZipInfo, bytes, int]


def resealed(body: bytes) -> bytes:
    """A bundle of a zip file that ends right before its comment."""
    return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def sealed(entries: Iterable[Entry]) -> bytes:
    """A zip file of any entries (name, content, compression) with the seal of a bundle."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data, kind in entries:
                info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
                archive.writestr(info, data, kind)
            archive.comment = bytes(COMMENT)
    return resealed(buffer.getvalue()[:-COMMENT])


def listed(members: Mapping[str, bytes]) -> dict[str, Any]:
    """What a manifest says of members that are stored as they are."""
    return {
        name: {
            "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "stored": name, "stored_bytes": len(data),
        }
        for name, data in members.items()
    }  # fmt: skip


def forged(
    manifest: Mapping[str, Any],
    members: Mapping[str, bytes],
    extra: Iterable[Entry] = (),
    fix: Callable[[dict[str, Any]], None] = lambda document: None,
) -> bytes:
    """A bundle of these members; `fix` changes its manifest before that is hashed."""
    document = {"format": FORMAT, **pickle.loads(pickle.dumps(dict(manifest))), "members": listed(members)}
    fix(document)
    text = json.dumps(document).encode()
    return sealed([(MANIFEST, text, 8), *((name, data, 0) for name, data in members.items()), *extra])
