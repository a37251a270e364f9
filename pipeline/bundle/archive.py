"""The bundle: one file with everything that a device needs, and a sha256 for every byte of it.

A zip file whose members are stored (those that shrink as zstd streams inside), so that any tool lists it.
Where that is smaller, the models lie in one packed stream that holds the weight codes they share once
(`pipeline/bundle/packed/`); a device expands it with `python -m paredown.targets.runners.expand`, which is a
member. The archive's comment holds the sha256 of all bytes before it: no byte of the file can change
unnoticed. The manifest names each member's own sha256, for a device that has only the members. Equal contents
give equal bytes: no times, a fixed order. Latency is no part of it: a time is never the same twice, and
belongs to the run and to `validate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import ValidationError

from paredown.pipeline.bundle.limits import (
    bounded,
    check_entries,
    check_listed,
    check_names,
    check_sizes,
    check_text,
    json_document,
)
from paredown.pipeline.bundle.manifest import FORMAT, MANIFEST, PACKED, READABLE, FileEntry, Manifest
from paredown.pipeline.bundle.packed.packing import pack_programs
from paredown.pipeline.lower.integer import Parameters
from paredown.targets.cards.tomlfile import first_problem
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import expand_programs

TEXTS = frozenset({"labels.txt", "app.json"})  # shown to people
SIGNED = "release.dsse.json"  # beside what the manifest names: see signing/release.py
LEVEL = 19  # zstd: made once, shipped often
_COMMENT = b"paredown sha256 "
_DIGEST = 64  # hex digits
#: What reading a zip raises that is damaged, or was made to be.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, RecursionError, EOFError, OSError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip
_AGAIN = "copy it again, or make it again with `paredown run`"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose every hash was checked.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        text: the manifest as it is in the file.
        members: name -> bytes, decompressed.
        signed: the envelope with its signatures, of which nothing was checked; None where there is none.
    """

    path: Path
    manifest: Manifest
    text: bytes
    members: Mapping[str, bytes]
    signed: bytes | None = None

    @property
    def house(self) -> str:
        """The folder of our own code among the members, "paredown/"; empty of format 3."""
        return "" if self.manifest.format == 3 else "paredown/"

    @property
    def package(self) -> str:
        """The app's package among the members, which has its `device` code: "paredown.apps.detector"."""
        own = f"{self.house}{self.manifest.app}".replace("/", ".")
        return own if f"{own.replace('.', '/')}/__init__.py" in self.members else self.manifest.app

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            InputError: the bundle has no such member.
        """
        if name not in self.members:
            raise InputError(f"has no member {name}", where=self.path, hint=_AGAIN)
        return self.members[name]

    def json(self, name: str) -> Any:
        """A member that is JSON.

        Raises:
            InputError: there is none, or it is not JSON.
        """
        try:
            return json_document(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"member {name} is not JSON: {error}", where=self.path) from error


def pack(
    manifest: Mapping[str, Any],
    members: Mapping[str, bytes],
    weights: Sequence[NDArray[np.int8]] = (),
    parameters: Sequence[Parameters] = (),
) -> bytes:
    """Packs a bundle.

    Args:
        manifest: the fields of `Manifest` as JSON has them; `format` and `members` are added here.
        members: name -> bytes; the names are relative paths.
        weights: int8 codes of the models' layers, as in the integer graph; they pack the models.
        parameters: of these layers; likewise.

    Returns:
        The file's bytes; equal for equal arguments.

    Raises:
        ValueError: two members would be stored under one name, or one has a name that no bundle may have.
    """
    try:
        check_names([*members, MANIFEST, SIGNED])
    except InputError as error:
        raise ValueError(str(error)) from error
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    contents: dict[str, tuple[str, bytes]] = {}  # name -> what it is stored as
    for name, data in members.items():
        smaller = compressor.compress(data)
        contents[name] = (f"{name}.zst", smaller) if len(smaller) < len(data) else (name, data)
    if weights:
        files = {model["file"] for model in manifest["models"]}
        programs = {name: data for name, data in members.items() if name in files}
        packed = pack_programs(programs, weights, parameters)
        if len(packed) < sum(len(contents[name][1]) for name in programs):
            contents |= dict.fromkeys(programs, (PACKED, packed))
    stored: dict[str, bytes] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name, (file, content) in sorted(contents.items()):
        if {MANIFEST, SIGNED} & {file, name} or stored.setdefault(file, content) is not content:
            raise ValueError(f"two members of a bundle would be stored as {file}")
        data = members[name]
        listed[name] = {
            "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "stored": file, "stored_bytes": len(content),
        }  # fmt: skip
    document = {"format": FORMAT, **manifest, "members": listed}
    text = (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zip_entry(MANIFEST), text, zipfile.ZIP_DEFLATED, 9)  # any unzip reads it
        for name, data in stored.items():
            archive.writestr(zip_entry(name), data)
        archive.comment = bytes(len(_COMMENT) + _DIGEST)  # its length is among the bytes that are hashed
    return sealed(buffer.getvalue())


def sealed(data: bytes) -> bytes:
    """A zip file whose comment is as long as a bundle's, with the right one."""
    body = data[: -len(_COMMENT) - _DIGEST]
    return body + _COMMENT + hashlib.sha256(body).hexdigest().encode()


