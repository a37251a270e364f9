"""How runs at once share a store and a machine: no stage is built twice, and nothing runs beside a timing.

Who waits for another's training keeps a core idle for as long. A run that has other work to do instead does
not wait for that: it hears `BusyError`, and is tried again later.

Locks are byte ranges of one file (POSIX record locks): the kernel gives them back when a process ends,
however it ends, and they hold on a shared file system too. A process holds one stage's lock at a time, so
there is no circle of processes that wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paredown.pipeline.run.start.together import TRAININGS
from paredown.pipeline.store.stage import Stage

LOCKS = ".stages.lock"
TIMED = ("bench", "time-programs")  # stages that time on this machine
LONG = (*TRAININGS, "sense", "quantize", "distil")  # stages that take minutes or hours
TURN, ROOM, FIRST = 0, 1, 2  # bytes of the file; from FIRST on those of stages
LENGTHY = 1 << 60  # behind all of them: shared by who builds a long one


class BusyError(Exception):
    """Another process is in a long stage that has to end first."""


class Sharing:
    """What one process says to the others around each stage.

    Args:
        root: of the store.
        quiet: whether nothing else may run while a stage times; else stages only wait for their like.
        patient: whether it waits for another's long stage too.
    """

    def __init__(self, root: Path, quiet: bool = True, patient: bool = True) -> None:
        self._path, self._quiet, self._patient = root / LOCKS, quiet, patient

    @contextlib.contextmanager
    def around(self, stage: Stage) -> Iterator[None]:
        """Holds a stage's lock while it is built, or looked for; waits where another process builds it.

        Raises:
            BusyError: it would wait for a long stage, and is not patient.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            own, long = FIRST + int(stage.key[:14], 16), stage.name in LONG
            _hold(file, own, fcntl.LOCK_EX, wait=self._patient or not long)
            if self._quiet:  # who wants to time waits in front of the room: nobody enters it before him
                alone = stage.name in TIMED
                if alone and not self._patient:
                    _hold(file, LENGTHY, fcntl.LOCK_EX, wait=False)
                    fcntl.lockf(file, fcntl.LOCK_UN, 1, LENGTHY)
                _hold(file, TURN, fcntl.LOCK_EX)
                if long:
                    _hold(file, LENGTHY, fcntl.LOCK_SH)
                _hold(file, ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
                fcntl.lockf(file, fcntl.LOCK_UN, 1, TURN)
            yield  # closing the file gives all of them back


def _hold(file: IO[bytes], byte: int, kind: int, wait: bool = True) -> None:
    """Takes a lock; without waiting it may be another's."""
    try:
        fcntl.lockf(file, kind if wait else kind | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError) as error:
        raise BusyError from error
