"""Named bytes somewhere else: a folder that machines share, or what an fsspec URL says, as s3://bucket/folder.

A thin layer on fsspec: what goes wrong has one kind of error with one line, every operation is counted, and
on a file system a name has its old bytes or its new ones, as it has on an object store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from paredown.targets.errors import DeviceError, UsageError
from paredown.targets.host.tools import need

Kind = Literal["away", "denied", "full", "odd"]
S3 = ("s3", "s3a")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SKEWED = ("RequestTimeTooSkewed", "request time and the current time")
_HINTS = {
    "away": "look at the address and whether the server runs",
    "denied": "look at the keys and rights",
    "full": "free some space there",
    "odd": "look at the URL",
}
_Found = TypeVar("_Found")


class Trouble(Exception):
    """What a shared store could not do.

    Args:
        url: of the store.
        kind: "away": nobody answers; "denied": it may not be done; "full": no space is left; "odd": else.
        what: in words.
    """

    def __init__(self, url: str, kind: Kind, what: str) -> None:
        self.url, self.kind, self.what = url, kind, what
        super().__init__(f"{url}: {what}; {self.hint}")

    @property
    def hint(self) -> str:
        """What to do next."""
        return "set this machine's clock" if "clock" in self.what else _HINTS[self.kind]


class Objects:
    """Named bytes below a URL; names have slashes.

    Args:
        url: a folder, or a URL that fsspec knows.

    Attributes:
        url: as it was given.
        count: operation -> how many there were ("get", "put", "delete").
        moved: bytes that were read ("in") and written ("out").

    Raises:
        UsageError: a URL that nothing here knows.
        DeviceError: its package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url, self.count, self.moved = url, Counter[str](), Counter[str]()
        self._fs, self._root = _open(url)
        self._local = "file" in self._fs.protocol

    def read(self, name: str) -> bytes | None:
        """The bytes of a name; None where there are none."""
        self.count["get"] += 1
        data: bytes | None = self._done(lambda: self._fs.cat_file(self._path(name)), None)
        self.moved["in"] += len(data or b"")
        return data

    def read_file(self, name: str, path: Path) -> bool:
        """Copies the bytes of a name into a file; False where there are none.

        Raises:
            OSError: the file's own disk is full.
        """
        self.count["get"] += 1

        def copy() -> bool:
            self._fs.get_file(self._path(name), str(path))
            return True

        try:
            found = self._done(copy, False)
        except Trouble as error:
            if error.kind == "full":  # reading fills nothing there
                raise OSError(errno.ENOSPC, error.what) from error
            raise
        self.moved["in"] += path.stat().st_size if found else 0
        return found

    def write(self, name: str, data: bytes) -> None:
        """Gives a name its bytes, in one step."""
        self.count["put"] += 1
        self.moved["out"] += len(data)
        self._placed(name, lambda path: self._fs.pipe_file(path, data))

    def write_file(self, name: str, path: Path) -> None:
        """Gives a name the bytes of a file, in one step."""
        self.count["put"] += 1
        self.moved["out"] += path.stat().st_size
        self._placed(name, lambda there: self._fs.put_file(str(path), there))

    def create(self, name: str, data: bytes) -> bool:
        """Gives a name its bytes where it has none; False where it has. Of two at once one is refused."""
        self.count["put"] += 1
        path = self._path(name)

        def make() -> bool:
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with Path(path).open("xb") as file:
                    file.write(data)
            else:
                self._fs.pipe_file(path, data, mode="create")
            return True

        with contextlib.suppress(FileExistsError):
            return self._done(make)
        return False

    def has(self, name: str) -> bool:
        """Whether a name has bytes: asks for the first; to ask for the size would cost a listing, too."""
        self.count["get"] += 1
        found: bytes | None = self._done(lambda: self._fs.cat_file(self._path(name), start=0, end=1), None)
        return bool(found)

    def remove(self, name: str) -> None:
        """Takes a name away, if it is there."""
        self.count["delete"] += 1
        self._done(lambda: self._fs.rm_file(self._path(name)), None)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _placed(self, name: str, write: Callable[[str], None]) -> None:
        path = self._path(name)
        if not self._local:
            self._done(lambda: write(path))
            return
        beside = f"{path}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"

        def place() -> None:
            try:
                write(beside)
                Path(beside).replace(path)
            finally:
                Path(beside).unlink(missing_ok=True)

        self._done(place)

    def _done(self, do: Callable[[], _Found], *absent: _Found) -> _Found:
        """What something gives; `absent` where there is no such name."""
        try:
            return do()
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if absent:
                return absent[0]
            raise Trouble(self.url, "odd", "there is no such bucket or folder") from error
        except Exception as error:  # each protocol's package has errors of its own
            raise Trouble(self.url, *_told(error)) from error


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0] if "://" in url else "file"
    if "::" in url or not url.partition("://")[2 if "://" in url else 0].strip("/"):
        raise UsageError(f"`{url}` is no store", where="--store",
                         hint="give a folder, or a URL as s3://bucket/folder")  # fmt: skip
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        fs, path = url_to_fs(
            url, skip_instance_cache=protocol != "memory", use_listings_cache=False, **options
        )
    except ImportError as error:
        if protocol in S3:
            need("s3fs", f"--store {url}")
        raise DeviceError(f"--store {url} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UsageError(f"`{url}` has a protocol that nothing here knows", where="--store",
                         hint="give a folder, or s3://bucket/folder") from error  # fmt: skip
    return fs, str(path)


def _told(error: Exception) -> tuple[Kind, str]:
    """What kind of trouble an error of fsspec, or of a protocol's package, is; and its first line."""
    text = " ".join(str(error).split())
    number = getattr(error, "errno", None)
    chain = f"{text} {error.__cause__}"
    if any(word in chain for word in _SKEWED):
        return "denied", "the server refuses this machine's clock"
    if number in _FULL or any(word in chain for word in ("QuotaExceeded", "InsufficientStorage")):
        return "full", "no space is left"
    name = type(error).__name__
    if isinstance(error, PermissionError) or number in _DENIED or "Credentials" in name:
        return "denied", f"access is denied ({text})" if text else "access is denied"
    if isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name or "Timeout" in name:
        return "away", f"cannot be reached ({text})"
    return "odd", text or name
