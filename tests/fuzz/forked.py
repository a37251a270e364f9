"""Children of ours that are forked instead of started: the same code, without its seconds of imports."""

from __future__ import annotations

import faulthandler
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from paredown.pipeline.bundle.finished import child
from paredown.targets.errors import ParedownError

MODULE = ["-P", "-m", "paredown.pipeline.bundle.finished.child"]


def load_runtimes() -> None:
    """What children import, once for all of them."""
    for load in child.LOADS.values():
        try:
            load(b"", Path("x"), False)
        except ParedownError:  # empty, or not installed: it has been imported
            continue


@contextmanager
def forked_children() -> Iterator[None]:
    """Programs that run apart do so in copies of this process."""
    with patch.object(subprocess, "run", _run):
        yield


def _run(command: Sequence[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does for a child of ours, with captured text.

    Raises:
        TimeoutExpired: it is not done after so many seconds.
    """
    assert list(command[1:4]) == MODULE, command
    with tempfile.TemporaryFile("w+", errors="replace") as told:
        process = os.fork()
        if not process:
            _become(command[3:], told)
        try:
            waiting = os.pidfd_open(process)
            done, _, _ = select.select([waiting], [], [], timeout)
            os.close(waiting)
            if not done:
                raise subprocess.TimeoutExpired(command, timeout)
        finally:
            os.kill(process, signal.SIGKILL)  # until it is waited for, its number is nobody else's
            status = os.waitpid(process, 0)[1]
        told.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return subprocess.CompletedProcess(command, code, stdout=told.read(), stderr="")


def _become(arguments: Sequence[str], told: IO[str]) -> None:
    """Runs the module as `python -m` does, in a copy of this process, and ends that."""
    code = 1
    try:
        faulthandler.disable()  # its death is looked for, not told
        os.dup2(told.fileno(), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)