def unpack(path: str | Path) -> Bundle:
    """Opens a bundle and checks every hash in it.

    Raises:
        InputError: it is missing, no bundle, truncated, damaged, or of another format.
    """
    path = Path(path)
    try:
        data = bounded(path)
    except (OSError, ValueError) as error:  # ValueError: too large, endless, or a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read this bundle: {reason}", where=path, hint=_instead(path)) from error
    comment = data[-len(_COMMENT) - _DIGEST :]
    if not comment.startswith(_COMMENT):
        if zipfile.is_zipfile(io.BytesIO(data)):
            raise InputError("is a zip file but not a paredown bundle, or damaged", where=path, hint=_AGAIN)
        what = f"not a bundle, or truncated or damaged ({len(data)} bytes)" if data else "empty (0 bytes)"
        raise InputError(what, where=path, hint=_AGAIN)
    if comment[len(_COMMENT) :] != hashlib.sha256(data[: -len(comment)]).hexdigest().encode():
        raise InputError("damaged: its sha256 is not the one it ends with", where=path, hint=_AGAIN)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _checked(path, archive, len(data))
    except _BROKEN as error:  # hashed, yet not by `pack`
        raise InputError(f"not a bundle: {error}", where=path) from error


def _instead(path: Path) -> str | None:
    """What may have been meant by a path that is no file."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            found = sorted(path.glob("*.paredown")) or sorted(path.glob("*/*.paredown"))
            return f"give the file, {found[0]}" if found else "give a .paredown file"
        if not path.exists():
            return "`paredown run RECIPE` makes one in runs/RECIPE/TARGET"
    return None


def _checked(path: Path, archive: zipfile.ZipFile, size: int) -> Bundle:
    with _at(path):
        check_entries(archive, MANIFEST)
        text = archive.read(MANIFEST)
        document = json_document(text)
        check_text(document, MANIFEST)
    made = document.get("format") if isinstance(document, dict) else None
    if made not in READABLE:
        raise InputError(
            f"bundle format {made}, this version reads {' and '.join(map(str, READABLE))}",
            where=path,
            hint="make it again with `paredown run`",
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{MANIFEST}: {first_problem(error)[1]}", where=path) from error
    with _at(path):
        check_names([*manifest.members, MANIFEST, SIGNED])
        check_sizes((entry.bytes for entry in manifest.members.values()), size)
        check_listed(archive, [entry.stored for entry in manifest.members.values()], PACKED, MANIFEST, SIGNED)
    together = any(entry.stored == PACKED != name for name, entry in manifest.members.items())
    programs = expand_programs(archive.read(PACKED), f"{path}:{PACKED}") if together else {}
    members = {n: _member(path, archive, n, entry, programs) for n, entry in manifest.members.items()}
    signed = archive.read(SIGNED) if SIGNED in archive.namelist() else None
    bundle = Bundle(path, manifest, text, members, signed)
    for model in manifest.programs:
        bundle.read(model.file)
    with _at(path):
        for name in TEXTS & members.keys():
            check_text(members[name].decode(), name)
    return bundle


@contextlib.contextmanager
def _at(path: Path) -> Iterator[None]:
    """Says of which bundle an error is."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, where=path, hint="do not trust it, wherever it is from") from error


def _member(
    path: Path, archive: zipfile.ZipFile, name: str, entry: FileEntry, programs: Mapping[str, bytes]
) -> bytes:
    damaged = InputError(f"{name} is not what the manifest says", where=path, hint=_AGAIN)
    packed = entry.stored == PACKED != name
    data = programs.get(name, b"") if packed else archive.read(entry.stored)
    if entry.stored != name and not packed:
        try:
            if zstandard.get_frame_parameters(data).content_size != entry.bytes:
                raise damaged
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=entry.bytes)
        except zstandard.ZstdError as error:
            raise damaged from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise damaged
    return data


def zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry that is the same at all times."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    info.create_system = 3
    return info


def extract(bundle: Bundle, folder: Path) -> None:
    """Writes every member below a folder, as a device gets them.

    Raises:
        InputError: one cannot be written.
    """
    for name, data in {**bundle.members, MANIFEST: bundle.text}.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise InputError(f"cannot write here: {error.strerror}", where=target) from error
