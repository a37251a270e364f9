"""Runs on the workers of a dask cluster: `paredown sweep --scheduler tcp://host:8786`.

A task of dask only hands a piece of work to a process of ours beside it (`workers.serve`), which is kept for
the next one: locks, torch's threads and what a user's code leaves behind are those of a process, and a worker
of dask has threads. So every point is made as on one machine. dask gives the work of a worker that died to
another one.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import queue
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from paredown.pipeline.run.search.workers import (
    TRIES,
    Hear,
    Outcome,
    Work,
    ask,
    died,
    ended,
    neighbours,
    start_worker,
)  # fmt: skip
from paredown.pipeline.store.event import Event
from paredown.pipeline.store.files import THREADS, most_threads
from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import DeviceError, UsageError
from paredown.targets.host.host import this_machine
from paredown.targets.host.tools import need

CONNECT_S, ALONE_S = 10.0, 60.0
AGAIN = "run the same command again: it goes on where it was"
PROCESSES = "paredown_processes"


@dataclass(frozen=True)
class Request:
    """What a task gets.

    Attributes:
        number: of the piece of work.
        work: to do; its root is the worker's own where there is a store that machines share.
        topic: under which events are told.
        threads: of torch, for large networks.
        machine: facts of the machine that asks, which decide results.
        seen: a file that the worker sees where it shares the folder of the runs; None = it does not.
    """

    number: int
    work: Work
    topic: str
    threads: int
    machine: Mapping[str, str]
    seen: Path | None


class DaskWorkers:
    """The workers of a cluster, an `Executor`.

    Args:
        address: of the scheduler, as tcp://host:8786.
        connect_s: seconds until a scheduler that does not answer is given up.
        alone_s: seconds for which work waits where there is no worker.

    Raises:
        DeviceError: there is no dask here.
        UsageError: no such address.
    """

    def __init__(self, address: str, *, connect_s: float = CONNECT_S, alone_s: float = ALONE_S) -> None:
        need("distributed", "--scheduler")
        if not address.startswith(("tcp://", "tls://", "ws://", "wss://")):
            raise UsageError(f"`{address}` is no scheduler", where="--scheduler",
                             hint="write tcp://host:8786, as `dask scheduler` prints it")  # fmt: skip
        self._address, self._connect_s, self._alone_s = address, connect_s, alone_s

    def outcomes(self, works: Sequence[Work], hear: Hear) -> Iterator[tuple[int, Outcome]]:
        """See `Executor`.

        Raises:
            DeviceError: the scheduler cannot be reached or is lost, it has no workers, or a worker has other
                versions or does not see the folder of the runs.
        """
        told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        topic = f"paredown-{uuid.uuid4().hex}"
        with self._connected() as client, contextlib.ExitStack() as stack:
            client.subscribe_topic(topic, lambda event: told.put(("event", event[1])))
            futures = {}
            for number in _apart(len(works), sum(client.nthreads().values())):
                work = works[number]
                request = self._request(number, work, topic, stack)
                future = client.submit(
                    perform_there, pickle.dumps(request), key=f"{topic}-{number}", pure=False
                )
                futures[future.key] = number, work, future
                future.add_done_callback(lambda future: told.put(("done", future.key)))
            watch, left = _Watch(client, self._alone_s), set(futures)
            while left:
                try:
                    kind, what = told.get(timeout=1.0)
                except queue.Empty:
                    if trouble := watch.trouble():
                        raise self._lost(trouble) from None
                    continue
                if kind == "event":
                    hear(what["number"], Event(**what["event"]))
                elif what in left:
                    left.discard(what)
                    number, work, future = futures[what]
                    yield number, self._outcome(work, future)

    def _request(self, number: int, work: Work, topic: str, stack: contextlib.ExitStack) -> Request:
        """What a task gets; without a shared store the runs' folder gets a file that workers have to see."""
        root, seen, shared = work.root.absolute(), None, work.shared
        if shared is not None and "://" not in shared:  # a folder: a worker works elsewhere
            shared = str(Path(shared).absolute())
        if shared is None:
            seen = root / f".{topic}"
            if not seen.exists():
                write_atomic(seen, b"")
                stack.callback(seen.unlink, missing_ok=True)
        return Request(number, replace(work, root=root, shared=shared), topic, most_threads(), _facts(), seen)

    def _outcome(self, work: Work, future: Any) -> Outcome:
        """What came of a piece of work; its run's folder is written here where it was made elsewhere."""
        from distributed import KilledWorker

        if future.status in ("cancelled", "lost"):
            raise self._lost("lost the sweep")
        error = future.exception(timeout=self._connect_s)
        if isinstance(error, KilledWorker):
            return died([f"of dask was lost {error.allowed_failures + 1} times"])
        if isinstance(error, _RefusedError):
            raise DeviceError(str(error), where=self._address)
        if error is not None:
            return Outcome(error=f"{type(error).__name__}: {error}", code=1)
        outcome, files = future.result(timeout=self._connect_s)
        for name, data in files.items():
            write_atomic(work.root / work.name / work.target.name / name, data)
        return cast(Outcome, outcome)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """A client of the scheduler; what dask has to say of a lost connection is said by us."""
        import dask
        from distributed import Client

        _hush()
        settings = {
            "distributed.comm.timeouts.connect": f"{self._connect_s}s",
            "distributed.client.heartbeat": "1s",
        }
        with dask.config.set(settings):
            try:
                client = Client(self._address, timeout=self._connect_s, set_as_default=False)
            except (OSError, TimeoutError, RuntimeError, ValueError, TypeError) as error:
                hint = "start `dask scheduler` there, or correct the address"
                raise DeviceError(
                    "the scheduler cannot be reached", where=self._address, hint=hint
                ) from error
            try:
                yield client
            finally:
                with contextlib.suppress(Exception):  # it may be gone, in any way
                    client.close(timeout=2.0)

    def _lost(self, what: str) -> DeviceError:
        return DeviceError(f"the scheduler {what}", where=self._address, hint=AGAIN)


