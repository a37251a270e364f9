"""SQuantizer through the pipeline: recipe in, sparse low-bit codes out, the very same in every artefact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_project import Tiny, call, copy_project

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.bundle.packed.packing import find_weights
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card

DIGITS = Path(__file__).parents[4] / "apps" / "detector" / "recipes" / "digits.toml"
FAST = ("--set", "bench.runs=2", "--set", "squantize.batch=2", "--set", "squantize.device=cpu")
ASKED = (
    "--set", "squantize.weight_bits=4", "--set", "squantize.sparsity=0.75", "--set", "squantize.epochs=2",
)  # fmt: skip


def figures(run: Path) -> dict[tuple[str, str], float]:
    return {(f["variant"], f["metric"]): f["value"] for f in json.loads((run / "figures.json").read_text())}


@pytest.fixture(scope="session")
def squantized(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny project at 4 bits and 75 % zeros."""
    runs = tmp_path_factory.mktemp("squantized")
    done = call("run", tiny.recipe, "--runs", runs, *FAST, *ASKED)
    assert done.code == 0, done.err
    return runs / "tiny" / "host"


def test_the_run_reports_what_it_reached(squantized: Path) -> None:
    found = figures(squantized)
    assert found["squantized", "sparsity"] == pytest.approx(0.75, abs=0.01)
    assert 0 < found["squantized", "entropy_bits"] < 2.2
    assert found["executorch", "parity_lsb"] == found["litert", "parity_lsb"] == 0
    assert found["integer", "map50"] == found["executorch", "map50"] == found["litert", "map50"]
    for name in ("executorch", "litert"):
        state, wire = found["fp32", "state_bytes"], found[name, "wire_bytes"]
        assert found[name, "compression"] == pytest.approx(state / wire)
    words = " ".join((squantized / "report.md").read_text().split())
    assert re.search(r"best after \d+ of \d+ steps; 2 epochs in \d+ s on cpu", words)
    assert "nothing in time on this target" in words and "## Sparse and low-bit weights" in words
    assert "weights in 2 of" in words or "layers are zero" in words


def test_zero_stays_zero_in_every_artefact(tiny: Tiny, squantized: Path) -> None:
    """Training, folding, integer graph, .pte, .tflite, and the bundle they are shipped in."""
    recipe = load_recipe(
        tiny.recipe, [word for word in (*FAST, *ASKED) if word != "--set"], [tiny.recipe.parent]
    )
    run = Run("tiny", recipe, load_card("host"), squantized.parents[1])
    stages = run.job
    graph, integer = stages.graph(), stages.integer_graph()
    trained = [node for node in graph if node.scale is not None]
    assert trained
    for node in trained:
        codes = (node.weight / node.scale.reshape(-1, 1, 1, 1)).round()
        item = next(n for n in integer if n.weight is not None and n.weight.shape == tuple(codes.shape)
                    and np.array_equal(n.weight, codes.numpy()))  # fmt: skip
        assert int((item.weight == 0).sum()) == int((node.weight == 0).sum()) == int(0.75 * codes.numel())
        assert len(np.unique(item.weight)) <= 17
    weights = [node.weight for node in integer if node.weight is not None]
    bundle = unpack(squantized / "bundle.paredown")
    for name, file in (("executorch", "model.pte"), ("litert", "model.tflite")):
        program = stages.program(stages.lower[name])
        assert bundle.read(file) == program
        # each layer's codes, byte for byte; a dozen weights are not worth taking out
        found = {hole.layer for hole in find_weights(program, weights)}
        assert found >= {index for index, weight in enumerate(weights) if weight.size >= 64}


def test_the_second_run_reuses_everything(tiny: Tiny, squantized: Path) -> None:
    done = call("run", tiny.recipe, "--runs", squantized.parents[1], *FAST, *ASKED)
    assert done.code == 0 and "squantize: reused" in done.err and ": done in" not in done.err


