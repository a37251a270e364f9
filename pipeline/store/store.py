"""The artefact store: complete, verified directories, addressed by the key of what made them.

An artefact is built in a temporary folder of the same file system, every byte of it is forced to disk, and
one rename publishes it. A process killed at any moment leaves no half artefact, only a temporary folder that
a later run clears away. Equal inputs give equal bytes: `artefact.json` holds no time and no path, and all
published files carry one fixed modification time, so that a later change shows in a cheap look at size and
time (our design).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paredown.targets.errors import InputError

MANIFEST = "artefact.json"
PUBLISHED_NS = 315_532_800 * 10**9  # 1980-01-01, the oldest time that zip files can carry
_KEY = re.compile(r"[0-9a-f]{64}")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class StoreFault:
    """What the store holds under a key: a sound artefact's folder, or "missing" or "damaged: ..."."""

    path: Path | None
    problem: str = ""


class Shared(Protocol):
    """Where other machines keep and find artefacts; see `pipeline.store.shared.shared`.

    Attributes:
        url: of it.
    """

    url: str

    def turn(self, key: str, waits: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """Holds an artefact's lock, or waits until whoever holds it has made it.

        Args:
            key: 64 hex digits.
            waits: hears once whom this process waits for.
        """

    def pull(self, key: str, store: Store) -> Path | None:
        """Brings an artefact into a store; None where there is no sound one."""

    def push(self, key: str, folder: Path) -> None:
        """Gives an artefact to the others, unless they have it."""


class Store:
    """A folder of artefacts. Any number of processes may read and publish at once.

    Args:
        root: the folder; made on the first publish.
        shared: where other machines have theirs; None = this machine works alone.
    """

    def __init__(self, root: Path, shared: Shared | None = None) -> None:
        self.root, self.shared = root, shared
        self._hashed: set[str] = set()  # keys whose bytes were looked at by this process

    def get(self, key: str, verify: bool = False) -> Path | None:
        """The folder of a sound artefact, or None where it is missing or damaged.

        Args:
            key: 64 hex digits.
            verify: hash every byte instead of looking at sizes and modification times.
        """
        return self.inspect(key, verify).path

    def checked(self, key: str) -> StoreFault:
        """As `inspect`, by every byte the first time: a bit that flipped on the disk changes no time."""
        finding = self.inspect(key, verify=key not in self._hashed)
        if finding.path is not None:
            self._hashed.add(key)
        return finding

    def inspect(self, key: str, verify: bool = False) -> StoreFault:
        """Like `get`, and says what is wrong where there is no sound artefact."""
        path = self._folder(key)
        try:
            found, _, files = read_manifest((path / MANIFEST).read_bytes())
            if found != key:
                return StoreFault(None, f"damaged: {MANIFEST} belongs to another artefact")
        except FileNotFoundError:
            return StoreFault(None, f"damaged: no {MANIFEST}" if path.exists() else "missing")
        except NotADirectoryError:
            return StoreFault(None, "missing")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return StoreFault(None, f"damaged: {MANIFEST} cannot be read")
        except OSError as error:
            raise _cannot("read", self.root, error) from error
        for name, (size, digest) in files.items():
            if problem := _problem(path / name, size, digest, verify):
                return StoreFault(None, f"damaged: {name} {problem}")
        return StoreFault(path)

    def publish(self, key: str, build: Callable[[Path], None], meta: Mapping[str, Any] | None = None) -> Path:
        """Builds and publishes an artefact, unless a sound one is there.

        Where another process publishes the same key meanwhile, its artefact is kept and ours is dropped.

        Args:
            key: 64 hex digits.
            build: writes the artefact's files into the empty folder it is given; regular files only.
            meta: JSON-able facts for `artefact.json`; the same for the same key, so no times and no paths.

        Returns:
            The published folder.

        Raises:
            InputError: the disk is full, or the store cannot be written.
            ValueError: the key is not a key, or `build` wrote nothing, or something other than plain files.
        """
        target = self._folder(key)
        if found := self.get(key, verify=True):
            return found
        with self._temporary(key) as folder:
            build(folder)
            try:
                _seal(folder, key, meta or {})
                self._commit(folder, target, key)
            except OSError as error:
                raise _cannot("write to", self.root, error) from error
        return target

    def sweep(self) -> int:
        """Removes the temporary folders of processes that are gone; returns how many there were."""
        removed = 0
        for path in self._temporary_root.glob("*"):
            if not owner_lives(path.name):
                _remove(path)
                removed += 1
        return removed

    @property
    def _temporary_root(self) -> Path:
        return self.root / ".tmp"

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a store key: {key!r}")
        return self.root / key

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A folder to build in, named after its owner; gone at the end, published or not."""
        folder = self._temporary_root / f"{owner_name()}.{uuid.uuid4().hex[:8]}.{key[:12]}"
        try:
            self._temporary_root.mkdir(parents=True, exist_ok=True)
            self.sweep()
            folder.mkdir()
        except OSError as error:
            raise _cannot("write to", self.root, error) from error
        try:
            yield folder
        except OSError as error:
            # of the builder's own errors only those of the store's disk are ours to explain
            ours = str(error.filename).startswith(str(folder))
            if error.errno in _FULL or (ours and error.errno in _DENIED):
                raise _cannot("write to", self.root, error) from error
            raise
        except (
            Exception
        ) as error:  # a library of Rust has errors of its own, with the system's number in them
            number = _OS_ERROR.search(str(error))
            if number and int(number[1]) in _FULL:
                raise _cannot("write to", self.root, OSError(int(number[1]), str(error))) from error
            raise
        finally:
            _remove(folder)

    def _commit(self, folder: Path, target: Path, key: str) -> None:
        """Renames a sealed folder into place; keeps a sound winner, replaces a damaged artefact."""
        if not _moved(folder, target):
            # Only the holder of the lock moves artefacts out of the way, after looking again: none that is
            # sound is ever moved from under a reader. Whoever has just built one needs no lock for an empty
            # place, and may take it between our two moves.
            with self._locked():
                while not self.get(key, verify=True):
                    target.rename(self._temporary_root / f"{owner_name()}.{uuid.uuid4().hex[:8]}.damaged")
                    if _moved(folder, target):
                        break
            for path in self._temporary_root.glob(f"{owner_name()}.*.damaged"):
                _remove(path)
        _sync(self.root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the process goes, however it goes
            yield


def read_manifest(text: bytes) -> tuple[str, dict[str, Any], dict[str, tuple[int, str]]]:
    """What an `artefact.json` says: key, facts, and name -> bytes and sha256 of each file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: it is none.
    """
    manifest = json.loads(text)
    files = {
        str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()
    }
    return manifest["key"], dict(manifest["meta"]), files


def _moved(folder: Path, target: Path) -> bool:
    """Renames a folder; False where something is in its place already."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file in one step: readers see the old bytes or the new, even after a power cut.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise _cannot("write to", path, error) from error


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text.

    Raises:
        TypeError: something in it is not JSON (a path, a set, an array).
        ValueError: a float in it is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _seal(folder: Path, key: str, meta: Mapping[str, Any]) -> None:
    """Hashes, dates and syncs every file, then writes the manifest and syncs every folder."""
    files: dict[str, dict[str, Any]] = {}
    folders = [folder]
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif not stat.S_ISREG(mode):
            raise ValueError(f"an artefact holds plain files only, not {name}")
        elif name == MANIFEST:
            raise ValueError(f"{MANIFEST} is the store's own file")
        else:
            files[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
            _settle(path)
    if not files:
        raise ValueError("the stage wrote no file")
    manifest = {"key": key, "meta": dict(meta), "files": files}
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="ascii")
    _settle(folder / MANIFEST)
    for path in reversed(folders):  # children before parents
        _sync(path)


def _settle(path: Path) -> None:
    os.utime(path, ns=(PUBLISHED_NS, PUBLISHED_NS))
    _sync(path)


def _remove(path: Path) -> None:
    """Removes a folder or a file as far as it can be: what stays is swept another time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path, size: int, digest: str, verify: bool) -> str:
    """What is wrong with one file of an artefact; empty where it is sound."""
    try:
        found = path.stat()
        if found.st_size != size:
            return f"has {found.st_size} bytes instead of {size}"
        if (
            verify or found.st_mtime_ns != PUBLISHED_NS
        ):  # touched, or copied without its times: the bytes decide
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return "has other bytes than were published"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _cannot(what: str, where: Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        return InputError("the disk is full", where=where, hint="free some space or choose another folder")
    if error.errno in _DENIED or error.errno in _NO_FOLDER:
        reason = error.strerror or "refused"
        return InputError(f"cannot {what} this folder: {reason}", where=where, hint="choose another folder")
    return InputError(f"cannot {what} this folder: {error.strerror or error}", where=where)


def owner_name() -> str:
    """This process, so that others can tell whether it lives: machine, pid, and when it began."""
    return f"{machine_name()}.{os.getpid()}.{_began(os.getpid())}"


def owner_lives(name: str) -> bool:
    """Whether the process that a temporary folder is named after may still be at work."""
    machine, _, rest = name.partition(".")
    pid, _, rest = rest.partition(".")
    began = rest.partition(".")[0]
    if machine != machine_name() or not pid.isdigit():
        return True  # another machine's, or nothing of ours: not for us to judge
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or no pid at all
        return True
    return began in ("0", _began(int(pid)))


def machine_name() -> str:
    """What this machine calls itself, in letters, digits and hyphens."""
    return re.sub(r"[^\w\-]", "-", socket.gethostname()) or "machine"


def _began(pid: int) -> str:
    """When a process began, in clock ticks since boot; "0" where the system does not tell."""
    try:
        # the name in parentheses may itself hold spaces and parentheses
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
