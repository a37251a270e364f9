from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from classifier_project import NAMES, colours, make_project
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score
from tiny_project import call, python

from paredown.apps.classifier.labels import ranks, wilson
from paredown.apps.classifier.task import ClassifierTask
from paredown.calibration.datasets import First
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError, ParedownError, UsageError


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "colour_net", raising=False)  # another test's, from another folder
    return make_project(tmp_path)


def task_of(recipe: Path, *overrides: str) -> ClassifierTask:
    task = load_task(load_recipe(recipe, overrides))
    assert isinstance(task, ClassifierTask)
    return task


def outputs_of(logits) -> list[tuple[np.ndarray]]:
    return [(row[None],) for row in np.asarray(logits, np.float32)]


# -- scores ----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(6, 30), st.integers(1, 50))
def test_ranks_agree_with_scikit_learn(seed, classes, count):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)).astype(np.float32)
    labels = random.integers(0, classes, count)
    found = ranks(logits, labels)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(classes))
        assert (found < k).mean() == pytest.approx(expected)


def test_of_equal_logits_the_lower_class_wins_as_in_argmax():
    random = np.random.default_rng(0)
    logits = random.integers(0, 3, (500, 8)).astype(np.float32)  # int8 programs give many ties
    labels = random.integers(0, 8, 500)
    assert ((ranks(logits, labels) == 0) == (logits.argmax(1) == labels)).all()
    broken = np.full((1, 8), np.nan, np.float32)
    assert ranks(broken, np.array([3]))[0] > 0  # a network that returns nonsense is never right by it


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts):
    right, count = counts
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_score_is_score_outputs_and_takes_a_part(recipe):
    task = task_of(recipe)
    data = task.data("test")
    network = task.network()

    @torch.no_grad()
    def predict(x):
        return (network(torch.from_numpy(x)).numpy(),)

    seen = []
    scores = task.score(predict, data, lambda done, of: seen.append((done, of)))
    assert scores == {"top1": 1.0} and seen == [(i + 1, 12) for i in range(12)]  # three classes: no top 5
    outputs = [predict(task.preprocess(data[i].image)[None]) for i in range(len(data))]
    assert task.score_outputs(outputs, data) == scores
    wrong = [(np.roll(o[0], 1, axis=1),) for o in outputs]
    assert task.score_outputs([*outputs[:3], wrong[3]], data) == {"top1": 0.75}
    assert task.interval([*outputs[:3], wrong[3]], data) == wilson(3, 4)
    assert task.score_outputs(outputs[:2], First(data, 2)) == {"top1": 1.0}
    with pytest.raises(ValueError, match="13 outputs for 12 images"):
        task.score_outputs([*outputs, outputs[0]], data)


def test_the_best_case_is_that_all_others_are_right_and_near_misses_come_first(recipe):
    task = task_of(recipe)
    data = task.data("test")
    true = task._labels(data, len(data))
    ahead = np.array([3, -1, 2, 5, 0.5, 9, 8, 7, 6, 4, -2, 1])
    logits = np.zeros((12, 3))
    logits[np.arange(12), true] = ahead
    outputs = outputs_of(logits)
    assert task.telling_first(outputs, data) == np.argsort(ahead).tolist()
    assert [task.best_case(outputs[:count], data) for count in (1, 2, 11, 12)] == [
        1.0, 11 / 12, 10 / 12, 10 / 12,
    ]  # fmt: skip
    assert task.best_case(outputs, data) == task.score_outputs(outputs, data)["top1"]


