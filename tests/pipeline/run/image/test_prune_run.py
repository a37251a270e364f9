"""Pruning through the pipeline: recipe in, thinner network out, exact on both runtimes, resumable."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_project import Tiny, call, copy_project, scene, start

from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import load_checkpoint
from paredown.pipeline.compress.coupling.surgery import load_pruned
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.run.image.summary.summary import against_original

FAST = ("--set", "bench.runs=2", "--set", "prune.multiple=2", "--set", "recover.batch=2")


def figures(run: Path) -> dict[tuple[str, str], float]:
    return {(f["variant"], f["metric"]): f["value"] for f in json.loads((run / "figures.json").read_text())}


@pytest.fixture(scope="session")
def pruned(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny project at 60 % of its MACs, half of the weights zero."""
    runs = tmp_path_factory.mktemp("pruned")
    done = call(
        "run", tiny.recipe, "--runs", runs, *FAST,
        "--set", "prune.macs=0.6", "--set", "prune.weight_sparsity=0.5", "--set", "recover.epochs=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    return runs / "tiny" / "host"


def test_a_pruned_run_reports_what_it_reached(pruned: Path) -> None:
    found = figures(pruned)
    share = found["pruned", "macs"] / found["fp32", "macs"]
    assert share <= 0.6
    assert found["pruned", "budget_requested"] == 0.6
    assert found["pruned", "budget_achieved"] == pytest.approx(share)
    assert found["pruned", "sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["executorch", "parity_lsb"] == found["litert", "parity_lsb"] == 0
    assert {("executorch-original", "latency_p50"), ("litert-original", "latency_p50")} <= found.keys()
    assert found["integer", "map50"] == found["executorch", "map50"] == found["litert", "map50"]
    share = found["litert", "latency_p50"] / found["litert-original", "latency_p50"]
    words = " ".join((pruned / "report.md").read_text().split())
    assert f"litert: takes {share:.2f} of the original network's time in int8, measured" in words


def test_a_pruned_network_that_is_slower_is_called_so() -> None:
    times = {"litert": {"latency_p50": 3.0}, "litert-original": {"latency_p50": 2.0}}
    assert against_original(times) == [
        "litert: takes 1.50 of the original network's time in int8, measured (3.00 against 2.00 ms): slower"
    ]


def test_without_labels_it_learns_from_the_original_and_is_judged_by_it(tiny: Tiny, tmp_path: Path) -> None:
    recipe = copy_project(tiny, tmp_path)
    for file in (tmp_path / "labels" / "train").iterdir():
        file.unlink()
    asked = ("--set", "prune.macs=0.6", "--set", "recover.epochs=4", "--set", "lower.runtimes=['litert']")
    done = call("run", recipe, "--runs", tmp_path / "runs", *FAST, *asked)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "tiny" / "host"
    found = figures(run)
    assert found["pruned", "held_out_before_recovery"] <= found["pruned", "held_out_recovered"] < 0
    assert "agreement on held-out training images" in " ".join((run / "report.md").read_text().split())


def test_the_thinner_network_is_the_users_to_keep(tiny: Tiny, pruned: Path) -> None:
    network = YoloV2.from_cfg(tiny.folder / "tiny.cfg")
    load_checkpoint(tiny.folder / "tiny.weights", network)
    whole = trace(network.eval(), (1, 3, 64, 64)).macs
    thinner = load_pruned(network, pruned / "pruned.safetensors")
    graph = trace(thinner, (1, 3, 64, 64))
    assert graph.macs == figures(pruned)["pruned", "macs"] < whole
    state = load_file(pruned / "pruned.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in thinner.state_dict().items())
    inner = [n for n in graph if n.weight is not None][1:-4]
    zeros = sum(int((n.weight == 0).sum()) for n in inner)
    assert zeros / sum(n.weight.numel() for n in inner) == pytest.approx(0.5, abs=0.01)


def test_everything_is_reused_the_second_time(tiny: Tiny, pruned: Path) -> None:
    before = (pruned / "bundle.paredown").read_bytes()
    done = call(
        "run", tiny.recipe, "--runs", pruned.parents[1], *FAST,
        "--set", "prune.macs=0.6", "--set", "prune.weight_sparsity=0.5", "--set", "recover.epochs=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    stages = json.loads((pruned / "stages.json").read_text())
    assert {"sense", "prune", "recover", "trace-pruned"} <= {stage["name"] for stage in stages}
    assert {stage["outcome"] for stage in stages} == {"reused"}
    assert (pruned / "bundle.paredown").read_bytes() == before


def test_sense_writes_table_plot_and_json(tiny: Tiny, tmp_path: Path) -> None:
    done = call("sense", tiny.recipe, "--runs", tmp_path, "--json", *FAST)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    curves = document["sensitivity"]["curves"]
    assert [curve["units"] for curve in curves] == [8, 16]
    for curve in curves:
        assert [point["width"] for point in curve["points"]] == list(range(curve["units"], 0, -2))
        assert all((point["metric"] is None) == bool(point["skipped"]) for point in curve["points"])
    assert Path(document["plot"]).read_bytes().startswith(b"\x89PNG")
    words = call("sense", tiny.recipe, "--runs", tmp_path, *FAST)
    assert "layers.0.conv" in words.out and "sensitivity.png" in words.out


def test_groups_are_printed_with_their_chain(tiny: Tiny) -> None:
    done = call("groups", tiny.recipe)
    assert done.code == 0, done.err
    assert "layers.0.conv: 8 channels\n    layers.0.conv makes them\n    layers.2.conv reads them" in done.out
    assert "head.cls" in done.out and "locked: it is the network's output" in done.out
    names = [group["name"] for group in json.loads(call("groups", tiny.recipe, "--json").out)]
    assert names == ["layers.0.conv", "layers.2.conv", "head.xy", "head.wh", "head.obj", "head.cls"]


def test_a_budget_that_cannot_be_met_says_what_can(tiny: Tiny, tmp_path: Path) -> None:
    done = call("run", tiny.recipe, "--runs", tmp_path, *FAST, "--set", "prune.macs=0.001")
    line = done.err.splitlines()[-1]
    assert done.code == 3, done.err
    assert "macs" in line and "best" in line.lower()


def test_two_budgets_are_refused(tiny: Tiny) -> None:
    done = call("run", tiny.recipe, "--set", "prune.macs=0.5", "--set", "prune.bytes=0.5")
    assert done.code == 4 and "one budget" in done.line()


@pytest.mark.parametrize("value", ("0", "-1", "1.5", "nan"))
def test_a_share_out_of_range_is_refused(tiny: Tiny, value: str) -> None:
    done = call("run", tiny.recipe, "--set", f"prune.macs={value}")
    assert done.code == 4 and "prune.macs" in done.line()


def test_a_latency_budget_for_a_board_needs_its_table(tiny: Tiny, tmp_path: Path) -> None:
    done = call(
        "run", tiny.recipe, "--target", "raspberry-pi-5", "--runs", tmp_path, *FAST,
        "--set", "prune.latency=0.6",
    )  # fmt: skip
    assert done.code == 5
    assert "latency table" in done.err.splitlines()[-1]


def test_images_of_one_class_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = copy_project(tiny, tmp_path)
    for label in (tmp_path / "labels" / "train").glob("*.txt"):
        label.write_text(label.read_text().splitlines()[0] + "\n")
    done = call("sense", recipe, "--runs", tmp_path / "runs", *FAST)
    assert done.code == 4
    assert "only class 'square'" in done.err.splitlines()[-1]


def test_a_network_that_cannot_be_traced_is_named_with_its_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = copy_project(tiny, tmp_path)
    (tmp_path / "odd_nets.py").write_text(
        "from paredown.apps.detector.network import YoloV2\n\n\n"
        "class Odd(YoloV2):\n"
        "    def forward(self, x):\n"
        "        if x.sum() > 0:\n"
        "            x = x + 1\n"
        "        return super().forward(x)\n\n\n"
        "def make():\n"
        f"    return Odd.from_cfg({str(tmp_path / 'tiny.cfg')!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    done = call("groups", recipe, "--set", "network=odd_nets:make")
    line = done.err.splitlines()[-1]  # torch's own warnings may come before it
    assert done.code == 4
    assert line.startswith("paredown: ") and "cannot be traced" in line and "odd_nets.py:6" in line


@pytest.mark.slow
def test_a_killed_recovery_goes_on_to_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    recipe = copy_project(tiny, tmp_path)
    generator = np.random.default_rng(3)
    import cv2

    for index in range(60):
        image, lines = scene(generator)
        cv2.imwrite(str(tmp_path / "images" / "train" / f"more{index}.png"), image)
        (tmp_path / "labels" / "train" / f"more{index}.txt").write_text("".join(lines))
    asked = ("run", recipe, *FAST, "--set", "prune.macs=0.6", "--set", "recover.epochs=60")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(*asked, "--runs", whole).code == 0
    process = start(*asked, "--runs", killed)
    checkpoints = killed / ".store" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*.pt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(checkpoints.glob("*.pt")), "it was killed before its first checkpoint"
    assert not (killed / "tiny" / "host" / "pruned.safetensors").exists()
    assert call(*asked, "--runs", killed).code == 0
    same = [(runs / "tiny" / "host" / "pruned.safetensors").read_bytes() for runs in (whole, killed)]
    assert same[0] == same[1]
    assert not list(checkpoints.glob("*.pt"))
