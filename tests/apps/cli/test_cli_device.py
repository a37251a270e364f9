"""bench, cost and doctor on this machine, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_project import Tiny, call

from paredown.pipeline.device.latency.latency import read_table


def test_bench_follows_latency_and_knows_where_it_goes(tiny: Tiny, tmp_path: Path) -> None:
    plot, bundle = tmp_path / "plot.png", tmp_path / "tiny.paredown"
    shutil.copy(tiny.bundle, bundle)  # what was measured is written beside it
    done = call("bench", bundle, "--minutes", 0.005, "--plot", plot, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    figures = {(f["variant"], f["metric"]): f["value"] for f in found["figures"]}
    assert figures["litert", "latency_p50"] > 0 and figures["executorch", "memory_peak"] > 10
    assert {burst["variant"] for burst in found["bursts"]} == {"executorch", "litert"}
    assert found["profile_unit"] == "ms"
    assert sum(row["share"] for row in found["profile"]) == pytest.approx(1)
    assert {row["operation"] for row in found["profile"]} >= {"CONV_2D", "LEAKY_RELU"}
    assert plot.read_bytes().startswith(b"\x89PNG")
    done = call("bench", bundle, "--minutes", 0)
    assert done.code == 0 and "CONV_2D" in done.out and "temperature and clock: not told" in done.out
    done = call("bench", bundle, "--device", "simulated:")
    assert done.code == 2 and "nothing of a microcontroller is timed here" in done.line()


def test_cost_makes_a_table_that_pruning_takes(tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    widths = ("--set", "prune.widths=2", "--set", "prune.multiple=2")
    asked = ("--out", table, *widths)
    done = call("cost", tiny.recipe, *asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    facts, times = read_table(table)
    assert facts["card"] == "host" and facts["runtime"] == "litert" and times
    assert found["unit"] == "ms" and found["network"] == pytest.approx(sum(found["layers"].values()))
    again = call("cost", tiny.recipe, *asked)
    assert again.code == 0 and f"--set prune.latency_table={table}" in again.out
    assert read_table(table) == (facts, times)  # nothing is measured twice
    refused = call("cost", tiny.recipe, "--target", "raspberry-pi-5", "--out", tmp_path / "other.json")
    assert refused.code == 2 and "this machine is no raspberry-pi-5" in refused.line()
    assert not (tmp_path / "other.json").exists()


def test_doctor_names_what_is_there_and_the_command_for_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == "adb" else which(name, *rest))
    done = call("doctor", "--json")
    assert done.code == 0, done.err
    findings = {finding["name"]: finding for finding in json.loads(done.out)}
    states = {name: finding["state"] for name, finding in findings.items()}
    assert states["executorch"] == "ok" and states["adb"] == "missing"
    assert set(states.values()) <= {"ok", "missing", "warning"}
    assert {name for name, finding in findings.items() if not finding["mend"]} == {
        name for name, state in states.items() if state == "ok"
    }
    words = call("doctor")
    assert words.code == 0 and all(name in words.out.replace("\n", " ") for name in list(findings)[:3])


@pytest.mark.parametrize("what, operations", [("resnet20", 33), ("yolov2-nano", 31)])
def test_inspect_needs_neither_weights_nor_data(what: str, operations: int) -> None:
    done = call("inspect", what, "--target", "raspberry-pi-5", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["network"] == what and found["tag"] == "predicted" and found["macs"] > 1e7
    for placement in found["runtimes"]:
        assert len(placement["operations"]) == operations and placement["segments"] == 1


def test_inspect_of_a_recipe_and_of_nothing(tiny: Tiny) -> None:
    done = call("inspect", tiny.recipe, "--target", "host")
    assert done.code == 0 and "xnnpack" in done.out
    done = call("inspect", "no-such-thing")
    assert done.code == 2 and "unknown recipe `no-such-thing`" in done.line()