def test_top5_counts_the_first_five(tmp_path):
    images, labels = np.zeros((4, 3072), np.uint8), np.array([0, 5, 9, 5], np.uint8)
    (tmp_path / "test_batch.bin").write_bytes(np.concatenate([labels[:, None], images], axis=1).tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    (tmp_path / "r.toml").write_text(
        'app = "apps.classifier"\nnetwork = "resnet20"\nweights = "x.pth"\n'
        '[data]\nformat = "cifar"\ntest = "test_batch.bin"\ncalibration = "test_batch.bin"\n'
    )
    task = task_of(tmp_path / "r.toml")
    falling = np.tile(np.arange(10, 0, -1), (4, 1))
    assert task.score_outputs(outputs_of(falling), task.data("test")) == {"top1": 0.25, "top5": 0.25}
    rising = falling[:, ::-1]
    assert task.score_outputs(outputs_of(rising), task.data("test")) == {"top1": 0.25, "top5": 0.75}


# -- training --------------------------------------------------------------------------------------------


def test_losses(recipe):
    task = task_of(recipe)
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = -student.log_softmax(1)[torch.arange(6), labels].mean()
    torch.testing.assert_close(task.loss(student, labels), expected)
    torch.testing.assert_close(task.loss((student,), labels), expected)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    expected = 16 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(task.distillation(student, teacher), expected)
    assert task.distillation((teacher,), (teacher + 3,)).item() == pytest.approx(0, abs=1e-6)
    optimizer = torch.optim.SGD([student], 0.5)
    before = task.distillation(student, teacher)
    before.backward()
    optimizer.step()
    assert task.distillation(student, teacher) < before and task.features() == ()


def test_outputs_become_the_labels_of_images_without(recipe, tmp_path):
    (tmp_path / "plain").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "plain" / f"{index}.png"), np.full((30, 40, 3), 80 * index, np.uint8))
    (tmp_path / "names").write_text("\n".join(NAMES))
    plain = ("data.format=folder", f"data.names={tmp_path / 'names'}", f"data.train={tmp_path / 'plain'}")
    task = task_of(recipe, *plain)
    data = task.data("train")
    assert task.batches(data, 2, 0)(0)[1] is None
    logits = [[0, 1, 0], [5, 1, 0]]
    labelled = task.pseudo_labelled(outputs_of(logits), data)
    assert len(labelled) == 2 and [labelled[i].classes.tolist() for i in (0, 1)] == [[1], [0]]
    assert all(labelled[i].labelled for i in (0, 1)) and labelled.names == NAMES
    assert sorted(task.batches(labelled, 2, 0)(0)[1].tolist()) == [0, 1]
    other = task.pseudo_labelled(outputs_of(logits[::-1]), data)
    assert len({data.fingerprint(), labelled.fingerprint(), other.fingerprint()}) == 3
    known = task_of(recipe).data("train")  # labels that are there stay
    kept = task.pseudo_labelled(outputs_of([[0, 0, 9]] * 2), known)
    assert [kept[i].classes.tolist() for i in (0, 1)] == [known[i].classes.tolist() for i in (0, 1)]
    with pytest.raises(IndexError):
        kept[2]


# -- recipes ---------------------------------------------------------------------------------------------


def test_preprocessing_follows_the_network(recipe, tmp_path):
    assert task_of(recipe).preprocess.to_dict() == {
        "width": 32, "height": 32, "resize": "stretch", "colour": "rgb", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "layout": "nchw", "dtype": "float32", "fill": 128,
    }  # fmt: skip
    large = task_of(recipe, "network=resnet50").preprocess
    assert (large.width, large.height, large.resize) == (224, 224, "crop")
    small = task_of(
        recipe, "preprocess.width=48", "preprocess.height=40", "preprocess.std=[1,1,1]"
    ).preprocess
    assert (small.width, small.height, small.std) == (48, 40, (1.0, 1.0, 1.0))


