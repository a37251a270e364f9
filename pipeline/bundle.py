"""The bundle: one file with everything that a device needs, and a sha256 for every byte of it.

A zip file whose members are stored (those that shrink as zstd streams inside), so that any tool lists it. The
archive's comment holds the sha256 of all bytes before it: no byte of the file can change unnoticed. The
manifest names each member's own sha256, for a device that has only the members. Equal contents give equal
bytes: no times, a fixed order. Latency is no part of it: a time is never the same twice, and belongs to the
run and to `validate`.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import zstandard
from pydantic import Field, ValidationError

from pipeline.recipe import Recipe
from targets.card import RuntimeName, Schema, Target
from targets.errors import InputError
from targets.tomlfile import first_problem

FORMAT = 1
MANIFEST = "manifest.json"
LEVEL = 19  # zstd: made once, shipped often
_COMMENT = b"paredown sha256 "
_DIGEST = 64  # hex digits
_MEMBER_LIMIT = 1 << 32  # bytes; a false size must not ask for all memory
_AGAIN = "copy it again, or make it again with `paredown run`"

Count = Annotated[int, Field(ge=0)]


class Tensor(Schema):
    """An input or output of a model: real = scale * (code - zero_point)."""

    name: str
    shape: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    scale: Annotated[float, Field(gt=0)]
    zero_point: int


class Model(Schema):
    """A runtime's program and how to feed it."""

    runtime: RuntimeName
    file: str
    dtype: str
    layout: str
    input: Tensor
    outputs: Annotated[tuple[Tensor, ...], Field(strict=False, min_length=1)]


class ScoredOn(Schema):
    """The test images behind the scores."""

    images: Count
    fingerprint: str


class Member(Schema):
    """One file: its own size and sha256, and under which name and size it is stored."""

    bytes: Annotated[int, Field(ge=0, le=_MEMBER_LIMIT)]
    sha256: str
    stored: str
    stored_bytes: Count


class Manifest(Schema):
    """What a bundle says of itself."""

    format: int
    name: str
    target: str
    card: Target
    app: str
    network: Mapping[str, Any]
    recipe: Recipe
    models: Annotated[tuple[Model, ...], Field(strict=False, min_length=1)]
    preprocess: Mapping[str, Any]
    preprocess_hash: str
    test: ScoredOn
    figures: Annotated[tuple[Mapping[str, Any], ...], Field(strict=False)]
    versions: Mapping[str, str]
    licences: Mapping[str, str]
    members: Mapping[str, Member]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose every hash was checked.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        text: the manifest as it is in the file.
        members: name -> bytes, decompressed.
    """

    path: Path
    manifest: Manifest
    text: bytes
    members: Mapping[str, bytes]

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
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"member {name} is not JSON: {error}", where=self.path) from error


def pack(manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """Packs a bundle.

    Args:
        manifest: the fields of `Manifest` as JSON has them; `format` and `members` are added here.
        members: name -> bytes; the names are relative paths.

    Returns:
        The file's bytes; equal for equal arguments.

    Raises:
        ValueError: two members would be stored under one name.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    stored: dict[str, bytes] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name in sorted(members):
        data = members[name]
        packed = compressor.compress(data)
        file, content = (f"{name}.zst", packed) if len(packed) < len(data) else (name, data)
        if file in stored or file == MANIFEST or name == MANIFEST:
            raise ValueError(f"two members of a bundle would be stored as {file}")
        stored[file] = content
        listed[name] = {
            "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "stored": file, "stored_bytes": len(content),
        }  # fmt: skip
    document = {"format": FORMAT, **manifest, "members": listed}
    text = (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST), text)
        for name, data in stored.items():
            archive.writestr(_entry(name), data)
        archive.comment = bytes(len(_COMMENT) + _DIGEST)  # its length is among the bytes that are hashed
    body = buffer.getvalue()[: -len(_COMMENT) - _DIGEST]
    return body + _COMMENT + hashlib.sha256(body).hexdigest().encode()


def unpack(path: str | Path) -> Bundle:
    """Opens a bundle and checks every hash in it.

    Raises:
        InputError: it is missing, no bundle, truncated, damaged, or of another format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read this bundle: {reason}", where=path) from error
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
            return _checked(path, archive)
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:  # hashed, yet not by `pack`
        raise InputError(f"not a bundle: {error}", where=path) from error


def _checked(path: Path, archive: zipfile.ZipFile) -> Bundle:
    text = archive.read(MANIFEST)
    document = json.loads(text)
    made = document.get("format") if isinstance(document, dict) else None
    if made != FORMAT:
        raise InputError(
            f"bundle format {made}, this version reads {FORMAT}",
            where=path,
            hint="make it again with `paredown run`",
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{MANIFEST}: {first_problem(error)[1]}", where=path) from error
    members = {name: _member(path, archive, name, entry) for name, entry in manifest.members.items()}
    bundle = Bundle(path, manifest, text, members)
    for model in manifest.models:
        bundle.read(model.file)
    return bundle


def _member(path: Path, archive: zipfile.ZipFile, name: str, entry: Member) -> bytes:
    damaged = InputError(f"{name} is not what the manifest says", where=path, hint=_AGAIN)
    data = archive.read(entry.stored)
    if entry.stored != name:
        try:
            if zstandard.get_frame_parameters(data).content_size != entry.bytes:
                raise damaged
            data = zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise damaged from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
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
        InputError: a member's name leads out of the folder (then nothing is written), or one cannot be
            written.
    """
    for name in bundle.members:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise InputError(f"member {name!r} leads out of the folder", where=bundle.path)
    for name, data in {**bundle.members, MANIFEST: bundle.text}.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise InputError(f"cannot write here: {error.strerror}", where=target) from error
