"""The bundle: one file with everything that a device needs, and a sha256 for every member of it.

A zip file whose members are stored (models as zstd streams inside), so that any tool lists it. The manifest
names each member's sha256; the archive's comment names the manifest's. Equal contents give equal bytes: no
times, a fixed order. Latency is no part of it: a time is never the same twice, and belongs to the run and to
`validate`.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from targets.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
LEVEL = 19  # zstd: made once, shipped often
_COMMENT = "paredown manifest sha256 "
_MEMBER_LIMIT = 1 << 32  # bytes; a damaged size must not ask for all memory
_AGAIN = "copy it again, or make it again with `paredown run`"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose every hash was checked.

    Attributes:
        path: the file.
        manifest: see `pack`.
        members: name -> bytes, decompressed.
    """

    path: Path
    manifest: Mapping[str, Any]
    members: Mapping[str, bytes]

    def model(self, runtime: str) -> bytes:
        """The program of a runtime.

        Raises:
            InputError: the bundle has none.
        """
        for entry in self.manifest["models"]:
            if entry["runtime"] == runtime:
                return self.members[entry["file"]]
        known = ", ".join(entry["runtime"] for entry in self.manifest["models"])
        raise InputError(f"no model for {runtime}", where=self.path, hint=f"it has: {known}")

    def json(self, name: str) -> Any:
        """A member that is JSON."""
        return json.loads(self.members[name])


def pack(manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """Packs a bundle.

    Args:
        manifest: name, target, recipe, models (runtime, file, input and output scales), preprocess, figures,
            versions, licences. The members' sizes and hashes are added here.
        members: name -> bytes; those the manifest lists as models are compressed.

    Returns:
        The file's bytes; equal for equal arguments.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    stored: dict[str, bytes] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name in sorted(members):
        data = members[name]
        packed = compressor.compress(data)
        small = len(packed) < len(data)
        stored[f"{name}.zst" if small else name] = packed if small else data
        listed[name] = {
            "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "stored": f"{name}.zst" if small else name, "stored_bytes": len(packed) if small else len(data),
        }  # fmt: skip
    document = {"format": FORMAT, **manifest, "members": listed}
    text = (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST), text)
        for name, data in stored.items():
            archive.writestr(_entry(name), data)
        archive.comment = (_COMMENT + hashlib.sha256(text).hexdigest()).encode()
    return buffer.getvalue()


def unpack(path: str | Path) -> Bundle:
    """Opens a bundle and checks every hash in it.

    Raises:
        InputError: it is missing, no bundle, truncated or damaged; the damaged member is named.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read this bundle: {error.strerror}", where=path) from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _checked(path, archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        what = "empty" if not data else "not a bundle, or truncated or damaged"
        raise InputError(f"{what} ({len(data)} bytes)", where=path, hint=_AGAIN) from error


def _checked(path: Path, archive: zipfile.ZipFile) -> Bundle:
    comment = archive.comment.decode("ascii", "replace")
    if not comment.startswith(_COMMENT) or MANIFEST not in archive.namelist():
        raise InputError("is a zip file but not a paredown bundle", where=path)
    text = archive.read(MANIFEST)
    if hashlib.sha256(text).hexdigest() != comment.removeprefix(_COMMENT):
        raise InputError(f"damaged: {MANIFEST} has another sha256 than recorded", where=path, hint=_AGAIN)
    manifest = json.loads(text)
    if manifest.get("format") != FORMAT:
        made = manifest.get("format")
        raise InputError(
            f"bundle format {made}, this version reads {FORMAT}",
            where=path,
            hint="make it again with `paredown run`",
        )
    members: dict[str, bytes] = {}
    for name, entry in manifest["members"].items():
        members[name] = _member(path, archive, name, entry)
    return Bundle(path, manifest, members)


def _member(path: Path, archive: zipfile.ZipFile, name: str, entry: Mapping[str, Any]) -> bytes:
    damaged = InputError(f"damaged: {name} is not what the manifest says", where=path, hint=_AGAIN)
    try:
        data = archive.read(entry["stored"])
        if entry["stored"] != name:
            size = min(int(entry["bytes"]), _MEMBER_LIMIT)
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except (KeyError, zipfile.BadZipFile, zstandard.ZstdError, EOFError) as error:
        raise damaged from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise damaged
    return data


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    info.create_system = 3
    return info


def extract(bundle: Bundle, folder: Path) -> None:
    """Writes every member below a folder, as a device gets them.

    Raises:
        InputError: a member's name leads out of the folder, or it cannot be written.
    """
    for name, data in bundle.members.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"member {name!r} leads out of the folder", where=bundle.path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise InputError(f"cannot write here: {error.strerror}", where=target) from error
    (folder / MANIFEST).write_text(json.dumps(bundle.manifest, sort_keys=True, indent=1) + "\n")
