"""A file on its way here: it appears under its name whole and with the right sha256, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Self

from paredown.targets.devices.errors import PullDamagedError
from paredown.targets.errors import InputError


class Arrival:
    """Takes what `script.pull` writes: a line with sha256 and size, and then the file.

    Used with `with`: what was not kept is gone afterwards.
    """

    def __init__(self, target: Path) -> None:
        """Opens a temporary file beside the target.

        Raises:
            InputError: nothing can be written there.
        """
        self._target, self._part = target, target.with_name(f".{target.name}.part")
        self._header, self._promised = b"", ""
        self._size, self._sha256 = 0, hashlib.sha256()
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise self._unwritable(error) from error

    def take(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InputError: they cannot be written here.
        """
        if not self._promised:
            self._header += data
            line, end, data = self._header.partition(b"\n")
            if not end:
                return
            self._promised = line.decode(errors="replace")
        try:
            self._file.write(data)
        except OSError as error:
            raise self._unwritable(error) from error
        self._size += len(data)
        self._sha256.update(data)

    def keep(self, where: str, source: str) -> None:
        """Puts the file under its name, if it is the one that the device promised.

        Args:
            where: the device, for errors.
            source: the file there, for errors.

        Raises:
            PullDamagedError: it is truncated or another one.
            InputError: it cannot be written here.
        """
        promised, _, size = self._promised.partition(" ")
        if (promised, size.strip()) != (self._sha256.hexdigest(), str(self._size)):
            expected = f"{size.strip()} bytes" if size.strip().isdigit() else "a file"
            same = size.strip() == str(self._size)
            how = "with another sha256" if same else f"of which {self._size} came"
            raise PullDamagedError(f"{source}, {expected}, {how}", where=where)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._target)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what was not kept."""
        self._part.unlink(missing_ok=True)
        self._file.close()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"cannot write here: {error.strerror}", where=self._target)
