"""Equalization and chosen observers through a whole run: reused, resumable, told of, exact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from classifier_project import make_project
from int8_tflite import Int8, run
from tflite_models import RELU, VALID

from paredown.pipeline.graph.operations.activation.softmax import Softmax
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.pipeline.store.ledger import Ledger
from paredown.pipeline.store.stage import plan
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

SETTINGS = ["quantize.observer=auto", "quantize.equalize=true"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("project")
    recipe = load_recipe(make_project(folder), SETTINGS)
    run = Run("colours", recipe, load_card("host"), folder / "runs")
    run.execute()
    return run


def test_it_is_exact_and_says_what_was_chosen(work):
    job = work.job
    cells = {(f.variant, f.metric): f.value for f in job.figures()}
    assert cells["litert", "parity_lsb"] == 0
    notes = " ".join(job.notes())
    assert "observers of" in notes
    assert "held-out calibration images" in notes
    assert "equalized" in notes
    assert "95 % interval" in notes


def test_what_was_chosen_is_kept(work):
    job = work.job
    facts = json.loads((job.path(job.quantizing.calibrate) / "observers.json").read_text())
    assert set(facts["observers"].values()) <= {"minmax", "percentile", "mse"}
    assert sum(facts["counts"].values()) == len(facts["observers"])
    assert facts["after"] <= facts["before"]
    ranges = json.loads((job.path(job.quantizing.calibrate) / "ranges.json").read_text())
    assert ranges["ranges"].keys() == facts["observers"].keys()


def test_a_second_run_reuses_all_and_other_settings_do_not(work, capsys):
    again = Run("colours", work.job.recipe, work.target, work.folder.parents[1])
    assert [s.key for s in again.plan()] == [s.key for s in work.plan()]
    plain = Run("colours", work.job.recipe.model_copy(update={"quantize": work.job.recipe.quantize.model_copy(
        update={"equalize": False})}), work.target, work.folder.parents[1])  # fmt: skip
    assert plain.job.integer.key != work.job.integer.key
    assert plain.job.quantizing.equalize is None


KEPT = """
app = "apps.classifier"
network = "net.tflite"

[data]
format = "imagefolder"
names = "names.txt"
train = "photos"
calibration = "photos"
test = "photos"
"""


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A recipe of an int8 file that ends in a softmax."""
    w = Int8((1, 16, 16, 3))
    x = w.window_of(w.layer(w.input, 8, stride=2, activation=RELU), "AVERAGE", (8, 8), 1, VALID)
    scores = w.full(x, 2)
    made = w.made("SOFTMAX", [scores], (1, 2), "Softmax", scale=1 / 256, zero=-128, beta=1.0)
    (tmp_path / "net.tflite").write_bytes(w.data(made))
    for index in range(6):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(index).integers(0, 256, (20, 24, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "kept.toml").write_text(KEPT)
    return tmp_path


def _work(folder: Path, *settings: str) -> Run:
    return Run("kept", load_recipe(folder / "kept.toml", list(settings)), load_card("host"), folder / "runs")


def test_an_int8_file_keeps_its_own_codes(kept):
    work = _work(kept)
    job = work.job
    assert job.quantizing.calibrate is None
    work.reach([job.integer], Ledger.start(work.folder))
    graph = job.integer_graph()
    assert (
        graph.outputs != () and graph[graph.outputs[0]].kind == "linear"
    )  # as the float network: no softmax
    codes = np.random.default_rng(5).integers(-128, 128, graph.input.shape).astype(np.int8)
    (logits,) = reference.predict(graph, codes)
    end = graph[graph.outputs[0]]
    shares = Softmax().codes(_softmax(end), [end], [logits])
    assert np.array_equal(shares, run((kept / "net.tflite").read_bytes(), codes)[0])
    assert "codes, scales and biases are those of net.tflite" in " ".join(job.quantizing.notes())


def _softmax(end: IntegerNode) -> IntegerNode:
    return replace(end, kind="softmax", out=type(end.out)(1 / 256, -128), low=-128, high=127)


def test_new_codes_are_chosen_where_the_recipe_says_how_and_for_another_network(kept):
    assert _work(kept, "quantize.observer=minmax").job.quantizing.codes is None
    pruned = _work(kept, "prune.macs=0.8").job
    assert pruned.quantizing.codes is None
    keys = [stage.name for stage in plan(pruned.goals()) if stage.name.startswith("integer")]
    assert len(keys) == 2
    assert _work(kept).job.integer.key != _work(kept, "quantize.observer=minmax").job.integer.key


def test_an_operation_without_a_node_of_ours_is_said_before_anything_is_lowered(kept):
    w = Int8((1, 16, 16, 3))
    x = w.made("FLOOR", [w.layer(w.input, 4, stride=2)], (1, 8, 8, 4), "", scale=0)
    (kept / "net.tflite").write_bytes(w.data(w.full(x, 2)))
    work = _work(kept)
    with pytest.raises(InputError, match=r"stays sealed: FLOOR \(.*\): it is not known here; "):
        work.reach([work.job.integer], Ledger.start(work.folder))
