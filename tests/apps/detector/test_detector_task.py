from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest
from tiny_project import CFG, copy_project

from paredown.apps.detector.device.boxes.decode import detect
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.task import DetectorTask
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError, UsageError


def task_of(recipe, *overrides) -> DetectorTask:
    return DetectorTask(load_recipe(recipe, overrides))


@pytest.fixture
def recipe(tiny, tmp_path):
    return copy_project(tiny, tmp_path / "mine")


def test_it_is_made_without_torch_or_weights(recipe):
    recipe.with_name("tiny.weights").unlink()
    task = load_task(load_recipe(recipe))
    assert task.names == ("square", "disc")
    assert (task.preprocess.width, task.preprocess.height, task.preprocess.colour) == (64, 64, "rgb")
    with pytest.raises(InputError, match="tiny.weights: cannot read"):
        task.weights_hash()


def test_the_network_is_the_files(recipe):
    import torch

    task = task_of(recipe)
    outputs = task.network()(torch.zeros(1, 3, 64, 64))
    assert [tuple(o.shape) for o in outputs] == [
        (1, 4, 16, 16),
        (1, 4, 16, 16),
        (1, 2, 16, 16),
        (1, 4, 16, 16),
    ]
    assert len(outputs) == len(task.output_names)


def test_network_id_changes_with_the_cfg_and_not_with_its_place(recipe, tmp_path):
    first = task_of(recipe).network_id
    assert first == task_of(recipe).network_id
    (tmp_path / "elsewhere.cfg").write_text(CFG)
    assert task_of(recipe, f"network={tmp_path / 'elsewhere.cfg'}").network_id == first
    (tmp_path / "other.cfg").write_text(CFG.replace("3.3,4.4", "3.3,4.5"))
    assert task_of(recipe, f"network={tmp_path / 'other.cfg'}").network_id != first
    json.dumps(first)


def test_preprocessing_can_be_overridden(recipe):
    task = task_of(recipe, "preprocess.width=96", "preprocess.resize=letterbox")
    assert (task.preprocess.width, task.preprocess.height, task.preprocess.resize) == (96, 64, "letterbox")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a\n", "1 class names for a network of 2 classes"),
        ("a\nb\nc\n", "3 class names"),
        ("", "no class names"),
    ],
)
def test_the_names_must_be_as_many_as_the_classes(recipe, names, expected):
    recipe.with_name("tiny.names").write_text(names)
    with pytest.raises(InputError, match=f"tiny.names: .*{expected}|tiny.names.*{expected}"):
        task_of(recipe)


def test_a_cfg_of_other_classes_is_refused(recipe):
    cfg = recipe.with_name("tiny.cfg")
    cfg.write_text(CFG.replace("classes=2", "classes=3").replace("filters=14", "filters=16"))
    with pytest.raises(InputError, match="2 class names for a network of 3 classes"):
        task_of(recipe)


def test_networks_by_name_and_unknown_ones(recipe):
    with pytest.raises(UsageError, match="yolov2-nano"):
        task_of(recipe, "network=yolov2-nona")


@pytest.mark.parametrize(
    ("text", "factory", "expected"),
    [
        ("", "nets_absent:make", "ModuleNotFoundError"),
        ("", "nets_a:make", "AttributeError"),
        ("make = 3", "nets_b:make", "TypeError"),
        ("def make(): raise RuntimeError('mine')", "nets_c:make", "RuntimeError: mine"),
        ("raise RuntimeError('on import')", "nets_d:make", "RuntimeError: on import"),
        ("def make(): return 5", "nets_e:make", "made a int, not a Yolo"),
        ("", ":make", "cannot make :make"),
        ("", "nets_f:", "cannot make nets_f:"),
    ],
)
def test_a_factory_that_fails_is_one_line(recipe, tmp_path, monkeypatch, text, factory, expected):
    monkeypatch.syspath_prepend(str(tmp_path))
    if factory.split(":")[0] not in ("", "nets_absent"):
        (tmp_path / f"{factory.split(':')[0]}.py").write_text(text)
    with pytest.raises(InputError, match=expected) as raised:
        task_of(recipe, f"network={factory}")
    assert "\n" not in str(raised.value)


