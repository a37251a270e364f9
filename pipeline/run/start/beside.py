"""A second process that builds some stages of a run while this one builds others.

Scores hang on nothing but their programs, and take half of a first run's time. The process makes the same
plan from the same settings, builds what it is told by key, and publishes it in the store. It may be started
before it is known what it will build: it takes seconds to import what it needs. As long as another of these
stages can be built, this process does not wait for it. Whatever goes wrong there is left to this process,
which builds the stage itself and says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence

from paredown.pipeline.run.job import Settings
from paredown.pipeline.run.start.jobs import make_job
from paredown.pipeline.store.stage import Stage, plan, run_stage
from paredown.pipeline.store.store import Shared, Store
from paredown.targets.host.garbage import look_less_often

SERVE = ("-P", "-m", "paredown.pipeline.run.start.beside")


class Beside:
    """The second process, and the thread that feeds it.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self._waiting: dict[str, Stage] = {}
        self._finished: set[str] = set()
        self._open, self._offered = True, False
        self._seconds: dict[str, float | None] = {}  # of those that were built there; None while they are
        self._changed = threading.Condition()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, *SERVE], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        store = settings.store
        url = store.shared.url if store.shared else None
        asked = (settings.name, settings.recipe, settings.target, store.root, url, settings.smoke)
        self._asked = pickle.dumps(asked)
        threading.Thread(target=self._feed, daemon=True).start()

    def offer(self, stages: Sequence[Stage], finished: Collection[str]) -> None:
        """Says what may be built there; once.

        Args:
            stages: in the order of the plan; the last that is ready comes first, since this process goes
                from the first to the last.
            finished: keys of the stages that are there.
        """
        with self._changed:
            self._waiting = {stage.key: stage for stage in stages}
            self._finished |= set(finished)
            self._offered = True
            self._changed.notify_all()

    def take(self, stage: Stage) -> float | None:
        """Waits for a stage if it is built there.

        Returns:
            The seconds that it took; None where it is left to the caller, for good.
        """
        with self._changed:
            self._waiting.pop(stage.key, None)
            self._changed.wait_for(lambda: self._seconds.get(stage.key, 0.0) is not None)
            return self._seconds.get(stage.key)

    def meanwhile(self, stage: Stage) -> Stage | None:
        """What this process can build while a stage is built there, which is then left to it.

        Returns:
            The first that is ready; None where the stage is not at work there, or nothing else can be built.
        """
        with self._changed:
            if self._seconds.get(stage.key, 0.0) is not None:
                return None
            other = next(filter(self._ready, self._waiting.values()), None)
            if other is not None:
                del self._waiting[other.key]
            return other

    def finish(self, stage: Stage) -> None:
        """Hears of a stage whose artefact is there now."""
        with self._changed:
            self._finished.add(stage.key)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._process.kill()
        self._process.wait()

    def _next(self) -> Stage | None:
        """The last stage that can be built now."""
        return next(filter(self._ready, reversed(self._waiting.values())), None)

    def _ready(self, stage: Stage) -> bool:
        return all(source.key in self._finished for source in stage.sources.values())

    def _feed(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        tell, hear = self._process.stdin, self._process.stdout
        with contextlib.suppress(OSError, ValueError):
            tell.write(self._asked)
            tell.flush()
            with self._changed:
                self._changed.wait_for(lambda: self._offered or not self._open)
            while self._open:
                with self._changed:
                    self._changed.wait_for(lambda: not self._open or not self._waiting or self._next())
                    stage = self._next() if self._open else None
                    if stage is None:
                        break
                    del self._waiting[stage.key]
                    self._seconds[stage.key] = None
                tell.write(f"{stage.key}\n".encode())
                tell.flush()
                answer = hear.readline()
                with self._changed:
                    if not answer:  # it failed
                        break
                    self._seconds[stage.key] = float(answer)
                    self._finished.add(stage.key)
                    self._changed.notify_all()
        with self._changed:  # what was not built is left to the caller
            self._waiting.clear()
            self._seconds = {key: value for key, value in self._seconds.items() if value is not None}
            self._changed.notify_all()


def serve() -> None:
    """What the process does: takes a run's settings, then keys; answers each with the seconds it took."""
    look_less_often()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's code prints is no answer
    name, recipe, target, root, url, smoke = pickle.load(sys.stdin.buffer)
    job = make_job(Settings(name, recipe, target, Store(root, _shared(url)), smoke))
    stages = {stage.key: stage for stage in plan(job.goals())}
    job.warm()
    for line in sys.stdin.buffer:
        began = time.perf_counter()
        run_stage(job.store, stages[line.decode().strip()], prepare=job.prepare)
        print(time.perf_counter() - began, file=answers, flush=True)


def _shared(url: str | None) -> Shared | None:
    """Where other machines have their artefacts; the first process says what goes wrong there."""
    from paredown.pipeline.store.shared.shared import open_shared

    return None if url is None else open_shared(url, lambda line: None, strict=False)


if __name__ == "__main__":
    serve()
