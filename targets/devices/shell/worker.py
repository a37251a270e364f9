"""An event loop in a thread of its own: connections stay alive between calls, and callers need not await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

HEAR_S = 0.2  # a Ctrl-C that came just before we began to wait is heard so much later, and not never


class Worker:
    """Runs coroutines for ordinary functions, of any thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end; where we are interrupted, it is cancelled and may tidy up first."""
        tasks: list[asyncio.Task[T]] = []
        done = threading.Event()

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda _: done.set())

        self._loop.call_soon_threadsafe(start)
        try:
            _wait(done)
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            _wait(done)
            raise
        return tasks[0].result()

    def stop(self, grace_s: float) -> None:
        """Ends the thread; what other threads have called may finish within so many seconds."""
        self.call(_finish(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _wait(done: threading.Event) -> None:
    while not done.wait(HEAR_S):
        continue


async def _finish(grace_s: float) -> None:
    late = asyncio.all_tasks() - {asyncio.current_task()}
    if late:
        _, late = await asyncio.wait(late, timeout=grace_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