def test_a_factory_of_the_users_own_is_the_network(recipe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "nets_good.py"
    path.write_text(
        "from paredown.apps.detector.network import YoloV2\n"
        f"def make(): return YoloV2.from_cfg({str(recipe.with_name('tiny.cfg'))!r})\n"
    )
    task = task_of(recipe, "network=nets_good:make")
    assert isinstance(task.network(), YoloV2)
    assert task.network_id["cfg"] == task_of(recipe).network_id["cfg"] and "factory" in task.network_id


NETS = """
from torch import nn
from paredown.apps.detector.network.v8 import V8Like


class Free(nn.Module):
    input_size = 64

    def __init__(self, decoding, channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, 8, 2), nn.ReLU())
        self.last = nn.ModuleList(nn.Conv2d(8, n, 1) for n in channels)
        self.decoding = decoding

    def forward(self, x):
        x = self.stem(x)
        return tuple(last(x) for last in self.last)


def v8():
    return V8Like(2, widths=(4, 8, 8, 8), depths=(1, 1, 1), levels=2, bins=6, input_size=64)


def v5():
    return Free({"kind": "v5", "strides": [8], "anchors": [[[18, 18], [12, 12]]]}, [14])


def yolox():
    return Free({"kind": "yolox", "strides": [8]}, [4, 1, 2])


def ssd():
    return Free({"kind": "ssd", "sizes": [[12, 20]], "ratios": [[2]]}, [16, 12])


def other():
    return Free({"kind": "yolox", "strides": [8]}, [4, 1, 3])


def silent():
    return nn.Conv2d(3, 4, 3)


def sizeless():
    made = v5()
    made.input_size = None
    return made
"""


def heads_task(recipe, name, *overrides):
    """A task whose network is a factory's, with the weights that it was saved with."""
    import sys

    import torch

    folder = recipe.parent
    sys.modules.pop("free_nets", None)
    (folder / "free_nets.py").write_text(NETS)
    recipe.with_name("free.pth").touch()
    settings = (f"network=free_nets:{name}", f"weights={folder / 'free.pth'}", *overrides)
    task = task_of(recipe, *settings)
    torch.manual_seed(0)
    torch.save(task.origin._build().state_dict(), folder / "free.pth")
    return task


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("v8", ("box1", "cls1", "box2", "cls2")), ("v5", ("level1",)), ("yolox", ("box1", "obj1", "cls1")),
        ("ssd", ("box1", "cls1")),
    ],
)  # fmt: skip
def test_a_factory_says_how_its_outputs_are_decoded(recipe, name, names):
    import torch

    from paredown.apps.detector.device.boxes.decode import decoder_of

    task = heads_task(recipe, name)
    assert task.output_names == names and len(task.names) == 2 and task.preprocess.width == 64
    facts = json.loads(task.bundle_members()["app.json"])
    assert decoder_of(facts) == task.origin.decoder and facts["outputs"] == list(names)
    assert ("yolo" in facts) == (name == "v5") and ("heads" in facts) == (name != "v5")
    assert json.loads(json.dumps(task.network_id)) == task.network_id  # `validate` compares it
    assert "factory" in task.network_id and task.features() == ()
    images, labels = task.batches(task.data("train"), 2, 0)(0)
    assert (labels is None) == (name != "v8")
    outputs = task.network()(images)
    assert float(task.distillation(outputs, outputs)) == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        scored = task.score(
            lambda x: [o.numpy() for o in task.network()(torch.from_numpy(x))], task.data("test")
        )
    assert 0 <= scored["map50"] <= 1
    if name == "v8":
        assert float(task.loss(outputs, labels)) > 0


