"""Somebody who chats, for tests: a program with a terminal of its own."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Person:
    """Somebody at a pseudo-terminal.

    Args:
        words: the program and its arguments.
        where: the rest of `Popen`'s.
        patience: seconds of silence that are waited for.

    Attributes:
        screen: what was written to it and not seen yet.
    """

    def __init__(self, words: Sequence[str], where: Mapping[str, Any], patience: float = 60) -> None:
        self._own, theirs = pty.openpty()
        self._patience = patience
        self._process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **where,
        )  # fmt: skip
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a letter
        self.screen = ""

    def types(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupts(self) -> None:
        """Ctrl-C, once the program has settled to wait: between readline's prompt and its `select`, CPython
        hears of a signal only with the next key; and two signals at once are one."""
        calm = 0
        while calm < 5:
            time.sleep(0.02)
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            calm = calm + 1 if state == "S" else 0
        self.types("\x03")

    def sees(self, text: str) -> None:
        """Waits for a text to come after what was seen last."""
        while text not in self.screen:
            ready, _, _ = select.select([self._own], [], [], self._patience)
            came = self._read() if ready else ""
            assert came, f"in vain: {text!r} after {self.screen!r}"
            self.screen += came
        self.screen = self.screen.partition(text)[2]

    def leaves(self) -> int:
        """The exit status, once it has ended; the screen keeps what came until then."""
        while data := self._read():
            self.screen += data
        return self._process.wait(self._patience)

    def _read(self) -> str:
        text = ""
        while not text:
            try:
                text = self._decoder.decode(os.read(self._own, 1 << 16))
            except OSError:  # nobody has the other end any more
                break
        return text

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)