def test_the_network_is_identified_by_name_classes_and_source(recipe, tmp_path):
    first = task_of(recipe).network_id
    assert first["classes"] == 3 and len(first["factory"]) == 64
    (tmp_path / "colour_net.py").write_text((tmp_path / "colour_net.py").read_text() + "\n# changed\n")
    assert task_of(recipe).network_id != first
    assert task_of(recipe, "network=resnet20").network_id == {
        "app": "apps.classifier", "network": "resnet20", "classes": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights=digits", "the classifier brings no weights along; name a .safetensors"),
        ("weights=none.pth", "none.pth"),
        ("weights=colours.toml", "unknown kind of weights '.toml'; use .safetensors, .pt, .pth, .th"),
        ("network=resnet-50", "no built-in network 'resnet-50', did you mean 'resnet50'?"),
        ("network=colour_net:none", "cannot make colour_net:none: AttributeError"),
        ("network=colour_net:fail", "cannot make colour_net:fail: RuntimeError: no such luck"),
        ("network=builtins:dict", "made a dict, not a torch.nn.Module"),
        ("network=colour_net:make_pair", "does not say its input's width and height"),
        ("data.format=yolo", "also needs: names"),
        ("data.format=digits", "remove train, test"),
        ("data.names=four.names", "returns (1, 3) for one image, not logits of (1, 4)"),
        ("data.names=two.names", "class 2 is out of range: there are 2 classes"),
        ("data.names=one.names", "one class only"),
        ("data.test=train/data_batch_1.bin", ""),
        ("data.test=one.bin", "all 4 test images are of one class (green)"),
        ("data.limit=1", "all 1 test images are of one class (red)"),
        ("data.test=unknown.bin", "class 3 is out of range"),
        ("data.train=none", "no such file or folder"),
        ("preprocess.colour=grey", "also needs mean and std"),
    ],
)
def test_bad_recipes(recipe, tmp_path, override, message):
    for count, name in ((2, "two"), (4, "four")):
        (tmp_path / f"{name}.names").write_text("\n".join("abcd"[:count]))
    (tmp_path / "one.names").write_text("a\n")
    record = colours(1, 0)
    (tmp_path / "one.bin").write_bytes((b"\x01" + record[1:]) * 4)
    (tmp_path / "unknown.bin").write_bytes(record + b"\x03" + record[1:])

    def everything():
        task = task_of(recipe, override)
        for split in ("train", "calibration", "test"):
            task.data(split)
        task.weights_hash()
        return task.network()

    if not message:
        everything()
        return
    with pytest.raises(ParedownError) as caught:
        everything()
    assert isinstance(caught.value, (InputError, UsageError))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_number_of_classes_are_named(recipe, tmp_path):
    from paredown.apps.classifier.network import build

    torch.save(build("resnet20").state_dict(), tmp_path / "ten.pth")
    with pytest.raises(InputError, match=r"ten\.pth: linear\.\w+ is \(10"):
        task_of(recipe, "network=resnet20", "weights=ten.pth").network()


def test_a_detector_refuses_data_without_boxes(recipe):
    detector = ["app=apps.detector", "network=yolov2-nano"]
    for format in ("cifar", "arrays"):
        with pytest.raises(InputError, match=f'format = "{format}" has no boxes'):
            load_task(load_recipe(recipe, [*detector, f"data.format={format}"]))
    with pytest.raises(InputError, match=r"data\.names: no list of the network's classes"):
        load_task(load_recipe(recipe, [*detector, "data.format=folder"]))


def test_a_reused_run_needs_no_torch(recipe, tmp_path):
    """A task of a built-in network answers all that a finished run asks for without importing torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from paredown.pipeline.recipe.file import load_recipe\n"
        "from paredown.pipeline.recipe.task import load_task\n"
        "t = load_task(load_recipe(sys.argv[1], ['network=resnet20']))\n"
        "print(len(t.data('test')), t.preprocess.width, t.network_id['classes'], len(t.bundle_members()))\n"
    )
    done = python(code, recipe, cwd=tmp_path)
    assert done.stdout.split() == ["12", "32", "3", "2"], done.stderr


def test_errors_are_one_line_with_the_right_code(recipe):
    done = call("run", recipe, "--set", "data.test=nowhere", "--dry-run")
    assert done.code == 4 and "nowhere: no such file or folder" in done.line()
