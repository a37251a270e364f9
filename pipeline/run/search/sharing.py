"""How runs at once share a store and a machine: no stage is built twice, and nothing runs beside a timing.

Locks are byte ranges of one file (POSIX record locks): the kernel gives them back when a process ends,
however it ends, and they hold on a shared file system too. A process holds one stage's lock at a time, so
there is no circle of processes that wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from paredown.pipeline.store.stage import Stage

LOCKS = ".stages.lock"
TIMED = ("bench", "time-programs")  # stages that time on this machine
TURN, ROOM, FIRST = 0, 1, 2  # bytes of the file; from FIRST on those of stages


class Sharing:
    """What one process says to the others around each stage.

    Args:
        root: of the store.
        quiet: whether nothing else may run while a stage times; else stages only wait for their like.
    """

    def __init__(self, root: Path, quiet: bool = True) -> None:
        self._path, self._quiet = root / LOCKS, quiet

    @contextlib.contextmanager
    def around(self, stage: Stage) -> Iterator[None]:
        """Holds a stage's lock while it is built, or looked for; waits where another process builds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            own = FIRST + int(stage.key[:14], 16)
            fcntl.lockf(file, fcntl.LOCK_EX, 1, own)
            if self._quiet:  # who wants to time waits in front of the room: nobody enters it before him
                fcntl.lockf(file, fcntl.LOCK_EX, 1, TURN)
                alone = stage.name in TIMED
                fcntl.lockf(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, ROOM)
                fcntl.lockf(file, fcntl.LOCK_UN, 1, TURN)
            yield  # closing the file gives all of them back
