"""The last part of a run on a device: what is slower there is taken back, and what ships is proved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_project import Tiny, call, copy_project

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.device import timing
from paredown.pipeline.device.executor import Here
from paredown.pipeline.device.rollback import fastest, veto
from paredown.pipeline.run import proof as prove
from paredown.targets.devices.programs import Program, Timing
from paredown.targets.host.host import Machine, this_machine

FAST = ("--set", "bench.runs=10")
ONE = ("--set", "lower.runtimes=['litert']")  # where the other would show nothing more


class Board(Here):
    """This machine, in the part of a board on which programs take as long as they are told to."""

    local = False

    def __init__(self, ms: Mapping[str, float]) -> None:
        super().__init__()
        facts = this_machine().to_dict() | {"name": "ssh://pi@board"}
        self.machine, self.ms = Machine.from_dict(facts), ms

    def time(
        self, programs: Mapping[str, Program], x: Any, runs: int, memory: bool, tick: Any
    ) -> dict[str, Timing]:
        return {name: Timing((self.ms[name],) * runs, memory_mib=7.0) for name in programs}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(ms: Mapping[str, float]) -> None:
        @contextmanager
        def opened(address: str, card: Any, log: Any, *, own: bool) -> Iterator[Board]:
            assert address == "ssh://pi@board" and own
            yield Board(ms)

        monkeypatch.setattr(prove, "open_executor", opened)

    return install


def run(tiny: Tiny, folder: Path, *more: str) -> tuple[dict[str, Any], Any]:
    asked = ("--target", "raspberry-pi-5", "--device", "ssh://pi@board", "--json", *FAST, *more)
    done = call("run", tiny.recipe, "--runs", folder, *asked)
    assert done.code == 0, done.err
    return json.loads(done.out), unpack(folder / "tiny" / "raspberry-pi-5" / "bundle.paredown")


FASTER = {"executorch": 1.0, "executorch-fp32": 2.0, "litert": 1.0, "litert-fp32": 1.04}


def test_what_is_faster_ships_and_is_proved(tiny: Tiny, tmp_path: Path, board: Any) -> None:
    board(FASTER)
    found, bundle = run(tiny, tmp_path)
    assert [model.dtype for model in bundle.manifest.models] == ["int8", "int8"]
    assert all(check["passed"] is not False for check in found["checks"])
    assert any("validated on ssh://pi@board, accuracy from its own outputs" in n for n in found["notes"])
    assert not any("not validated" in note or "rolled back" in note for note in found["notes"])
    figures = {(f["variant"], f["metric"], f["where"]["name"]): f for f in found["figures"]}
    assert figures["litert", "latency_p50", "ssh://pi@board"]["value"] == 1.0
    assert figures["litert-fp32", "latency_p50", "ssh://pi@board"]["value"] == 1.04
    here, there = (figures["litert", "map50", name]["value"] for name in ("host", "ssh://pi@board"))
    assert here == there


def test_int8_that_is_slower_ships_in_float32(tiny: Tiny, tmp_path: Path, board: Any) -> None:
    board(FASTER | {"litert": 1.2})
    found, bundle = run(tiny, tmp_path)
    models = {model.runtime: model for model in bundle.manifest.models}
    assert models["litert"].dtype == "float32" and models["executorch"].dtype == "int8"
    (note,) = [note for note in found["notes"] if "rolled back" in note]
    assert (
        note.startswith("litert: rolled back: the network in float32 is faster")
        and "1.04 against 1.20" in note
    )
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["litert vectors"]["passed"] and "float32, apart by" in checks["litert vectors"]["detail"]
    assert checks["litert score"]["passed"] and "recorded" in checks["litert score"]["detail"]
    figures = {(f["variant"], f["metric"]): f["value"] for f in found["figures"]}
    assert figures["litert", "map50"] == pytest.approx(figures["fp32", "map50"], abs=1e-6)
    assert figures["litert", "latency_p50"] == 1.04 and figures["litert-rejected", "latency_p50"] == 1.2
    # the device's own code runs it, and finds what the float network finds
    folder = tmp_path / "on the board"
    for name, data in bundle.members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(bundle.text)
    import numpy as np

    from paredown.apps.detector.device.detect import Detector

    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    assert Detector(folder)(image, 0.0).scores.max() > 0
    done = call("validate", tmp_path / "tiny" / "raspberry-pi-5" / "bundle.paredown", "--times", 1, "--json")
    assert done.code == 0 and json.loads(done.out)["passed"]


@pytest.mark.slow
def test_pruning_that_is_slower_ships_the_whole_network(tiny: Tiny, tmp_path: Path, board: Any) -> None:
    slower = {"executorch": 3.0, "executorch-original": 2.0, "executorch-fp32": 5.0}
    board(slower | {"litert": 1.0, "litert-original": 2.0, "litert-fp32": 5.0})
    asked = ("--set", "prune.macs=0.7", "--set", "prune.multiple=2", "--set", "recover.epochs=0")
    found, bundle = run(tiny, tmp_path, *asked)
    (note,) = [note for note in found["notes"] if "rolled back" in note]
    assert note.startswith("executorch: rolled back: the network as it came, in int8, is faster")
    assert all(check["passed"] is not False for check in found["checks"])
    figures = {(f["variant"], f["metric"]): f["value"] for f in found["figures"]}
    assert figures["executorch", "file_bytes"] > figures["executorch-rejected", "file_bytes"]
    assert figures["executorch", "parity_lsb"] == 0
    models = {model.runtime: model.vectors for model in bundle.manifest.models}
    assert models == {"executorch": "vectors-executorch", "litert": "vectors"}


def test_counts_are_exact_and_times_are_not() -> None:
    def timings(*costs: float, runs: int = 10) -> dict[str, Timing]:
        names = ("litert", "litert-original", "litert-fp32")
        counted = [{"total": int(1e6 * cost)} for cost in costs]
        return {
            name: Timing((cost,) * runs, instructions=count)
            for name, cost, count in zip(names, costs, counted, strict=True)
        }

    assert veto("litert", timings(1.04, 1.0, 9.0), emulated=False) is None
    found = veto("litert", timings(1.04, 1.0, 9.0), emulated=True)
    assert found is not None and found.variant == "-original" and found.unit == "million instructions"
    found = veto("litert", timings(3.0, 2.0, 1.0), emulated=False)
    assert found is not None and found.variant == "-fp32" and (found.cost, found.instead) == (3.0, 1.0)
    # nine runs are too few for a clock, and float32 is four times the bytes: a tenth of the time is worth it
    assert veto("litert", timings(3.0, 2.0, 1.0, runs=9), emulated=False) is None
    for emulated in (False, True):
        assert veto("litert", timings(1.09, 9.0, 1.0), emulated) is None
        found = veto("litert", timings(1.11, 9.0, 1.0), emulated)
        assert found is not None and found.variant == "-fp32"


def test_the_local_machine_is_a_device_too(tiny: Tiny, tmp_path: Path) -> None:
    recipe = copy_project(tiny, tmp_path)
    asked = ("--device", "local:", "--limit", 1, "--json", *FAST, *ONE, "--set", "budget.accuracy_drop=0.5")
    done = call("run", recipe, "--runs", tmp_path / "runs", *asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    scores = {f["value"] for f in found["figures"] if (f["variant"], f["metric"]) == ("litert", "map50")}
    (note,) = (note for note in found["notes"] if "accuracy from its own outputs for 1 of the" in note)
    assert "; here, on all 2, map50 is: litert " in note
    assert note.rpartition(" ")[2] in {f"{score:.4f}" for score in scores}


def test_this_machines_milliseconds_are_no_boards(tiny: Tiny, tmp_path: Path) -> None:
    asked = ("--target", "raspberry-pi-5", "--device", "local:", "--smoke", "--json", *FAST, *ONE)
    done = call("run", tiny.recipe, "--runs", tmp_path, *asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert not any(f["metric"].startswith(("latency", "memory")) for f in found["figures"])
    assert "nothing was timed: this machine is no raspberry-pi-5" in found["notes"]
    # and a smoke run's figures say so, wherever they are from
    assert {f["tag"] for f in found["figures"] if f["stage"] in {"score", "parity"}} == {"smoke"}


def test_the_fastest_of_several_runtimes_is_named_with_both_ratios():
    times = {"litert": 4.0, "litert-fp32": 6.0, "onnxruntime": 2.0, "onnxruntime-fp32": 3.0}
    (line,) = fastest(times, ["litert", "onnxruntime"])
    assert line == (
        "fastest on this machine: onnxruntime in int8, 2.00 ms, 1.50 times as fast as the best float32 "
        "(onnxruntime, 3.00 ms); 1.50 times as fast as its own float32"
    )
    (line,) = fastest({**times, "litert-fp32": 1.0}, ["litert", "onnxruntime"])
    assert line == (
        "fastest on this machine: litert in float32, 1.00 ms; the best int8 takes 2.00 times as long "
        "(onnxruntime, 2.00 ms)"
    )
    assert fastest(times, ["litert"]) == []


# -- without a device: this machine is the target --------------------------------------------------------


def at_home(
    tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch, ms: Mapping[str, float], *more: str
) -> Any:
    """A run for this machine, whose clock says so many milliseconds, in one run of five 10 % more."""

    def interleaved(runners: Mapping[str, Any], runs: int, tick: Any) -> dict[str, list[float]]:
        return {
            name: [ms.get(name, 9.0) * (1.1 if i % 5 == 4 else 1.0) for i in range(runs)] for name in runners
        }

    monkeypatch.setattr(timing, "interleaved", interleaved)
    done = call("run", tiny.recipe, "--runs", folder, "--json", "--set", "bench.runs=10", *more)
    assert done.code == 0, done.err
    return json.loads(done.out), unpack(folder / "tiny" / "host" / "bundle.paredown")


def test_float32_ships_on_this_machine_where_int8_is_slower(
    tiny: Tiny, tmp_path: Path, monkeypatch: Any
) -> None:
    times = {"executorch": 1.0, "executorch-fp32": 1.02, "litert": 1.5, "litert-fp32": 1.04}
    found, bundle = at_home(tiny, tmp_path, monkeypatch, times)
    models = {model.runtime: model for model in bundle.manifest.models}
    assert models["litert"].dtype == "float32" and models["executorch"].dtype == "int8"
    (note,) = [note for note in found["notes"] if "rolled back" in note]
    assert (
        note.startswith("litert: rolled back: the network in float32 is faster")
        and "1.04 against 1.50" in note
    )
    figures = {(f["variant"], f["metric"]): f["value"] for f in found["figures"]}
    assert figures["litert", "latency_p50"] == pytest.approx(1.04)
    assert figures["litert-rejected", "latency_p50"] == pytest.approx(1.5)
    assert figures["litert", "map50"] == pytest.approx(figures["fp32", "map50"], abs=1e-6)
    assert ("litert", "parity_lsb") not in figures and figures["executorch", "parity_lsb"] == 0
    again, _ = at_home(
        tiny,
        tmp_path,
        monkeypatch,
        {},
    )
    assert again["figures"] == found["figures"] and again["notes"] == found["notes"]  # not timed anew
    done = call("validate", tmp_path / "tiny" / "host" / "bundle.paredown", "--times", 1, "--json")
    assert done.code == 0 and json.loads(done.out)["passed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("litert", "more"),
    [
        (1.14, ()),
        (1.5, ("--set", "lower.allow_float=false")),
        (1.5, ("--set", "budget.bundle_kib=900")),
    ],
    ids=["within the spread", "not allowed", "bytes are limited"],
)
def test_int8_ships_where_it_is_no_slower_for_sure(
    tiny: Tiny, tmp_path: Path, monkeypatch: Any, litert: float, more: tuple[str, ...]
) -> None:
    times = {"litert": litert, "litert-fp32": 1.04}
    found, bundle = at_home(tiny, tmp_path, monkeypatch, times, "--set", 'lower.runtimes=["litert"]', *more)
    assert [model.dtype for model in bundle.manifest.models] == ["int8"]
    assert not any("rolled back" in note for note in found["notes"])
    assert any("int8 is slower than float32 on this machine" in note for note in found["notes"])


@pytest.mark.slow
def test_a_device_keeps_int8_too_where_float32_is_not_allowed(tiny: Tiny, tmp_path: Path, board: Any) -> None:
    board(FASTER | {"litert": 1.2})
    _, bundle = run(tiny, tmp_path, "--set", "lower.allow_float=false")
    assert [model.dtype for model in bundle.manifest.models] == ["int8", "int8"]
