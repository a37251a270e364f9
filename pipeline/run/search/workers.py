"""Runs in processes of their own: one that dies is started again, and what it was at is tried once more.

A worker reads pickled work from standard input and answers in lines of JSON: events, then the outcome. It
ends when standard input does, so that none outlives the process that started it. Which process builds a
stage decides nothing: stages are pure functions, and the store keeps the first of equal ones.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.run.run import STORE, Run
from paredown.pipeline.run.search.sharing import BusyError, Sharing
from paredown.pipeline.store.event import Event
from paredown.pipeline.store.shared.shared import open_shared
from paredown.targets.cards.card import Target
from paredown.targets.errors import ParedownError

SERVE = ("-P", "-m", "paredown.pipeline.run.search.workers")
TRIES = 2


@dataclass(frozen=True)
class Work:
    """A run to make.

    Attributes:
        name: of its folder.
        recipe: resolved.
        target: the card.
        root: folder of all runs.
        smoke: handfuls of samples everywhere.
        device: that proves it; None = this machine alone.
        limit: test images that are scored there at most.
        shared: URL of the store that machines share; None = there is none.
        patient: whether it waits for another worker's training; else it is `busy`.
    """

    name: str
    recipe: Recipe
    target: Target
    root: Path
    smoke: bool = False
    device: str | None = None
    limit: int | None = None
    shared: str | None = None
    patient: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        built: stages that were built for it.
        reused: stages that were in the store, or were built by another worker meanwhile.
        seconds: of the whole run.
        error: why there is no result; empty where there is one.
        code: the exit code that the error has.
        busy: it stopped before a stage for which it would have waited for long.
    """

    built: int = 0
    reused: int = 0
    seconds: float = 0.0
    error: str = ""
    code: int = 0
    busy: bool = False

    def after(self, before: Outcome) -> Outcome:
        """Both tries of one run: what the first built is there for the second."""
        return replace(
            self, built=before.built + self.built, reused=max(0, self.reused - before.built),
            seconds=round(before.seconds + self.seconds, 1),
        )  # fmt: skip


_Told = queue.SimpleQueue[tuple[int, Event | Outcome]]
#: Hears of an event of a piece of work, by its number.
Hear = Callable[[int, Event], None]


class Executor(Protocol):
    """What does pieces of work, here or elsewhere."""

    def outcomes(self, works: Sequence[Work], hear: Hear) -> Iterator[tuple[int, Outcome]]:
        """Does all of them, whatever becomes of one.

        Args:
            works: what is to be done; runs of one store.
            hear: hears of events, one call at a time.

        Yields:
            The number of a piece of work, and how it went, as each ends.
        """


def perform(work: Work, tell: Callable[[Event], None]) -> Outcome:
    """Makes a run; what goes wrong is an outcome, not an error."""
    counts = {"done": 0, "reused": 0}

    def heard(event: Event) -> None:
        counts[event.state] = counts.get(event.state, 0) + 1
        tell(event)

    def said(line: str) -> None:
        tell(Event("shared store", "done", None, line))

    began, error, code, busy = time.perf_counter(), "", 0, False
    try:
        shared = None if work.shared is None else open_shared(work.shared, said, strict=False)
        run = Run(
            work.name, work.recipe, work.target, work.root, smoke=work.smoke, device=work.device,
            device_limit=work.limit, tell=heard, shared=shared,
            around=Sharing(work.root / STORE, patient=work.patient).around,
        )  # fmt: skip
        run.execute()
    except BusyError:
        busy = True
        tell(Event("", "put off", None, "another run's long stage has to end first"))
    except ParedownError as found:
        error, code = str(found), found.exit_code
    except Exception as found:  # a bug of ours or of the user's own code: the other points go on
        traceback.print_exc()
        error, code = f"{type(found).__name__}: {found}", 1
    seconds = round(time.perf_counter() - began, 1)
    return Outcome(counts["done"], counts["reused"], seconds, error, code, busy)