@pytest.mark.parametrize("name", ["v5", "yolox", "ssd"])
def test_heads_without_a_training_loss_only_distil(recipe, name):
    task = heads_task(recipe, name)
    with pytest.raises(
        InputError, match=f"training a network with {name} heads on labels is not supported; dist"
    ):
        task.loss((), [])
    for override, expected in (
        ("recover.method=labels", f"recover.method: .*needs a training loss, and {name} heads.*distil"),
        ("prune.criterion=taylor", f"prune.criterion: .*training loss, and {name} heads.*activation"),
    ):
        with pytest.raises(InputError, match=expected):
            heads_task(recipe, name, override)
    heads_task(recipe, "v8", "recover.method=labels", "prune.criterion=taylor")


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("silent", (), "made a Conv2d, not a Yolo or a torch.nn.Module that says how .*; give it a mapping"),
        ("sizeless", (), "does not say its input's width and height; set width and height"),
        (
            "other",
            (),
            r"output 3 \(cls of level 1\) is \(1, 3, 8, 8\), yolox heads .* expect \(1, 2, 8, 8\)",
        ),
        ("v8", ("preprocess.width=72",), "an input of 72x64 is no multiple of the stride 16"),
    ],
)
def test_what_a_factory_says_must_fit(recipe, name, overrides, expected):
    with pytest.raises(InputError, match=expected) as raised:
        heads_task(recipe, name, *overrides)
    assert "\n" not in str(raised.value)


def test_a_built_in_network_has_as_many_classes_as_there_are_names(recipe):
    recipe.with_name("v8.pth").touch()
    overrides = "network=yolov8-nano-like", f"weights={recipe.with_name('v8.pth')}", "preprocess.width=64"
    task = task_of(recipe, *overrides, "preprocess.height=32")
    assert len(task.names) == 2 and task.output_names[-1] == "cls3" and task.origin.heads.input == (64, 32)
    assert task.network_id["network"] == "yolov8-nano-like"
    with pytest.raises(InputError, match="brings no weights of yolov8-nano-like along; train some"):
        task_of(recipe, *overrides, "weights=digits")


def test_splits_are_opened_by_name_and_limited(recipe):
    task = task_of(recipe)
    assert [len(task.data(split)) for split in ("train", "calibration", "test")] == [4, 4, 2]
    assert len(task_of(recipe, "data.limit=1").data("calibration")) == 1
    folder = recipe.parent / "images" / "train"
    only = load_recipe(recipe, [f"data.calibration={folder}"])
    only = only.model_copy(update={"data": only.data.model_copy(update={"train": None})})
    with pytest.raises(InputError, match="data.train: the recipe names no train images"):
        DetectorTask(only).data("train")
    for label in (recipe.parent / "labels" / "test").iterdir():
        label.unlink()
    with pytest.raises(InputError, match="no labels"):
        task_of(recipe).data("test")


def test_a_perfect_network_scores_one_and_a_blind_one_nothing(recipe):
    """The score goes through the real decoding: outputs are made that decode to the labels."""
    task = task_of(recipe)
    data = task.data("test")
    at = iter(range(len(data)))

    def seeing(x):
        return encode(task, data[next(at)])

    def blind(x):
        return tuple(np.full((1, c, 16, 16), -9, np.float32) for c in (4, 4, 2, 4))

    told = []
    perfect = task.score(seeing, data, lambda done, total: told.append((done, total)))
    assert perfect["map50"] == pytest.approx(1) and perfect["map"] > 0.99
    assert told == [(1, 2), (2, 2)]
    assert task.score(blind, data)["map50"] == 0


def encode(task, sample):
    """Logits of shape (1, ...) that decode to a sample's boxes: darknet's formulas, solved for the logits."""
    xy, wh = (np.zeros((1, 4, 16, 16), np.float32) for _ in range(2))
    obj, cls = np.full((1, 2, 16, 16), -20, np.float32), np.zeros((1, 4, 16, 16), np.float32)
    for (cx, cy, w, h), category in zip(sample.boxes.astype(float) * 16, sample.classes, strict=True):
        row, column = int(cy), int(cx)
        offset = np.array([cx - column, cy - row])
        xy[0, :2, row, column] = np.log(offset / (1 - offset) + 1e-9)
        wh[0, :2, row, column] = np.log(np.array([w, h]) / task.origin.cfg.region.anchors[0])
        obj[0, 0, row, column] = 12
        cls[0, category, row, column] = 12
    return xy, wh, obj, cls