def _apart(count: int, threads: int) -> list[int]:
    """The order in which work is given out: what is at work at once shares little, so that none waits.

    Args:
        count: pieces of work; neighbours share the most.
        threads: of the workers that are there now; more may come.
    """
    turns = itertools.zip_longest(*neighbours(count, max(2, threads)))
    return [number for turn in turns for number in turn if number is not None]


class _Watch:
    """Whether anybody is still at work.

    Args:
        client: of the scheduler.
        alone_s: for which there may be no worker.
    """

    def __init__(self, client: Any, alone_s: float) -> None:
        self._client, self._alone_s, self._since = client, alone_s, time.monotonic()

    def trouble(self) -> str:
        """What is wrong; empty where all is well."""
        if self._client.status != "running":
            return "was lost"
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except Exception:  # the connection ends just now: the next look says so
            return ""
        if workers:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > self._alone_s:
            return f"had no workers for {self._alone_s:.0f} s; start `dask worker` with its address"
        return ""


class _RefusedError(Exception):
    """A worker that cannot give the results that are wanted."""


def _facts() -> dict[str, str]:
    """What results hang on beside the recipe: kind of processor and versions."""
    machine = this_machine()
    return {"arch": machine.arch, "python": machine.python, **dict(machine.versions)}


def _hush() -> None:
    """Dask's loggers speak of connections that end; the one line of an error is ours."""
    import logging

    import distributed  # noqa: F401  # gives its loggers their levels, once

    for name in ("distributed", "distributed.client", "distributed.core", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


# -- on a worker ---------------------------------------------------------------------------------------------


def perform_there(asked: bytes) -> tuple[Outcome, dict[str, bytes]]:
    """What a task does: hands its work to a process of ours, and tells what it says.

    Args:
        asked: a pickled `Request`.

    Returns:
        How it went; and the files of the run's folder, where that is this machine's own.

    Raises:
        _RefusedError: this worker is none for this work.
    """
    from distributed import get_worker

    worker, request = get_worker(), pickle.loads(asked)
    _check(request, worker.address)
    work: Work = request.work
    if request.seen is None:
        work = replace(work, root=Path(worker.local_directory) / "paredown-runs")

    def hear(event: Event) -> None:
        worker.log_event(request.topic, {"number": request.number, "event": asdict(event)})

    outcome = _asked(worker, work, request.threads, hear)
    if request.seen is not None or outcome.error:
        return outcome, {}
    folder = work.root / work.name / work.target.name
    return outcome, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _check(request: Request, address: str) -> None:
    ours = _facts()
    for name, value in request.machine.items():
        if ours.get(name) != value:
            raise _RefusedError(f"worker {address} has {name} {ours.get(name)} instead of {value}")
    if request.seen is not None and not request.seen.exists():
        raise _RefusedError(
            f"worker {address} does not see the folder {request.seen.parent}; share it, or give --store URL"
        )


def _asked(worker: Any, work: Work, threads: int, hear: Any) -> Outcome:
    """Has a process do it, one that is idle or a new one; who dies is tried again."""
    idle: list[subprocess.Popen[bytes]] = worker.__dict__.setdefault(PROCESSES, [])
    task, ends = worker.get_current_task(), list[str]()
    while len(ends) < TRIES and _wanted(worker, task):
        try:
            process = idle.pop()
        except IndexError:
            process = start_worker({THREADS: str(threads)})
        with _killed_when_unwanted(worker, task, process):
            outcome = ask(process, work, hear)
        if outcome is not None:
            idle.append(process)
            return outcome
        ends.append(ended(process.wait()))
    return died(ends)


@contextlib.contextmanager
def _killed_when_unwanted(worker: Any, task: object, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends a process when nobody waits for its task any more: dask itself lets threads run on."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if not _wanted(worker, task):
                process.kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _wanted(worker: Any, task: object) -> bool:
    """Whether the scheduler still asks for a task."""
    found = worker.state.tasks.get(task)
    return found is not None and found.state == "executing"
