"""The command in processes that begin where torch is imported already, which else takes most of their time.

Python's own fork server imports it once for all of them. Tests of how the command itself starts, of what it
imports and of what a user's folder does to that, start a whole Python.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["cv2", "torch.export._trace", "paredown.apps.cli.main"])


class Command:
    """A command at work, with what `subprocess.Popen` knows of a process.

    Args:
        words: of the command, without its program.
        folder: where it works; this process's if not given.
        environment: of the process; this one's if not given.
        python: a program that is executed instead of the command.
    """

    def __init__(
        self, words: Sequence[object], folder: Path | None = None, environment: dict[str, str] | None = None,
        python: str = "",
    ) -> None:  # fmt: skip
        out, their_out = SERVER.Pipe(duplex=False)
        err, their_err = SERVER.Pipe(duplex=False)
        place = str(folder or Path.cwd()), environment or dict(os.environ)
        self._process = SERVER.Process(
            target=_work, args=(list(map(str, words)), python, *place, their_out, their_err)
        )
        self._process.start()
        their_out.close(), their_err.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno())) for pipe in (out, err))
        out.close(), err.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> None:
        self._process.join()

    def communicate(self) -> tuple[str, str]:
        """What it says on both streams until it ends."""
        err: list[str] = []
        hears = threading.Thread(target=lambda: err.append(self.stderr.read()))
        hears.start()
        out = self.stdout.read()
        hears.join()
        self.wait()
        self.stdout.close(), self.stderr.close()
        return out, err[0]


def _work(
    words: list[str], python: str, folder: str, environment: dict[str, str], out: Connection, err: Connection
) -> None:
    os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
    out.close(), err.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    if python:
        exec(compile(python, "<string>", "exec"), {"__name__": "__main__"})
        return
    from paredown.apps.cli.main import app

    app(words)
