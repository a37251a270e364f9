"""The task of outputs alone: scored by the original network, on arrays and on images."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from task_projects import make_keywords, make_segmentation

from paredown.apps.classifier.task import ClassifierTask
from paredown.apps.outputs.task import OutputsTask
from paredown.calibration.array_input import ArrayInput
from paredown.pipeline.lower.predict.inspect import inspect
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.pipeline.run.image.read import traced_notes
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card
from paredown.targets.errors import ParedownError

OTHERS = """

class Table(Spotter):
    def forward(self, x):
        return {"said": super().forward(x)}


class Short(Spotter):
    def forward(self, x):
        said = super().forward(x)
        return said, said[0]


def make_table():
    return Table()


def make_short():
    return Short()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_keywords(tmp_path_factory.mktemp("words"), steps=40)


@pytest.fixture
def recipe(made, monkeypatch) -> Path:
    monkeypatch.chdir(made.parent)
    for name in ("spotter", "unet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def task_of(recipe: Path, *overrides: str) -> OutputsTask:
    task = load_task(load_recipe(recipe, overrides))
    assert isinstance(task, OutputsTask)
    return task


def predictor(network, noise=0.0):
    @torch.no_grad()
    def predict(x):
        found = network(torch.from_numpy(x))
        found = found if isinstance(found, tuple) else (found,)
        return tuple(part.numpy() + np.float32(noise * i) for i, part in enumerate(found))

    return predict


def test_a_network_is_one_with_itself_and_noise_is_seen(recipe, tmp_path):
    task = task_of(recipe)
    data, network = task.data("test"), task.network()
    assert isinstance(task.preprocess, ArrayInput) and task.preprocess.shape == (16, 40) and task.names == ()
    assert task.score(predictor(network), data) == {"r2": 1.0}
    worse = task.score(predictor(network, 0.2), data)["r2"]
    assert 0.3 < worse < 1
    right = [predictor(network)(data[i].image[None]) for i in range(len(data))]
    wrong = [predictor(network, 0.2)(data[i].image[None]) for i in range(len(data))]
    truth = task.pseudo_labelled(right, data)
    assert task.score_outputs(wrong, truth)["r2"] == pytest.approx(worse, abs=1e-6)
    low, high = task.interval(wrong, truth)
    assert low <= worse <= high
    inputs, labels = task.batches(data, 4, 0)(0)
    assert inputs.shape == (4, 16, 40) and labels is None
    task.preview(predictor(network, 0.2), data, tmp_path / "p.png")
    assert cv2.imread(str(tmp_path / "p.png")).shape[1] > 600
    assert "classes" not in task.network_id and task.bundle_members()["labels.txt"] == b""


def test_distillation_weighs_outputs_by_what_they_vary(recipe):
    task = task_of(recipe)
    torch.manual_seed(0)
    one, two = torch.randn(8, 3), 100 * torch.randn(8, 24, 10)
    assert task.distillation((one, two), (one, two)).item() == 0
    share = task.distillation([one, two + 50], [one, two])
    assert share.item() == pytest.approx((2500 / two.var(correction=0).item()) / 2, rel=1e-5)
    assert task.distillation(one, one + 1).item() == pytest.approx(1 / one.var(correction=0).item(), rel=1e-5)


def test_images_do_too(tmp_path, monkeypatch):
    recipe = make_segmentation(tmp_path, steps=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "unet", raising=False)
    text = recipe.read_text().replace("apps.segmenter", "apps.outputs").replace('"masks"', '"folder"')
    text = text.replace('names = "names.txt"\n', "").replace('labels = "labels"\n', "")
    recipe.write_text(text.replace("unet:make", "unet:make_pair"))
    task = task_of(recipe)
    data, network = task.data("test"), task.network()
    assert task.preprocess.input_shape == (1, 3, 48, 48)
    assert task.score(predictor(network), data) == {"r2": 1.0}
    assert task.batches(data, 2, 0)(0)[0].shape == (2, 3, 48, 48)


def test_a_classifier_takes_arrays(recipe):
    text = recipe.read_text().replace("apps.outputs", "apps.classifier").replace("make_several", "make")
    other = recipe.with_name("classes.toml")
    other.write_text(text.replace('format = "arrays"\n', 'format = "arrays"\nnames = "words.txt"\n'))
    task = load_task(load_recipe(other))
    assert isinstance(task, ClassifierTask)
    data = task.data("test")
    assert task.score(predictor(task.network()), data)["top1"] > 0.6
    inputs, labels = task.batches(task.data("train"), 6, 0)(0)
    assert inputs.shape == (6, 16, 40) and labels is not None and labels.shape == (6,)
    task.preview(predictor(task.network()), data, recipe.with_name("p.png"))
    assert cv2.imread(str(recipe.with_name("p.png"))) is not None
    assert "paredown/calibration/array_input.py" in task.device_files()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.format=cifar", 'format = "cifar" has labels, which this app does not look at'),
        ("data.names=words.txt", "outputs alone have no classes; remove the key"),
        ("recover.method=labels", 'method = "labels" needs labels, and outputs alone have none'),
        ("squantize.method=both", 'squantize.method: method = "both" needs labels'),
        ("prune.criterion=taylor", 'criterion = "taylor" needs a loss'),
        ("preprocess.width=3", "arrays go into the network as they are"),
        ("weights=none.pth", "no such file, and its outputs are what is scored by"),
        ("weights=digits", "the outputs app brings no weights along"),
        ("network=spotter:make_table", "returns dict for one array, not tensors whose first axis"),
        ("network=spotter:make_short", "returns [(1, 3), (3,)] for one array, not tensors"),
        ("data.test=wide", "does not take an input of (1, 15, 40): RuntimeError"),
        ("data.test=doubles", "an array of float64, not float32"),
        ("data.train=nothing", "no such file or folder"),
    ],
)
def test_bad_recipes(recipe, override, message):
    code = (recipe.parent / "spotter.py").read_text()
    if "make_table" not in code:
        (recipe.parent / "spotter.py").write_text(code + OTHERS)
        sys.modules.pop("spotter", None)
    for name, array in (("wide", np.zeros((15, 40), np.float32)), ("doubles", np.zeros((16, 40)))):
        (recipe.parent / name).mkdir(exist_ok=True)
        np.save(recipe.parent / name / "x.npy", array)

    def everything():
        task = task_of(recipe, override)
        task.data("test"), task.data("train")
        return task.network()

    with pytest.raises(ParedownError) as caught:
        everything()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_how_the_weights_were_read_is_kept_and_said_again(recipe, tmp_path):
    state = torch.load(task_of(recipe).recipe.weights)
    path = tmp_path / "wrapped.pt"
    torch.save({"epoch": 3, "net": {f"_orig_mod.{name}": value for name, value in state.items()}}, path)
    resolved = load_recipe(recipe, (f"weights={path}",))
    for _ in range(2):  # the second time nothing is run
        run = Run("words", resolved, load_card("host"), tmp_path / "runs")
        run.reach([run.job.original])
        said = traced_notes(run.job.path(run.job.original))
        assert said == [
            "wrapped.pt: weights read from `net`, `_orig_mod.` taken out of the names; not read: epoch"
        ]
    plain = Run("words", load_recipe(recipe), load_card("host"), tmp_path / "runs")
    plain.reach([plain.job.original])
    assert traced_notes(plain.job.path(plain.job.original)) == []
    assert inspect(resolved, load_card("host")).notes[0] == said[0]
