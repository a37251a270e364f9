"""A recipe's network that is a model file: scored, keyed by its bytes, with and without labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from onnx import helper
from onnx_models import floats, model_of, saved, small_net

from paredown.apps.own.model_file import ModelFile
from paredown.pipeline.recipe.file import check_files, load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

OUTPUTS = """
app = "apps.outputs"
network = "model.onnx"

[data]
format = "folder"
calibration = "photos"
test = "photos"

[bench]
runs = 2
"""
CLASSES = """
app = "apps.classifier"
network = "softmax.onnx"

[data]
format = "imagefolder"
names = "names.txt"
calibration = "classes"
test = "classes"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    small_net(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "e"):
        for folder in ("photos", f"classes/{name}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "outputs.toml").write_text(OUTPUTS)
    (tmp_path / "classes.toml").write_text(CLASSES)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    saved(tmp_path, model_of(nodes, (1, 3, 4, 4), {"w": floats(5, 3, 4, 4)}), "softmax.onnx")
    return tmp_path


def test_a_task_takes_size_and_weights_from_the_file(project):
    task = load_task(load_recipe(project / "outputs.toml"))
    assert task.preprocess.input_shape == (1, 3, 8, 8)
    network = task.network()
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert network is not task.network()
    score = task.score(lambda x: (network(torch.from_numpy(x)).detach().numpy(),), task.data("test"))
    assert score["r2"] == 1


def test_the_recipe_may_choose_another_size(project):
    task = load_task(load_recipe(project / "outputs.toml", ["preprocess.width=16", "preprocess.height=12"]))
    assert task.preprocess.input_shape == (1, 3, 12, 16)
    task.network()
    assert any("imported for 1x3x12x16" in note for note in task.notes)


def test_the_bytes_of_the_file_are_what_the_network_is(project):
    recipe = load_recipe(project / "outputs.toml")
    before = load_task(recipe)
    moved = project / "moved"
    moved.mkdir()
    shutil.copy(project / "model.onnx", moved / "model.onnx")
    same = load_task(load_recipe(project / "outputs.toml", [f"network='{moved}/model.onnx'"]))
    identity, digest = before.network_id, before.weights_hash()
    assert same.network_id == identity and same.weights_hash() == digest
    small_net(project, tensors={"conv.bias": floats(4, seed=1)})
    after = load_task(recipe)
    assert after.weights_hash() != digest
    assert after.network_id["file"] != identity["file"]


def test_a_classifier_learns_and_scores_without_its_softmax(project):
    task = load_task(load_recipe(project / "classes.toml"))
    network = task.network()
    x = torch.from_numpy(task.preprocess(task.data("test")[0].image)[None])
    whole = ModelFile(project / "softmax.onnx").network()
    assert torch.allclose(network(x).softmax(1), whole(x), atol=1e-6)
    assert any("softmax" in note for note in task.notes)


def test_the_names_must_be_as_many_as_the_outputs(project):
    (project / "names.txt").write_text("a\nb\nc\n")
    shutil.rmtree(project / "classes" / "d")
    shutil.rmtree(project / "classes" / "e")
    with pytest.raises(InputError, match=r"returns \(1, 5\) for one image, not logits of \(1, 3\)"):
        load_task(load_recipe(project / "classes.toml")).network()


def test_a_model_that_takes_no_images_says_so(project):
    saved(project, model_of([helper.make_node("Relu", ["x"], ["y"])], (1, 20)))
    with pytest.raises(InputError, match='takes .1, 20., which is no image; use data.format = "arrays"'):
        load_task(load_recipe(project / "outputs.toml"))


def test_arrays_give_their_own_shape(project):
    saved(project, model_of([helper.make_node("Relu", ["x"], ["y"])], ("n", "size")))
    np.save(project / "photos" / "one.npy", floats(20))
    for picture in (project / "photos").glob("*.png"):
        picture.unlink()
    task = load_task(load_recipe(project / "outputs.toml", ["data.format=arrays"]))
    assert task.network()(torch.ones(1, 20)).shape == (1, 20)


def test_a_missing_model_is_found_before_any_work(project):
    recipe = load_recipe(project / "outputs.toml", ["network=gone.onnx"])
    with pytest.raises(InputError, match=r"no such file or folder \(`network` of the recipe\)"):
        check_files(recipe)


@pytest.mark.slow
def test_a_whole_run_is_exact_on_both_runtimes(project, tmp_path):
    recipe = load_recipe(project / "outputs.toml")
    result = Run("model", recipe, load_card("host"), tmp_path / "runs").execute()
    parity = [f.value for f in result.figures if f.metric == "parity_lsb"]
    assert result.bundle.exists() and parity and set(parity) == {0}


# -- detectors -----------------------------------------------------------------------------------------------

BOXES = """
app = "apps.detector"
network = "boxes.onnx"
decoding = { kind = "v8", strides = [8], bins = 1 }

[data]
format = "folder"
names = "two.txt"
calibration = "photos"
test = "photos"
"""


@pytest.fixture
def boxes(project: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "body", strides=[8, 8]),
        helper.make_node("Conv", ["a", "b"], ["box"], "box"),
        helper.make_node("Conv", ["a", "c"], ["cls"], "cls"),
    ]
    tensors = {"w": floats(6, 3, 8, 8), "b": floats(4, 6, 1, 1), "c": floats(2, 6, 1, 1)}
    saved(project, model_of(nodes, (1, 3, 32, 32), tensors, outputs=("box", "cls")), "boxes.onnx")
    (project / "two.txt").write_text("cat\ndog\n")
    (project / "boxes.toml").write_text(BOXES)
    return project / "boxes.toml"


def test_a_detector_is_decoded_as_the_recipe_says(boxes):
    task = load_task(load_recipe(boxes))
    assert task.preprocess.input_shape == (1, 3, 32, 32)
    assert task.origin.heads.kind == "v8" and len(task.output_names) == 2
    outputs = task.network()(torch.zeros(1, 3, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [(1, 4, 4, 4), (1, 2, 4, 4)]
    assert task.network_id["file"] == task.weights_hash()


def test_a_detector_needs_its_decoding(boxes):
    boxes.write_text("\n".join(line for line in BOXES.splitlines() if not line.startswith("decoding")))
    with pytest.raises(InputError, match="does not say how its outputs become boxes; set decoding"):
        load_task(load_recipe(boxes))


def test_a_decoding_of_another_network_is_refused(boxes):
    with pytest.raises(InputError, match="only a model file needs it; give the network an attribute"):
        load_task(load_recipe(boxes, ["network=yolov8-nano-like"]))


def test_a_decoding_that_does_not_fit_is_one_line(boxes):
    with pytest.raises(InputError, match=r"v8 heads of 2 classes expect \(1, 64, 4, 4\)"):
        load_task(load_recipe(boxes, ["decoding={kind='v8', strides=[8]}"]))
