"""Sweeps on a cluster of dask: outcomes come back whoever is killed, and what is missing is one line."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import Cluster, kill
from distributed import Client
from shared_stores import s3_server
from test_sweep import LIGHT, InThisProcess, artefacts
from test_workers import works
from tiny_project import call, make_project

from paredown.pipeline.run.search.cluster import (
    AGAIN,
    DaskWorkers,
    Request,
    _apart,
    _check,
    _facts,
    _RefusedError,
)  # fmt: skip
from paredown.pipeline.run.search.grid import make_points, read_axes
from paredown.pipeline.run.search.sweep import sweep
from paredown.pipeline.run.search.workers import Outcome
from paredown.pipeline.store.event import Event
from paredown.targets.errors import DeviceError, UsageError

#: Stands for our process beside a worker: tells an event, leaves its mark, does what the work's name says.
ANSWERS = """
import json, os, pathlib, pickle, signal, sys, time
class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        return pathlib.PosixPath if "Path" in name else type(name, (), {})
parent = os.getppid()
while True:
    work = Plain(sys.stdin.buffer).load()
    name, _, what = work.name.partition("-")
    print(json.dumps(dict(stage="s", state="done", seconds=1.0, detail=work.name)), flush=True)
    (work.root / f"{name}.pid").write_text(f"{os.getpid()}\\n")
    mark = work.root / name
    mark.write_text((mark.read_text() if mark.exists() else "") + f"{os.getppid()}\\n")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while what == "waits" and not (work.root / "go").exists():
        if os.getppid() != parent:  # as our own process ends with who asked it
            sys.exit()
        time.sleep(0.05)
    print(json.dumps(dict(built=int(os.environ["PAREDOWN_THREADS"]), reused=os.getppid())), flush=True)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", ANSWERS) as made:
        yield made