def test_detections_are_those_of_the_decoder_on_the_image(recipe):
    task = task_of(recipe)
    sample = task.data("test")[0]
    outputs = encode(task, sample)
    found = task.detections(lambda x: outputs, sample.image, 0.5)
    plain = detect([o[0] for o in outputs], task.origin.cfg.region.anchors, 0.5)
    np.testing.assert_allclose(found.boxes, plain.boxes, atol=1e-6)  # stretched: the geometry is the identity
    assert found.classes.tolist() == plain.classes.tolist() and len(found) == 2


@pytest.mark.parametrize(("count", "shape"), [(1, (480, 480, 3)), (2, (480, 960, 3)), (3, (960, 960, 3))])
def test_previews_of_any_number_and_shape_of_images(recipe, tmp_path, count, shape):
    task = task_of(recipe)
    sizes = [(72, 96), (1000, 1), (3, 900)]
    samples = [
        dataclasses.replace(task.data("test")[0], image=np.zeros((*size, 3), np.uint8))
        for size in sizes[:count]
    ]
    outputs = encode(task, task.data("test")[0])
    task.preview(lambda x: outputs, samples, tmp_path / "p.png")
    assert cv2.imread(str(tmp_path / "p.png")).shape == shape


def test_what_goes_to_the_device_exists(recipe):
    task = task_of(recipe)
    members = task.bundle_members()
    assert members["labels.txt"] == b"square\ndisc\n"
    assert json.loads(members["app.json"])["anchors"] == [[3.3, 4.4], [2.8, 3.8]]
    assert all(path.is_file() and str(path).endswith(name) for name, path in task.device_files().items())


@pytest.mark.parametrize(
    ("app", "expected"),
    [("apps.nothing", "no app `apps.nothing`"), ("nowhere", "no app"), ("json", "no function make_task")],
)
def test_apps_that_are_none(recipe, app, expected):
    with pytest.raises(InputError, match=expected):
        load_task(load_recipe(recipe, [f"app={app}"]))


# -- outputs that were kept ----------------------------------------------------------------------------------


class Counted:
    """A data set that counts how often an image is decoded; without labels where told."""

    def __init__(self, data, unlabelled=()) -> None:
        self.data, self.unlabelled, self.names, self.decoded = data, unlabelled, data.names, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        self.decoded += 1
        sample = self.data[index]
        if index in self.unlabelled:
            sample = dataclasses.replace(
                sample, boxes=sample.boxes[:0], classes=sample.classes[:0], labelled=False
            )
        return sample

    def fingerprint(self) -> str:
        return f"{self.data.fingerprint()} {self.unlabelled}"


@pytest.fixture
def kept(recipe):
    """The task, its test images, and the network's outputs for them."""
    import torch

    task = task_of(recipe)
    data, network = Counted(task.data("test")), task.network()

    def predict(x):
        with torch.no_grad():
            return tuple(part.numpy() for part in network(torch.from_numpy(x)))

    return task, data, predict, [predict(task.preprocess(data[i].image)[None]) for i in range(len(data))]


def test_kept_outputs_score_as_the_network_does_and_decode_no_image_again(kept):
    task, data, predict, outputs = kept
    assert task.score_outputs(outputs, data) == task.score(predict, data)
    before = data.decoded
    low, high = task.interval(outputs, data)
    again = task.score_outputs(outputs, data)
    assert data.decoded == before
    assert 0 <= low <= high <= 1
    assert again == task.score_outputs(outputs, data)
    assert task.metric_alone(outputs, data) == again["map50"]


