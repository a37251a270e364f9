"""Sweeps of a tiny project: a row per point whatever becomes of it, two workers as one, resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny_project import call, copy_runs, make_project, start

from paredown.pipeline.run.run import Run
from paredown.pipeline.run.search.grid import make_points, read_axes
from paredown.pipeline.run.search.sharing import BusyError
from paredown.pipeline.run.search.sweep import PAGE, TABLE, sweep
from paredown.pipeline.run.search.workers import Hear, Outcome, Work, perform
from paredown.targets.errors import UsageError

LIGHT = ('lower.runtimes=["litert"]', "squantize.epochs=0")


class InThisProcess:
    """An executor that needs no time to start."""

    def outcomes(self, works: Sequence[Work], hear: Hear) -> Iterator[tuple[int, Outcome]]:
        for number, work in enumerate(works):
            yield number, perform(work, lambda event, n=number: hear(n, event))


def test_points_share_stages_and_one_that_fails_is_a_row(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    axes = read_axes(["quantize.weights=minmax,mse"])
    points = make_points([str(tiny.recipe)], ["host", "iphone"], axes, LIGHT[:1])
    lines: list[str] = []
    made = sweep(
        points, runs, tmp_path / "out", tell=lambda e: lines.append(e.line()), executor=InThisProcess()
    )
    rows = {(row.settings["quantize.weights"], row.target): row for row in made.rows}
    assert set(rows) == {(w, t) for w in ("minmax", "mse") for t in ("host", "iphone")}
    for weights in ("minmax", "mse"):
        row = rows[weights, "host"]
        assert row.program == "litert" and row.metric == "map50" and row.unit == "ms" and row.cost
        size = Path(row.folder, "bundle.paredown").stat().st_size
        assert row.bundle_kib == size / 1024 and row.verdict in ("SHIP", "DO NOT SHIP", "NOT PROVEN")
        failed = rows[weights, "iphone"]
        assert failed.verdict == "FAILED" and "has no runtime `litert`" in failed.reason and not failed.best
    assert rows["minmax", "host"].reused > 8 > rows["minmax", "host"].built
    assert made.code == 2 and made.lines()[0].startswith("failed: tiny-quantize.weights=minmax on iphone: ")
    assert json.loads((tmp_path / "out" / TABLE).read_text())["rows"][0]["point"] == made.rows[0].point
    assert "Sweep of 4 points" in (tmp_path / "out" / PAGE).read_text()
    assert any("on host (" in line for line in lines)


def test_a_target_that_is_not_emulated_is_refused_before_anything_runs(tiny, tmp_path):
    points = make_points([str(tiny.recipe)], ["host"])
    with pytest.raises(UsageError, match="target host is not emulated"):
        sweep(points, tmp_path / "runs", tmp_path / "out", emulated=True, executor=InThisProcess())
    assert not (tmp_path / "runs").exists()


class PutsOff:
    """An executor that has no other work in the meantime."""

    def outcomes(self, works: Sequence[Work], hear: Hear) -> Iterator[tuple[int, Outcome]]:
        for number, work in enumerate(works):
            assert perform(work, lambda event, n=number: hear(n, event)).busy
            yield number, Outcome(error="never made", code=1)


def test_a_point_that_is_put_off_is_one_plain_line(tiny, tmp_path, monkeypatch):
    def busy(self: Run) -> None:
        raise BusyError

    monkeypatch.setattr(Run, "execute", busy)
    (point,) = points = make_points([str(tiny.recipe)], ["host"])
    lines: list[str] = []
    sweep(
        points, tmp_path / "runs", tmp_path / "out", tell=lambda e: lines.append(e.line()), executor=PutsOff()
    )
    assert lines[0] == f"{point.label}: put off (another run's long stage has to end first)"


def test_mistakes_are_one_line(tiny, tmp_path):
    for words, line in (
        (["prune.mac=0.5"], "unknown key `prune.mac`"),
        (["--targets", "host,,"], "has an empty name"),
        (["--grid", "prune.macs"], "is not key=value,value"),
    ):
        done = call("sweep", tiny.recipe, *words, "--runs", tmp_path / "runs")
        assert done.code in (2, 4) and line in done.line()
    assert not (tmp_path / "runs").exists()


def artefacts(runs: Path) -> dict[str, str]:
    """Key -> what it holds, of all artefacts but times, and what a time is part of."""
    found = {path.parent.name: json.loads(path.read_text()) for path in runs.glob(".store/*/artefact.json")}
    return {key: each["files"] for key, each in found.items() if each["meta"]["stage"] != "bench"}


@pytest.mark.slow
def test_two_workers_make_what_one_makes_bit_for_bit_and_a_killed_sweep_goes_on(tmp_path):
    recipe = make_project(tmp_path)
    words = ["sweep", recipe, "squantize.weight_bits=2,4", "squantize.sparsity=0.3,0.7"]
    words += [word for setting in LIGHT for word in ("--set", setting)]
    process = start(*words, "--jobs", 2, "--runs", tmp_path / "two")
    store = tmp_path / "two" / ".store"
    while len(list(store.glob("*/artefact.json"))) < 12 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = {}
    for name, jobs in (("two", 2), ("one", 1)):
        done = call(*words, "--jobs", jobs, "--runs", tmp_path / name, "--json")
        assert done.code == 0, done.err
        found[name] = json.loads(done.out)["rows"]
        assert {row["verdict"] for row in found[name]} <= {"SHIP", "DO NOT SHIP"}
    assert artefacts(tmp_path / "one") == artefacts(tmp_path / "two")
    for one, two in zip(found["one"], found["two"], strict=True):
        assert all(one[key] == two[key] for key in ("point", "score", "bundle_kib"))
    built = [sum(row["built"] for row in found[name]) for name in ("two", "one")]
    assert built[0] < built[1], "what the killed sweep made is not made again"
    assert built[1] == len({path for path in (tmp_path / "one" / ".store").glob("*/artefact.json")})