def neighbours(count: int, workers: int) -> list[range]:
    """So many pieces of work in as many parts as there are workers: neighbours share the most."""
    ends = [count * part // workers for part in range(workers + 1)]
    return [range(*each) for each in itertools.pairwise(ends)]


class _Waiting:
    """Pieces of work that nobody does yet. One that is busy goes to the end.

    Neighbours share the most, a training too. So each worker has a part of them, and takes from the end of
    the longest one when its own is done.

    Args:
        count: how many there are.
        workers: how many do them; a single one waits for no other.
    """

    def __init__(self, count: int, workers: int) -> None:
        self._parts = [deque(part) for part in neighbours(count, workers)]
        self._before = dict[int, Outcome]()
        self._vain, self._lock = 0, threading.Lock()

    def take(self, worker: int) -> tuple[int, bool] | None:
        """The next, and whether it is patient: all that wait have been tried since anything was built."""
        with self._lock:
            mine, longest = self._parts[worker], max(self._parts, key=len)
            if not longest:
                return None
            number = mine.popleft() if mine else longest.pop()
            left = sum(len(part) for part in self._parts)
            return number, len(self._parts) == 1 or self._vain > left

    def give(self, worker: int, number: int, outcome: Outcome) -> Outcome | None:
        """Hears how it went; None where it is busy, and waits again."""
        with self._lock:
            self._vain = self._vain + 1 if outcome.busy and not outcome.built else 0
            outcome = outcome.after(self._before.pop(number, Outcome()))
            if not outcome.busy:
                return outcome
            self._parts[worker].append(number)
            self._before[number] = outcome
            return None


class LocalWorkers:
    """Processes on this machine.

    Args:
        jobs: how many at once.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: dict[int, subprocess.Popen[bytes]] = {}  # thread -> its worker
        self._ended, self._starting = False, threading.Lock()

    def outcomes(self, works: Sequence[Work], hear: Hear) -> Iterator[tuple[int, Outcome]]:
        """See `Executor`."""
        lanes = max(1, min(self._jobs, len(works)))
        waiting = _Waiting(len(works), lanes)
        told: _Told = queue.SimpleQueue()
        threads = [
            threading.Thread(target=self._feed, args=(lane, works, waiting, told), daemon=True)
            for lane in range(lanes)
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(works)
            while left:
                number, said = told.get()
                if isinstance(said, Event):
                    hear(number, said)
                else:
                    left -= 1
                    yield number, said
        finally:
            with self._starting:
                self._ended = True
                for process in self._running.values():
                    process.kill()
            for thread in threads:
                thread.join()

    def _feed(self, lane: int, works: Sequence[Work], waiting: _Waiting, told: _Told) -> None:
        """What a thread does for its worker."""
        worker: subprocess.Popen[bytes] | None = None
        while not self._ended:
            taken = waiting.take(lane)
            if taken is None:
                break
            number, work = taken[0], replace(works[taken[0]], patient=taken[1])
            ends: list[str] = []
            outcome = None
            while outcome is None and len(ends) < TRIES:
                worker = worker or self._start(lane)
                if worker is None:
                    return
                outcome = ask(worker, work, functools.partial(_tell, told, number))
                if outcome is None:
                    ends.append(ended(worker.wait()))
                    worker = None
            outcome = waiting.give(lane, number, outcome or died(ends))
            if outcome is not None:
                told.put((number, outcome))
        if worker is not None:
            worker.kill()
            worker.wait()

    def _start(self, lane: int) -> subprocess.Popen[bytes] | None:
        """A new worker; None where all is over."""
        with self._starting:
            if self._ended:
                return None
            self._running[lane] = start_worker()
            return self._running[lane]


def _tell(told: _Told, number: int, event: Event) -> None:
    told.put((number, event))


def start_worker(variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process that serves. Ctrl-C is for who started it to answer, so it has a session of its own.

    Args:
        variables: of its environment, beside those of this process.
    """
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, *SERVE], env={**os.environ, "PYTHONPATH": paths, **(variables or {})},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def ask(worker: subprocess.Popen[bytes], work: Work, hear: Callable[[Event], None]) -> Outcome | None:
    """Has a worker do a piece of work; None where it died."""
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        worker.stdin.write(pickle.dumps(work))
        worker.stdin.flush()
        for line in worker.stdout:
            told = json.loads(line)
            if "stage" not in told:
                return Outcome(**told)
            hear(Event(**told))
    return None


def died(ends: Sequence[str]) -> Outcome:
    """What comes of work whose every worker ended so."""
    return Outcome(error=f"its worker {' and again '.join(ends)}", code=1)


def ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed ({signal.Signals(-code).name})"
    return f"was killed (signal {-code})"


def serve() -> None:
    """What a worker does, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's code prints is no answer
    works: queue.SimpleQueue[Work] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError):
            while True:
                works.put(pickle.load(sys.stdin.buffer))
        os._exit(0)  # nobody wants to know any more, whatever is at work

    def say(what: Event | Outcome) -> None:
        print(json.dumps(asdict(what)), file=answers, flush=True)

    threading.Thread(target=listen, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            say(perform(works.get(), say))


if __name__ == "__main__":
    serve()
