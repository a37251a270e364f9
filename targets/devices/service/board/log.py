"""What an app on a device says: a log of bounded size, and a full disk that costs lines of it alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

LOG_BYTES = 2 << 20  # of each of two
LINE_BYTES = 1 << 16  # a longer line is cut in two
SAID = 500  # characters of the last line that are kept
_ERROR = re.compile(rb"\W*(error|fatal|traceback)\b", re.IGNORECASE)


class Log:
    """What the app says, in two files of a bounded size; on a full disk lines are dropped and counted.

    Args:
        path: of the newer file.

    Attributes:
        dropped: lines that found no room.
        last: line that came.
        errors: lines that begin with `error`, `fatal` or `Traceback`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._size = path, -1, 0
        self._rest = b""
        self._told, self._torn = 0, False
        self.dropped, self.errors, self.last = 0, 0, ""

    def feed(self, data: bytes) -> None:
        """Takes what came, whole lines or not."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.line(line)
        while len(self._rest) >= LINE_BYTES:
            self.line(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]

    def end(self) -> None:
        """The last line, which may have no end."""
        if self._rest:
            self.line(self._rest)
        self._rest = b""

    def line(self, line: bytes) -> None:
        """Writes a line of the app."""
        self.last = line.decode(errors="replace").strip()[-SAID:] or self.last
        self.errors += bool(_ERROR.match(line))
        self.note(line)

    def note(self, line: bytes) -> None:
        """Writes a line of our own."""
        said = line + b"\n"
        if self.dropped > self._told:
            said = b"paredown: no space for %d lines\n" % (self.dropped - self._told) + said
        if self._wrote(b"\n" + said if self._torn else said):
            self._torn, self._told = False, self.dropped
        else:
            self.dropped += 1

    def _wrote(self, data: bytes) -> bool:
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._size = os.fstat(self._file).st_size
            if self._size and self._size + len(data) > LOG_BYTES:
                self._path.replace(self._path.with_name("log.1"))
                os.close(self._file)
                self._file = -1
                return self._wrote(data)
            done = os.write(self._file, data)
        except OSError:
            return False
        self._size += done
        self._torn = self._torn or done < len(data)
        return done == len(data)
