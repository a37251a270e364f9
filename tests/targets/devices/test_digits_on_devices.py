"""The whole way, for real: digits made for a Raspberry Pi 5, and proved on an emulated one and over adb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adb_device import Adbd, loopback_library
from needs import needs
from ports import free_port
from tiny_project import call

pytestmark = pytest.mark.slow

IMAGES = 8
TARGET, BOARD = "raspberry-pi-5", "emulated:raspberry-pi-5"


@pytest.fixture(scope="module")
def packages() -> None:
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")
    needs("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def proved(packages: None, runs: Path) -> dict[str, Any]:
    return run_on_board(runs)


@pytest.fixture
def adb_board(tmp_path: Path) -> Iterator[str]:
    """This machine's own adbd, whose python3 is the one that runs the tests."""
    adb = needs("adb", "adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        board = Adbd(loopback_library(tmp_path), tmp_path)
        subprocess.run([adb, "connect", board.serial], check=True, capture_output=True)
        yield f"adb://{board.serial}"
        subprocess.run([adb, "kill-server"], check=True)
        board.kill()


def run_on_board(runs: Path) -> dict[str, Any]:
    asked = ("--target", TARGET, "--device", BOARD, "--limit", IMAGES, "--runs", runs, "--json")
    done = call("run", "digits", *asked)
    assert done.code == 0, done.err
    return json.loads(done.out)


def figures(document: dict[str, Any], where: str) -> dict[tuple[str, str], float]:
    found = [figure for figure in document["figures"] if figure["where"]["name"] == where]
    return {(figure["variant"], figure["metric"]): figure["value"] for figure in found}


def test_the_board_computes_the_very_codes(proved: dict[str, Any]) -> None:
    checks = {check["name"]: check for check in proved["checks"]}
    assert all(check["passed"] is not False for check in checks.values())
    there = figures(proved, BOARD)
    for runtime in ("executorch", "litert"):
        assert checks[f"{runtime} vectors"]["detail"].startswith("0 of ")
        assert there[runtime, "parity_lsb"] == 0 and there[runtime, "map50"] > 0.9
    assert there["executorch", "map50"] == there["litert", "map50"]


def test_nothing_emulated_is_a_latency(proved: dict[str, Any]) -> None:
    emulated = [figure for figure in proved["figures"] if figure["where"]["name"] == BOARD]
    assert {figure["tag"] for figure in emulated} == {"simulated"}
    assert not any(f["metric"].startswith(("latency", "memory")) for f in proved["figures"])
    assert any("its milliseconds mean nothing" in note for note in proved["notes"])


def test_what_ships_executes_no_more_than_what_it_was_made_from(proved: dict[str, Any]) -> None:
    """That counts repeat is in test_emulated_board.py."""
    found = figures(proved, BOARD)
    for runtime in ("executorch", "litert"):
        assert 1e6 < found[runtime, "instructions"] <= found[f"{runtime}-fp32", "instructions"]


def test_the_same_bundle_over_adb(proved: dict[str, Any], runs: Path, adb_board: str) -> None:
    """A device of this machine's architecture; the transport is Android's."""
    bundle = runs / "digits" / TARGET / "bundle.paredown"
    asked = ("--device", adb_board, "--limit", IMAGES, "--times", 3, "--json")
    done = call("validate", bundle, *asked)
    assert done.code == 0, done.out + done.err
    there = {(f["variant"], f["metric"]): f for f in json.loads(done.out)["figures"]}
    assert there["litert", "parity_lsb"]["value"] == 0
    assert there["litert", "map50"]["value"] == figures(proved, BOARD)["litert", "map50"]
    assert there["litert", "latency_p50"]["tag"] == "measured"


@pytest.mark.sample
def test_digits_on_microcontrollers(runs: Path) -> None:
    done = call("run", "digits", "--target", "cortex-m4", "--smoke", "--runs", runs, "--json")
    assert done.code == 0, done.err
    found = {f["metric"]: f for f in json.loads(done.out)["figures"] if f["stage"] == "micro"}
    assert 150_000 < found["arena_bytes"]["value"] < 640 * 1024 and found["arena_bytes"]["tag"] == "simulated"
    asked = ("--target", "cortex-m55-ethos-u55-128", "--smoke", "--runs", runs, "--json")
    done = call("run", "digits", *asked)
    assert done.code == 0, done.err
    found = {f["metric"]: f for f in json.loads(done.out)["figures"] if f["stage"] == "micro"}
    assert found["undelegated_ops"]["value"] == 0 and found["cycles"]["tag"] == "predicted"
