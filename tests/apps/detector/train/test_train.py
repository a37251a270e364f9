import math
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_project import call

from paredown.apps.detector import digits as digits_module
from paredown.apps.detector.digits import Digits
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.v8 import V8Like
from paredown.apps.detector.network.weights import load_checkpoint as load_weights
from paredown.apps.detector.train.augment import Augment
from paredown.apps.detector.train.batches import Batches
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.train import evaluate, train
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.compress.training.loop import learning_rate
from paredown.pipeline.store.checkpoint import load_checkpoint, save_checkpoint, save_weights
from paredown.targets.errors import InputError, UsageError

SHIPPED = Path(digits_module.__file__).with_name("digits.safetensors")
SMALL = Preprocess(64, 64)  # the network takes any multiple of its stride: a step in milliseconds
QUICK = TrainConfig(epochs=3, batch=4, warmup=2, checkpoint_every=1, augment=Augment(flips=False))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def nano(seed=0):
    torch.manual_seed(seed)
    return YoloV2.builtin("yolov2-nano")


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def free(decoding=None):
    torch.manual_seed(0)
    network = V8Like(10, widths=(4, 8, 8, 16), depths=(1, 1, 1), levels=2, bins=6, input_size=64)
    network.decoding = decoding or network.decoding
    return network


