"""Artefacts that machines share: pulled before a stage is built, pushed after; the local store is worked in.

Files lie under their sha256, so equal ones are there once, and whoever uploads them. An artefact's
`artefact.json`, which names them, is uploaded last: without it there is no artefact. Every byte that comes
down is hashed; what does not fit is taken away, built again, and uploaded again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from paredown.pipeline.store.shared.objects import Objects, Trouble
from paredown.pipeline.store.shared.turn import Pace, turn
from paredown.pipeline.store.store import MANIFEST, Store, file_hash, read_manifest
from paredown.targets.errors import DeviceError, InputError

FORMAT = 1
MARKER = "paredown-store.json"
_HEX = frozenset("0123456789abcdef")


class _DamagedError(Exception):
    """A file of an artefact is not there, or is another one."""


class SharedStore:
    """Artefacts that machines share.

    A trouble in the middle of a run is said once, and the run goes on with what this machine has: where
    nothing can be written, nothing is pushed or locked any more; where nothing can be read either, no more
    is pulled.

    Args:
        objects: where they lie.
        say: hears of what went wrong.
        pace: of its locks.
    """

    def __init__(self, objects: Objects, say: Callable[[str], None], pace: Pace | None = None) -> None:
        self.url, self.objects = objects.url, objects
        self._say, self._pace = say, pace
        self._reads = self._writes = True
        self._there: set[str] = set()  # keys that are known to be there

    @contextlib.contextmanager
    def turn(self, key: str, waits: Callable[[str], None]) -> Iterator[None]:
        """See `pipeline.store.store.Shared`."""
        with contextlib.ExitStack() as stack:
            if self._writes and not self._made(key):
                with self._troubled():
                    stack.enter_context(
                        turn(self.objects, f"locks/{key}", lambda: self._made(key), waits, self._pace)
                    )
            yield

    def pull(self, key: str, store: Store) -> Path | None:
        """See `pipeline.store.store.Shared`."""
        path: Path | None = None
        with self._troubled():
            text = self.objects.read(_artefact(key)) if self._reads else None
            if text is not None:
                try:
                    path = self._brought(key, text, store)
                    self._there.add(key)
                except _DamagedError as error:
                    self._say(f"{self.url}: artefact {key[:12]} {error}; it is made again")
                    if self._writes:
                        self.objects.remove(_artefact(key))
        return path

    def push(self, key: str, folder: Path) -> None:
        """See `pipeline.store.store.Shared`."""
        if not self._writes or key in self._there or self._made(key):
            return
        with self._troubled():
            text = (folder / MANIFEST).read_bytes()
            files = read_manifest(text)[2]
            for digest, name in {digest: name for name, (_, digest) in files.items()}.items():
                if not files[name][0] or not self.objects.has(_blob(digest)):  # empty: no first byte
                    self.objects.write_file(_blob(digest), folder / name)
            self.objects.write(_artefact(key), text)
            self._there.add(key)

    def _made(self, key: str) -> bool:
        """Whether an artefact is there, as far as its last file tells."""
        with self._troubled():
            return self._reads and self.objects.has(_artefact(key))
        return False

    def _brought(self, key: str, text: bytes, store: Store) -> Path:
        try:
            found, meta, files = read_manifest(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _DamagedError(f"has no readable {MANIFEST}") from error
        odd = [name for name in files if not _plain(name)]
        if found != key or odd or not files or not all(_digest(digest) for _, digest in files.values()):
            raise _DamagedError(f"has the {MANIFEST} of something else")

        def fill(folder: Path) -> None:
            for name, (size, digest) in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if not self.objects.read_file(_blob(digest), path):
                    raise _DamagedError(f"lacks {name}")
                if path.stat().st_size != size or file_hash(path) != digest:
                    if self._writes:
                        self.objects.remove(_blob(digest))
                    raise _DamagedError(f"has another {name} than was uploaded")

        return store.publish(key, fill, meta)

    @contextlib.contextmanager
    def _troubled(self) -> Iterator[None]:
        """Does without what goes wrong."""
        try:
            yield
        except Trouble as error:
            self.does_without(error)

    def does_without(self, error: Trouble) -> None:
        """Says what goes wrong, once, and leaves alone what does not work."""
        before = self._reads, self._writes
        self._writes = False
        self._reads = self._reads and error.kind in ("denied", "full")
        if before != (self._reads, self._writes):
            less = "nothing more is written there" if self._reads else "this run goes on without it"
            self._say(f"{error}; {less}")


def open_shared(
    url: str, say: Callable[[str], None], *, strict: bool = True, pace: Pace | None = None
) -> SharedStore:
    """Opens the store of a URL, or begins one there.

    Args:
        url: a folder, or a URL that fsspec knows, as s3://bucket/folder.
        say: hears of what goes wrong later.
        strict: whether a store that cannot be read is an error now; else it is said, and done without.
        pace: of its locks.

    Raises:
        UsageError: a URL that nothing here knows.
        DeviceError: its package is missing, or nobody answers there.
        InputError: it may not be read, there is no such bucket, or something else is there.
    """
    shared = SharedStore(Objects(url), say, pace)
    try:
        head = shared.objects.read(MARKER)
        if head is None:
            shared.objects.write(MARKER, json.dumps({"format": FORMAT}).encode())
        elif _format(head) != FORMAT:
            raise InputError("is no store of this version", where=url, hint="give an empty folder")
    except Trouble as error:
        if strict and error.kind not in ("denied", "full"):
            kind = DeviceError if error.kind == "away" else InputError
            raise kind(error.what, where=f"--store {url}", hint=error.hint) from error
        shared.does_without(error)
    return shared


def _format(head: bytes) -> object:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return json.loads(head).get("format")
    return None


def _artefact(key: str) -> str:
    return f"artefacts/{key[:2]}/{key}.json"


def _blob(digest: str) -> str:
    return f"files/{digest[:2]}/{digest}"


def _digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= _HEX


def _plain(name: str) -> bool:
    """Whether a file's name stays in the artefact's folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