def test_outputs_of_the_first_images_score_those(kept):
    from paredown.calibration.datasets import First

    task, data, predict, outputs = kept
    assert task.score_outputs(outputs[:1], data) == task.score(predict, First(data, 1))


def test_the_best_case_falls_to_the_score_and_most_objects_come_first(kept):
    task, data, _, outputs = kept
    best = [task.best_case(outputs[:count], data) for count in range(1, len(outputs) + 1)]
    assert best == sorted(best, reverse=True)
    assert best[-1] == pytest.approx(task.score_outputs(outputs, data)["map50"], abs=1e-12)
    counts = [len(data[index].classes) for index in task.telling_first(outputs, data)]
    assert counts == sorted(counts, reverse=True)


def test_outputs_that_changed_in_place_are_scored_anew(kept):
    task, data, _, outputs = kept
    before = task.score_outputs(outputs, data)["map50"]
    assert before > 0
    for one in outputs:
        one[2][:] = -50  # no objects any more
    assert task.score_outputs(outputs, data)["map50"] == 0


def test_images_without_labels_get_what_the_network_finds(kept):
    task, data, predict, outputs = kept
    half = Counted(data.data, unlabelled=(0,))
    pseudo = task.pseudo_labelled(outputs, half)
    assert len(pseudo) == len(outputs) == 2
    expected = task.detections(predict, data[0].image, 0.5)
    assert len(expected) > 0
    sample = pseudo[0]
    assert sample.labelled and sample.classes.tolist() == expected.classes.tolist()
    corners = np.concatenate(
        [sample.boxes[:, :2] - sample.boxes[:, 2:] / 2, sample.boxes[:, :2] + sample.boxes[:, 2:] / 2], axis=1
    )
    np.testing.assert_allclose(corners, expected.boxes, atol=1e-6)
    np.testing.assert_array_equal(pseudo[1].boxes, data[1].boxes)  # somebody's labels stay
    assert task.pseudo_labelled(outputs[:1], half).fingerprint() != pseudo.fingerprint()
    # The network agrees with itself, but for labels end at the image's edge and detections do not.
    assert task.score_outputs(outputs[:1], pseudo)["map50"] > 0.95
    with pytest.raises(IndexError):
        pseudo[2]


def test_batches_serve_unlabelled_images_and_are_a_function_of_the_step(recipe):
    import torch

    task = task_of(recipe)
    data = task.data("train")
    labelled, bare = task.batches(data, 2, 3), task.batches(Counted(data, range(len(data))), 2, 3)
    assert labelled.per_epoch == bare.per_epoch == 2
    for step in (0, 3, 1):
        images, targets = labelled(step)
        others, none = bare(step)
        assert torch.equal(images, others) and torch.equal(images, task.batches(data, 2, 3)(step)[0])
        assert none is None and len(targets) == 2
        assert float(task.loss(task.network()(images), targets)) > 0
    assert not torch.equal(labelled(0)[0], task.batches(data, 2, 4)(0)[0])
    with pytest.raises(UsageError, match="4 images for batches of 5"):
        task.batches(data, 5, 0)


def test_a_batch_with_one_unlabelled_image_has_no_targets(recipe):
    task = task_of(recipe)
    mixed = task.batches(Counted(task.data("train"), (1,)), 4, 0)
    assert mixed(0)[1] is None


def test_digits_are_never_mirrored_other_images_are(recipe):
    assert task_of(recipe).batches(task_of(recipe).data("train"), 1, 0).config.augment.flips
    from paredown.pipeline.recipe.schema import Recipe

    digits = DetectorTask(Recipe())
    assert not digits.batches(digits.data("train"), 1, 0).config.augment.flips


def test_the_distance_of_a_network_from_itself_is_zero(recipe):
    import torch

    task = task_of(recipe)
    network = task.network()
    outputs = network(torch.rand(2, 3, 64, 64))
    assert float(task.distillation(outputs, outputs)) == pytest.approx(0, abs=1e-4)
    assert dict(network.named_modules())[task.features()[0]] is network.layers[-1]
