"""A cluster of dask on this machine: a scheduler and workers, each a process that a test may kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny_project import ROOT

#: Starts a worker of dask whose processes of ours are another program, given as code.
WORKER = """
import sys
from paredown.pipeline.run.search import workers
workers.SERVE = ("-c", sys.argv.pop(1)) if sys.argv[1] else (sys.argv.pop(1), workers.SERVE)[1]
from distributed.cli.dask_worker import main
main()
"""


class Cluster:
    """The processes; use it with `with`.

    Args:
        folder: for logs and for what workers keep.
        serve: code of a program that stands for our own process beside a worker; empty = it is our own.
    """

    def __init__(self, folder: Path, serve: str = "") -> None:
        self._folder, self._serve = folder, serve
        folder.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        scheduler = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        self.scheduler = self._start("scheduler", *scheduler, "--no-dashboard")
        self.address = self._said("scheduler", r"Scheduler at:\s+(tcp://\S+)")

    def worker(self) -> subprocess.Popen[bytes]:
        """Adds a worker of one thread; it is at work a moment later."""
        name = f"worker-{len(self._processes)}"
        return self._start(
            name, "-c", WORKER, self._serve, self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self._folder / name),
        )  # fmt: skip

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _said(self, name: str, pattern: str) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if found := re.search(pattern, (self._folder / f"{name}.log").read_text()):
                return found[1]
            time.sleep(0.05)
        raise AssertionError((self._folder / f"{name}.log").read_text())


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process as a machine that loses its power does."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