@pytest.mark.slow
def test_low_bit_activations_need_no_relu(tiny: Tiny, tmp_path: Path) -> None:
    """Behind leaky ReLU: the run names what has few levels, and the runtimes have the very codes."""
    asked = ("--set", "squantize.weight_bits=4", "--set", "squantize.activation_bits=3")
    more = ("--set", "squantize.epochs=0.2", "--runs", tmp_path / "runs")
    done = call("run", tiny.recipe, *more, *FAST, *asked)
    assert done.code == 0, done.err
    run = next((tmp_path / "runs").glob("*/*/figures.json")).parent
    words = " ".join((run / "report.md").read_text().split())
    assert re.search(r"squantize: \d+ activations have 8 levels", words)
    figures = json.loads((run / "figures.json").read_text())
    parity = [each["value"] for each in figures if each["metric"] == "parity_lsb"]
    assert parity and set(parity) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("squantize.grid=uniform", "squantize.rounding=gptq")])
def test_mixed_precision_meets_its_budget(tiny: Tiny, tmp_path: Path, more: tuple[str, ...]) -> None:
    settings = ("squantize.weight_bits=4", "squantize.bytes=0.8", "squantize.epochs=0.5", *more)
    asked = [word for setting in settings for word in ("--set", setting)]
    done = call("run", tiny.recipe, "--runs", tmp_path, *FAST, *asked)
    assert done.code == 0, done.err
    history = json.loads(next((tmp_path / ".store").glob("*/history.json")).read_text())
    assert history["allocation"]["achieved"] <= 0.8
    bits = {plan["config"]["bits"] for plan in history["plans"].values()}
    assert bits <= {2, 3, 4}


@pytest.mark.parametrize(
    "setting, words",
    [
        ("squantize.weight_bits=1", "weight_bits"),
        ("squantize.sparsity=1.0", "sparsity"),
        ("squantize.sigma=99", "sigma"),
        ("squantize.activation_bits=9", "activation_bits"),
        ("squantize.grid=log", "grid"),
        ("squantize.rounding=gptq", 'needs grid = "uniform"'),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tiny: Tiny, setting: str, words: str) -> None:
    done = call("run", tiny.recipe, "--set", setting, "--dry-run")
    assert done.code == 4 and words in done.err and done.err.strip().count("\n") == 0


def test_a_learning_rate_that_breaks_it_stops_and_keeps_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    recipe = copy_project(tiny, tmp_path)
    done = call(
        "run", recipe, "--runs", tmp_path / "runs", *FAST, *ASKED, "--set", "squantize.lr=1e30",
        "--set", "squantize.warmup=0", "--set", "squantize.epochs=20",
    )  # fmt: skip
    assert done.code == 2 and "the loss is" in done.err and "lower lr" in done.err


@pytest.mark.parametrize("setting", ["recover.seed=7", "preprocess.colour=bgr", "prune.images=3"])
def test_what_decides_the_training_images_decides_the_stages(tmp_path: Path, setting: str) -> None:
    def keys(*more: str) -> set[str]:
        recipe = load_recipe(DIGITS, ["squantize.weight_bits=4", "prune.weight_sparsity=0.5", *more])
        stages = Run("digits", recipe, load_card("host"), tmp_path).job
        return {stages.pruning.recover.key, stages.squantizing.squantize.key}

    assert keys() == keys() and not keys() & keys(setting)


def test_where_it_is_trained_decides_nothing(tmp_path: Path) -> None:
    def keys(device: str) -> set[str]:
        wanted = [f"recover.device={device}", f"squantize.device={device}"]
        recipe = load_recipe(DIGITS, ["squantize.weight_bits=4", "prune.weight_sparsity=0.5", *wanted])
        stages = Run("digits", recipe, load_card("host"), tmp_path).job
        return {stages.pruning.recover.key, stages.squantizing.squantize.key}

    assert keys("auto") == keys("cpu") == keys("cuda")