def until(path: Path) -> str:
    """Waits for a file that has a whole line; gives the first."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and "\n" in (text := path.read_text()):
            return text.splitlines()[0]
        time.sleep(0.02)
    raise AssertionError(f"{path} is not written")


def test_outcomes_and_events_come_back_and_a_killed_worker_s_work_is_done_by_another(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("PAREDOWN_THREADS", "7")
    first, second = cluster.worker(), cluster.worker()
    by_pid = {first.pid: first, second.pid: second}
    heard: list[tuple[int, Event]] = []
    asked = works(tmp_path, "a", "b-dies", "c-waits", "d")

    def harm() -> None:
        kill(by_pid[int(until(tmp_path / "c"))])
        (tmp_path / "go").touch()

    threading.Thread(target=harm, daemon=True).start()
    found = dict(DaskWorkers(cluster.address).outcomes(asked, lambda *told: heard.append(told)))
    assert {found[number].built for number in (0, 2, 3)} == {7}, "torch's threads are those of who asked"
    ends = "its worker was killed (SIGKILL) and again was killed (SIGKILL)"
    assert found[1] == Outcome(error=ends, code=1)
    made = (tmp_path / "c").read_text().split()
    assert len(set(made)) == 2 and found[2].reused == int(made[-1])
    assert {(number, event.detail) for number, event in heard} == set(enumerate(w.name for w in asked))
    assert not list(tmp_path.glob(".paredown-*"))


def test_what_is_at_work_at_once_are_no_neighbours(cluster, tmp_path):
    workers = cluster.worker(), cluster.worker()
    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(len(workers), timeout=60)
    heard: list[int] = []
    asked = works(tmp_path, "a-waits", "b", "c-waits", "d")

    def go() -> None:
        until(tmp_path / "a"), until(tmp_path / "c")
        (tmp_path / "go").touch()

    threading.Thread(target=go, daemon=True).start()
    found = dict(DaskWorkers(cluster.address).outcomes(asked, lambda number, event: heard.append(number)))
    assert not any(outcome.error for outcome in found.values())
    assert sorted(heard[:2]) == [0, 2] and sorted(heard[2:]) == [1, 3]
    assert found[0].reused != found[2].reused, "each worker has its own part"


def test_work_is_given_out_so_that_each_worker_has_a_part():
    assert _apart(7, 2) == [0, 3, 1, 4, 2, 5, 6]
    assert _apart(7, 0) == _apart(7, 2), "workers may come later"
    assert _apart(5, 3) == [0, 1, 3, 2, 4]
    assert _apart(2, 8) == [0, 1]
    assert _apart(0, 1) == []


def test_a_scheduler_that_is_lost_is_one_line_and_the_work_ends(cluster, tmp_path):
    cluster.worker()
    outcomes = DaskWorkers(cluster.address, connect_s=1.0).outcomes(works(tmp_path, "a", "b-waits"), never)
    assert next(outcomes)[0] == 0
    until(tmp_path / "b")
    kill(cluster.scheduler)
    with pytest.raises(DeviceError) as raised:
        next(outcomes)
    assert str(raised.value) in (f"{cluster.address}: the scheduler {words}; {AGAIN}"
                                 for words in ("was lost", "lost the sweep"))  # fmt: skip


def test_what_nobody_waits_for_any_more_is_ended_and_the_worker_is_free_again(cluster, tmp_path):
    worker = cluster.worker()
    outcomes = DaskWorkers(cluster.address).outcomes(works(tmp_path, "a", "b-waits"), never)
    next(outcomes)
    pid = until(tmp_path / "b.pid")
    outcomes.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() and worker.poll() is None
    assert [made.built > 0 for _, made in DaskWorkers(cluster.address).outcomes(works(tmp_path, "c"), never)]


def test_a_cluster_without_workers_is_one_line(cluster, tmp_path):
    nobody = DaskWorkers(cluster.address, alone_s=1.0)
    with pytest.raises(DeviceError, match="had no workers for 1 s; start `dask worker` with its address"):
        list(nobody.outcomes(works(tmp_path, "a"), never))


def never(number: int, event: Event) -> None:
    """Hears of events."""


def test_a_scheduler_that_cannot_be_reached_is_one_line(tmp_path):
    away = DaskWorkers("tcp://127.0.0.1:9", connect_s=1.0)
    with pytest.raises(DeviceError, match=r"tcp://127.0.0.1:9: the scheduler cannot be reached; start `dask"):
        list(away.outcomes(works(tmp_path, "a"), never))
    for address in ("127.0.0.1:8786", "http://host", ""):
        with pytest.raises(UsageError, match=r"--scheduler: `.*` is no scheduler; write tcp://host:8786"):
            DaskWorkers(address)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = r"--scheduler needs distributed, .* pip install 'paredown\[dask\]'"
    with pytest.raises(DeviceError, match=line):
        DaskWorkers("tcp://host:8786")


def test_the_command_refuses_what_contradicts_itself(tiny, tmp_path):
    words = ["sweep", tiny.recipe, "--runs", tmp_path / "runs", "--scheduler", "tcp://127.0.0.1:9"]
    done = call(*words, "--jobs", 2)
    assert done.code == 2 and "--jobs: is for workers on this machine" in done.line()
    done = call(*words, "--store", "gopher://x/y", "--quiet")
    assert done.code == 2 and "a protocol that nothing here knows" in done.line()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"machine": {"torch": "1.0"}}, "worker tcp://w:1 has torch .* instead of 1.0"),
        ({"seen": Path("/nowhere/at/all")}, "worker tcp://w:1 does not see the folder /nowhere/at; share it"),
    ],
)
def test_a_worker_that_cannot_give_the_same_results_is_refused(tmp_path, changed: dict[str, Any], line):
    request = Request(0, works(tmp_path, "a")[0], "topic", 1, _facts(), None)
    _check(request, "tcp://w:1")
    with pytest.raises(_RefusedError, match=line):
        _check(replace(request, **changed), "tcp://w:1")


def test_a_worker_is_told_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (work,) = works(Path("runs"), "a")
    workers = DaskWorkers("tcp://host:8786")
    for given, told in (("store", f"{tmp_path}/store"), ("s3://bucket/x", "s3://bucket/x")):
        request = workers._request(0, replace(work, shared=given), "topic", contextlib.ExitStack())
        assert (request.work.root, request.work.shared) == (tmp_path / "runs", told) and request.seen is None
    with contextlib.ExitStack() as stack:
        seen = workers._request(0, work, "topic", stack).seen
        assert seen == tmp_path / "runs" / ".topic" and seen.exists()
    assert not seen.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_cluster_makes_what_one_machine_makes_bit_for_bit_though_a_worker_is_killed(tmp_path, place):
    recipe, runs = make_project(tmp_path), tmp_path / "many"
    points = make_points([str(recipe)], ["host"], read_axes(["squantize.weight_bits=2,4"]), LIGHT)
    alone = sweep(points, tmp_path / "alone", tmp_path / "table", executor=InThisProcess()).rows
    stores = "cluster/**/.store" if place == "s3" else "many/.store"
    with s3_server() as bucket, Cluster(tmp_path / "cluster") as cluster:
        victim, _ = cluster.worker(), cluster.worker()

        def harm() -> None:
            while len(list(tmp_path.glob(f"{stores}/*/artefact.json"))) < 3:
                time.sleep(0.05)
            kill(victim)

        threading.Thread(target=harm, daemon=True).start()
        words = [word for setting in LIGHT for word in ("--set", setting)]
        words += ["--store", f"{bucket}/sweep"] if place == "s3" else []
        done = call("sweep", recipe, "squantize.weight_bits=2,4", *words, "--runs", runs, "--json",
                    "--scheduler", cluster.address)  # fmt: skip
        assert done.code == 0, done.err
        assert victim.poll() is not None, "it was killed meanwhile"
        found = {k: f for each in tmp_path.glob(stores) for k, f in artefacts(each.parent).items()}
    assert found == artefacts(tmp_path / "alone")
    for one, other in zip(alone, json.loads(done.out)["rows"], strict=True):
        same = ("point", "score", "bundle_kib", "program")
        assert [getattr(one, name) for name in same] == [other[name] for name in same]
        for name in ("model.tflite", "recipe.toml"):
            assert Path(one.folder, name).read_bytes() == Path(other["folder"], name).read_bytes()