def test_a_network_without_anchors_is_trained_and_resumed(tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 3:
            raise Killed

    longer = replace(QUICK, epochs=15)
    history = train(free(), Digits("train", 8), longer, validation=Digits("validation", 4)).history
    assert history[-1]["iou"] > history[0]["iou"] and "map50" in history[-1]
    whole = train(free(), Digits("train", 8), QUICK)
    assert not whole.network.training and whole.seen == 24
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        train(free(), Digits("train", 8), QUICK, checkpoint=path, tick=kill)
    assert same(train(free(), Digits("train", 8), QUICK, checkpoint=path).network, whole.network)


def test_heads_that_cannot_be_trained_are_refused():
    data = Digits("train", 8)
    with pytest.raises(UsageError, match="with yolox heads is not supported; train it with your own code"):
        network = torch.nn.Conv2d(3, 15, 8, 8)
        network.decoding, network.input_size = {"kind": "yolox", "strides": [8]}, 64
        train(network, data, QUICK)
    with pytest.raises(UsageError, match="a Conv2d does not say how its outputs are decoded"):
        train(torch.nn.Conv2d(3, 15, 8, 8), data, QUICK, preprocess=SMALL)
    with pytest.raises(UsageError, match="does not say its input's size; give it an attribute input_size"):
        train(torch.nn.Conv2d(3, 15, 8, 8), data, QUICK)


def test_training_lowers_the_loss_and_counts_what_it_saw():
    lines, ticks = [], []
    network = nano()
    result = train(
        network, Digits("train", 8), TrainConfig(epochs=12, batch=4, warmup=2, evaluate_every=12),
        preprocess=SMALL, validation=Digits("validation", 4), report=lines.append,
        tick=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert result.network is network
    assert not network.training
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert [row["epoch"] for row in result.history] == list(range(1, 13))
    assert ["map50" in row for row in result.history] == [False] * 11 + [True]
    assert len(lines) == 12
    assert "map50" in lines[-1]
    assert ticks == [(step, 24) for step in range(1, 25)]
    assert result.seen == network.header.seen == 96
    assert all(p.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(tmp_path, stop):
    data = Digits("train", 9)  # 2 batches of 4, one scene left over
    straight = nano()
    history = train(straight, data, QUICK, preprocess=SMALL).history

    def pull_the_plug(done, total):
        if done == stop + 1:
            raise KeyboardInterrupt  # before this step's checkpoint: the step is done again

    again = nano()
    with pytest.raises(KeyboardInterrupt):
        train(again, data, QUICK, preprocess=SMALL, checkpoint=tmp_path / "ck", tick=pull_the_plug)
    assert load_checkpoint(tmp_path / "ck")["step"] == stop
    again = nano()
    resumed = train(again, data, QUICK, preprocess=SMALL, checkpoint=tmp_path / "ck")
    assert same(straight, again)
    assert resumed.history == history
    finished = train(nano(), data, QUICK, preprocess=SMALL, checkpoint=tmp_path / "ck")
    assert same(finished.network, straight)


def test_a_different_seed_is_a_different_run():
    one, other = nano(), nano()
    train(one, Digits("train", 8), QUICK, preprocess=SMALL)
    train(other, Digits("train", 8), TrainConfig(**{**vars(QUICK), "seed": 1}), preprocess=SMALL)
    assert not same(one, other)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "ck"
    train(nano(), Digits("train", 4), QUICK, preprocess=SMALL, checkpoint=path)
    for network, data, config, preprocess in (
        (nano(1), Digits("train", 4), QUICK, SMALL),
        (nano(), Digits("train", 5), QUICK, SMALL),
        (nano(), Digits("train", 4), TrainConfig(**{**vars(QUICK), "lr": 0.5}), SMALL),
        (nano(), Digits("train", 4), QUICK, Preprocess(96, 96)),
    ):
        with pytest.raises(InputError, match="another run"):
            train(network, data, config, preprocess=preprocess, checkpoint=path)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "ck"
    config = TrainConfig(**{**vars(QUICK), "lr": 1e30, "epochs": 9})
    with pytest.raises(UsageError, match=r"the loss is (nan|inf) at step \d+ of 18; lower lr .*last good"):
        train(nano(), Digits("train", 8), config, preprocess=SMALL, checkpoint=path)
    state = load_checkpoint(path)
    assert state["step"] >= 1
    for part in ("network", "average"):
        assert all(torch.isfinite(tensor).all() for tensor in state[part].values())


class Reducer:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Reducer())])
def test_a_broken_or_hostile_checkpoint_is_an_input_error(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("ck").write_bytes(content)
    with pytest.raises(InputError, match="is no checkpoint"):
        train(nano(), Digits("train", 4), QUICK, preprocess=SMALL, checkpoint=Path("ck"))
    assert not Path("ran").exists()


def test_a_checkpoint_that_lost_a_part_is_an_input_error(tmp_path):
    path = tmp_path / "ck"
    train(nano(), Digits("train", 4), QUICK, preprocess=SMALL, checkpoint=path)
    state = load_checkpoint(path)
    del state["optimizer"]
    save_checkpoint(path, state)
    with pytest.raises(InputError, match="ck: "):
        train(nano(), Digits("train", 4), QUICK, preprocess=SMALL, checkpoint=path)


def test_saved_weights_come_back_and_the_same_weights_are_the_same_bytes(tmp_path):
    network = nano()
    save_weights(tmp_path / "a.safetensors", network)
    save_weights(tmp_path / "b.safetensors", network.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    other = nano(1)
    load_weights(tmp_path / "a.safetensors", other)
    assert same(network, other)


def test_the_average_is_the_mean_it_says():
    live = nano()
    train(live, Digits("train", 4), TrainConfig(epochs=1, batch=4, ema=0.0), preprocess=SMALL)
    start, averaged = nano(), nano()
    train(averaged, Digits("train", 4), TrainConfig(epochs=1, batch=4, ema=0.9), preprocess=SMALL)
    # One step: the young average's decay is min(0.9, 1 / 10).
    for name, tensor in averaged.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.1 * start.state_dict()[name] + 0.9 * live.state_dict()[name]
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


def test_learning_rate_rises_then_follows_half_a_cosine():
    config = TrainConfig(lr=0.1, warmup=10, last_lr=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    np.testing.assert_allclose(rates[:10], [0.1 * (k + 1) / 11 for k in range(10)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.1 * (0.1 + 0.9 / 2))
    assert rates[109] == pytest.approx(0.01, abs=1e-4)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_multi_scale_changes_the_size_every_ten_steps_within_darknets_range():
    config = TrainConfig(batch=1, multi_scale=True, augment=Augment(0, 0, False, 0))
    batches = Batches(Digits("train", 2), Preprocess(416, 416), config, stride=32)
    sizes = [batches._scaled(step).width for step in range(3000)]
    assert set(sizes) == set(range(320, 609, 32))
    assert all(len(set(sizes[start : start + 10])) == 1 for start in range(0, 3000, 10))
    images, targets = batches(0)
    assert images.shape == (1, 3, sizes[0], sizes[0])
    assert targets[0][1].shape[1] == 4


def test_every_scene_comes_once_an_epoch():
    data = Digits("train", 6)
    batches = Batches(data, SMALL, TrainConfig(batch=2, augment=Augment(0, 0, False, 0)), stride=16)
    first = [tuple(labels.tolist()) for step in range(3) for labels, _ in batches(step)[1]]
    second = [tuple(labels.tolist()) for step in range(3, 6) for labels, _ in batches(step)[1]]
    assert sorted(first) == sorted(second) == sorted(tuple(data[k].classes.tolist()) for k in range(6))
    assert first != second


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.booleans())
def test_augmented_boxes_stay_on_their_objects(seed, flips):
    """The oracle finds the object by its pixels."""
    rng = np.random.default_rng(seed)
    x, y, w, h = (int(v) for v in rng.integers((25, 25, 20, 20), (60, 60, 40, 40)))
    image = np.zeros((120, 150, 3), np.uint8)
    image[y : y + h, x : x + w] = 200
    boxes = np.array([[(x + w / 2) / 150, (y + h / 2) / 120, w / 150, h / 120]], np.float32)
    augment = Augment(zoom=0.3, shift=0.1, flips=flips, colour=0.1, visible=0)
    got, moved, classes = augment(image, boxes, np.array([3]), rng)
    rows, columns = np.nonzero(got[..., 0] > 160)  # the grey around it has at most 154
    expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    centre, half = moved[0, :2], moved[0, 2:] / 2
    corners = np.concatenate([centre - half, centre + half]) * (150, 120, 150, 120)
    assert np.abs(corners - expected).max() <= 1.5
    assert classes.tolist() == [3]
    assert got.shape == image.shape


def test_no_augmentation_is_no_change_and_a_lost_box_is_dropped():
    sample = Digits("train")[0]
    none, chance = Augment(0, 0, False, 0), np.random.default_rng(0)
    image, boxes, classes = none(sample.image, sample.boxes, sample.classes, chance)
    np.testing.assert_array_equal(image, sample.image)
    np.testing.assert_array_equal(boxes, sample.boxes)
    np.testing.assert_array_equal(classes, sample.classes)
    edge = np.array([[0.02, 0.5, 0.04, 0.1]], np.float32)
    strong, one = Augment(0.5, 0.2), np.array([1])
    left = {len(strong(sample.image, edge, one, np.random.default_rng(seed))[1]) for seed in range(30)}
    assert left == {0, 1}


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0.0}, {"clip": math.nan}, {"ema": 1.0}, {"momentum": -1}, {"seed": -9}],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_wrong_data_are_named():
    with pytest.raises(UsageError, match="3 images for batches of 4"):
        train(nano(), Digits("train", 3), QUICK, preprocess=SMALL)
    data = Digits("train", 4)
    data.names = ("one", "two")
    with pytest.raises(InputError, match="2 classes in the data, 10 in the network"):
        train(nano(), data, QUICK, preprocess=SMALL)


@pytest.fixture
def folder(tmp_path):
    """Eight digit scenes as a YOLO data set."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    data = Digits("train")
    for index in range(8):
        sample = data[index]
        cv2.imwrite(str(images / f"{index}.png"), sample.image)
        pairs = zip(sample.classes, sample.boxes, strict=True)
        lines = [f"{label} {' '.join(map(str, box))}" for label, box in pairs]
        (labels / f"{index}.txt").write_text("\n".join(lines))
    (tmp_path / "digits.names").write_text("\n".join(data.names))
    return tmp_path


def test_the_command_trains_on_a_folder(folder):
    options = ["--names", str(folder / "digits.names"), "--validation", str(folder / "images")]
    options += ["--epochs", "1", "--batch", "4", "--warmup", "1", "--threads", "1"]
    for out in ("a.safetensors", "b.safetensors", "c.weights"):
        done = call("train", folder / "images", "--out", folder / out, *options)
        assert (done.code, done.out) == (0, "") and "map50" in done.err
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    assert not list(folder.glob("*.checkpoint"))
    one, other = nano(1), nano(2)
    load_weights(folder / "a.safetensors", one)
    load_weights(folder / "c.weights", other)
    with torch.no_grad():
        batch = torch.rand(1, 3, 160, 160)
        for a, b in zip(one.eval()(batch), other.eval()(batch), strict=True):
            torch.testing.assert_close(a, b)
    assert other.header.seen == 8


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["digits", "--out", "x.bin"], 2, "--out x.bin"),
        (["somewhere", "--out", "x.safetensors"], 4, "somewhere: no such file or folder"),
        (["digits", "--out", "x.safetensors", "--network", "yolov9"], 2, "yolov9"),
        (["digits", "--out", "x.safetensors", "--network", "v9"], 2, "yolov8-nano-like-silu"),
        (["digits", "--out", "x.weights", "--network", "yolov8-nano-like"], 2, "no network of darknet"),
        (
            ["digits", "--out", "x.safetensors", "--network", "absent_nets:make"],
            4,
            "cannot make absent_nets:",
        ),
        (["digits", "--out", "x.safetensors", "--network", "builtins:dict"], 2, "builtins:dict made a dict"),
        (
            ["digits", "--out", "x.safetensors", "--network", "yolov8-nano-like", "--size", "100"],
            4,
            "an input of 100x100 is no multiple of the stride 8",
        ),
        (["digits", "--out", "x.safetensors", "--weights", "none.pt"], 4, "none.pt"),
        (["digits", "--out", "x.safetensors", "--epochs", "0"], 2, "epochs = 0"),
        (["digits", "--out", "x.safetensors", "--device", "nowhere"], 2, "nowhere"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    done = call("train", *arguments)
    assert done.code == code and words in done.line()
    assert not list(tmp_path.iterdir())


def test_the_shipped_weights_find_the_digits():
    network = nano()
    load_weights(SHIPPED, network)
    assert SHIPPED.stat().st_size < 2_000_000
    assert all(t.dtype == torch.float32 for t in network.parameters())
    assert evaluate(network, Digits("test", 60), Preprocess(160, 160))["map50"] > 0.9
