"""Networks with [yolo]: published sizes, hand-written modules as oracles, weights, the task around them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_project import copy_project
from torch import nn

from paredown.apps.detector.darknet.darknet import builtin_cfg, parse_cfg
from paredown.apps.detector.darknet.layers import AvgPool, Convolutional, Route, Shortcut, Upsample
from paredown.apps.detector.device.boxes.decode import YoloHead, YoloHeads, decoder_of, detect
from paredown.apps.detector.network import (
    AvgPoolLayer,
    ConvLayer,
    RouteLayer,
    ShortcutLayer,
    UpsampleLayer,
    Yolo,
)
from paredown.apps.detector.network.weights import read_weights, weights_bytes, write_weights
from paredown.apps.detector.task import DetectorTask
from paredown.apps.detector.train.distil import yolo_distillation
from paredown.apps.detector.train.train import train
from paredown.pipeline.recipe.file import load_recipe
from paredown.targets.errors import InputError, UsageError


def on_meta(name: str) -> Yolo:
    with torch.device("meta"):
        return Yolo.builtin(name).eval()


# the published .weights files, with a header of 20 bytes; darknet's BFLOPs are twice the GMACs, and a little
@pytest.mark.parametrize(
    ("name", "size", "gmac"), [("yolov3-tiny", 35_434_956, 2.7825), ("yolov4-tiny", 24_251_276, 3.4539)]
)
def test_published_size(name: str, size: int, gmac: float):
    network = on_meta(name)
    assert weights_bytes(network, wide=True) == size
    counts: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda conv, _, out: counts.append(
                    out[0].numel() * conv.in_channels * conv.kernel_size[0] ** 2
                )
            )
    outputs = network(torch.zeros(1, 3, 416, 416, device="meta"))
    assert round(sum(counts) / 1e9, 4) == gmac
    assert [tuple(part.shape) for part in outputs] == [
        (1, n, cells, cells) for cells in (13, 26) for n in (6, 6, 3, 240)
    ]
    assert (network.stride, network.classes, network.anchors) == (32, 80, ())
    written = re.search(r"([\d.]+) GMAC at 416x416, ([\d,]+) parameters", cfg_file(name).read_text())
    assert written and float(written[1]) == gmac
    assert int(written[2].replace(",", "")) == sum(p.numel() for p in network.parameters())


def cfg_file(name: str) -> Path:
    from paredown.apps.detector.darknet import darknet

    return Path(darknet.__file__).parent / "cfgs" / f"{name}.cfg"


# -- hand-written networks, which read a .weights file's floats in order -------------------------------------


class Reader:
    """The floats of a .weights file, one layer after the other."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.at = values, 0

    def take(self, *shape: int) -> torch.Tensor:
        count = int(np.prod(shape))
        part = self.values[self.at : self.at + count]
        self.at += count
        return torch.from_numpy(part.reshape(shape).copy())

    def conv(self, x: torch.Tensor, filters: int, size: int, stride: int = 1) -> torch.Tensor:
        """Convolution, darknet's batch norm with its epsilon 1e-5, leaky."""
        bias, scale, mean, variance = (self.take(filters)[:, None, None] for _ in range(4))
        x = F.conv2d(x, self.take(filters, x.shape[1], size, size), None, stride, size // 2)
        x = (x - mean) / torch.sqrt(variance + 1e-5) * scale + bias
        return torch.where(x > 0, x, 0.1 * x)

    def head(self, x: torch.Tensor, filters: int) -> torch.Tensor:
        bias = self.take(filters)
        return F.conv2d(x, self.take(filters, x.shape[1], 1, 1), bias)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def tiny_v3(x: torch.Tensor, read: Reader) -> list[torch.Tensor]:
    for filters in (16, 32, 64, 128):
        x = F.max_pool2d(read.conv(x, filters, 3), 2)
    fine = read.conv(x, 256, 3)
    x = read.conv(F.max_pool2d(fine, 2), 512, 3)
    x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)
    neck = read.conv(read.conv(x, 1024, 3), 256, 1)
    coarse = read.head(read.conv(neck, 512, 3), 255)
    x = torch.cat([doubled(read.conv(neck, 128, 1)), fine], 1)
    return [coarse, read.head(read.conv(x, 256, 3), 255)]


def tiny_v4(x: torch.Tensor, read: Reader) -> list[torch.Tensor]:
    x = read.conv(read.conv(x, 32, 3, 2), 64, 3, 2)
    for filters in (64, 128, 256):
        whole = read.conv(x, filters, 3)
        first = read.conv(whole[:, filters // 2 :], filters // 2, 3)
        second = read.conv(first, filters // 2, 3)
        fine = read.conv(torch.cat([second, first], 1), filters, 1)
        x = F.max_pool2d(torch.cat([whole, fine], 1), 2)
    neck = read.conv(read.conv(x, 512, 3), 256, 1)
    coarse = read.head(read.conv(neck, 512, 3), 255)
    x = torch.cat([doubled(read.conv(neck, 128, 1)), fine], 1)
    return [coarse, read.head(read.conv(x, 256, 3), 255)]


@pytest.mark.parametrize(("name", "by_hand"), [("yolov3-tiny", tiny_v3), ("yolov4-tiny", tiny_v4)])
def test_the_network_is_the_one_written_by_hand(name: str, by_hand, tmp_path: Path):
    network = Yolo.builtin(name).eval()
    count = (weights_bytes(network, wide=True) - 20) // 4
    rng = np.random.default_rng(1)
    values = (0.05 * rng.standard_normal(count)).astype("<f4")
    values = np.abs(values) + 0.01 * values  # variances must not be negative; any sign does elsewhere
    path = tmp_path / "random.weights"
    path.write_bytes(np.array([0, 2, 0], "<i4").tobytes() + np.array([5], "<u8").tobytes() + values.tobytes())
    read_weights(path, network)
    x = torch.from_numpy(rng.random((1, 3, 64, 96), dtype=np.float32))
    reader = Reader(values.astype(np.float32))
    with torch.no_grad():
        outputs, expected = network(x), by_hand(x, reader)
    assert reader.at == count
    for head, merged in enumerate(expected):
        by_anchor = merged.reshape(1, 3, 85, *merged.shape[2:])
        parts = outputs[4 * head : 4 * head + 4]
        for part, (begin, end) in zip(parts, ((0, 2), (2, 4), (4, 5), (5, 85)), strict=True):
            wanted = by_anchor[:, :, begin:end].reshape(part.shape)
            torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    again = tmp_path / "again.weights"
    write_weights(again, network)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", [-4, 4, -1])
def test_weights_of_another_length_are_refused(change: int, tmp_path: Path):
    network = Yolo.from_cfg(parse_cfg(V4, "v4.cfg"))
    path = tmp_path / "x.weights"
    write_weights(path, network)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(InputError, match=f"holds {len(data) + change:,} bytes, this network's .weights"):
        read_weights(path, network)


# -- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("leaky", lambda x: np.where(x > 0, x, 0.1 * x)),
        ("relu", lambda x: np.maximum(x, 0)),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("logistic", lambda x: 1 / (1 + np.exp(-x))),
        ("swish", lambda x: x / (1 + np.exp(-x))),
        ("hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("linear", lambda x: x),
    ],
)
def test_activations(name: str, formula):
    layer = ConvLayer(Convolutional(1, 1, 1, 0, 1, False, name), 1).eval()
    x = torch.linspace(-9, 9, 181, dtype=torch.float64).reshape(1, 1, 1, -1)
    layer.double()
    with torch.no_grad():
        layer.conv.weight.fill_(1)
        layer.conv.bias.zero_()
        np.testing.assert_allclose(layer(x).numpy(), formula(x.numpy()), rtol=1e-9, atol=1e-12)
        added = ShortcutLayer(Shortcut((0,), name)).double()(x / 2, [x / 2])
        np.testing.assert_allclose(added.numpy(), formula(x.numpy()), rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_routes_take_a_group_of_each_as_darknets_loop(groups: int, side: int, parts: list[int], data):
    which = data.draw(st.integers(0, groups - 1))
    maps = [torch.randn(2, groups * n, side, side + 1) for n in parts]
    found = RouteLayer(Route(tuple(range(len(maps))), groups=groups, group_id=which))(maps)
    for image in range(2):  # forward_route_layer copies part number group_id of each input's memory
        memory = [m[image].numpy().ravel() for m in maps]
        copied = [m[which * (m.size // groups) :][: m.size // groups] for m in memory]
        np.testing.assert_array_equal(found[image].numpy().ravel(), np.concatenate(copied))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_upsampling_is_darknets_loop(stride: int):
    x = torch.randn(2, 3, 4, 5)
    out = UpsampleLayer(Upsample(stride))(x)
    assert out.shape == (2, 3, 4 * stride, 5 * stride)
    for j in range(4 * stride):
        for i in range(5 * stride):
            assert torch.equal(out[:, :, j, i], x[:, :, j // stride, i // stride])


def test_avgpool_is_the_mean_of_a_map():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(AvgPoolLayer(AvgPool())(x)[..., 0, 0], x.flatten(2).mean(2))


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov4-tiny"])
def test_export_gives_plain_operators(name: str):
    program = torch.export.export(on_meta(name), (torch.zeros(1, 3, 416, 416, device="meta"),))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    own = {"aten.pad.default"} if name == "yolov3-tiny" else {"aten.slice.Tensor"}
    assert used == own | {
        "aten.conv2d.default", "aten.batch_norm.default", "aten.leaky_relu.default", "aten.cat.default",
        "aten.max_pool2d.default", "aten.upsample_nearest2d.vec",
    }  # fmt: skip


def test_the_cfg_follows_the_widths_and_every_layer_gets_a_gradient():
    torch.manual_seed(0)
    network = Yolo.from_cfg(parse_cfg(V4)).train()
    assert parse_cfg(V4).layers == tuple(network.cfg.layers)
    assert network.current_cfg().yolos.keys() == network.cfg.yolos.keys()
    sum(part.square().mean() for part in network(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


# -- the task ------------------------------------------------------------------------------------------------

V4 = """\
[net]
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky

[route]
layers=-1
groups=2
group_id=1

[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky

[shortcut]
from=-2
activation=linear

[maxpool]
size=2
stride=2

[convolutional]
filters=14
activation=linear

[yolo]
mask=1,2
anchors=8,9, 20,20, 30,20
num=3
classes=2
scale_x_y=1.05
nms_kind=greedynms

[route]
layers=-3

[upsample]
stride=2

[convolutional]
filters=7
activation=logistic

[yolo]
mask=0
anchors=8,9, 20,20, 30,20
num=3
classes=2
new_coords=1
scale_x_y=2
nms_kind=greedynms
"""


@pytest.fixture
def recipe(tiny, tmp_path) -> Path:
    made = copy_project(tiny, tmp_path / "mine")
    made.with_name("tiny.cfg").write_text(V4)
    torch.manual_seed(1)
    write_weights(made.with_name("tiny.weights"), Yolo.from_cfg(parse_cfg(V4)))
    return made


def task_of(recipe: Path, *overrides: str) -> DetectorTask:
    return DetectorTask(load_recipe(recipe, overrides))


HEADS = (YoloHead(((20.0, 20.0), (30.0, 20.0)), 1.05), YoloHead(((8.0, 9.0),), 2.0, True))


def test_a_task_knows_its_heads(recipe: Path):
    task = task_of(recipe)
    assert task.origin.decoder == YoloHeads(HEADS, (64, 64), 0.6)
    assert task.output_names == ("xy1", "wh1", "obj1", "cls1", "xy2", "wh2", "obj2", "cls2")
    outputs = task.network()(torch.zeros(1, 3, 64, 64))
    assert [tuple(part.shape[1:]) for part in outputs] == [
        (4, 8, 8), (4, 8, 8), (2, 8, 8), (4, 8, 8), (2, 16, 16), (2, 16, 16), (1, 16, 16), (2, 16, 16),
    ]  # fmt: skip
    modules = dict(task.network().named_modules())
    assert set(task.features()) == {"layers.4", "layers.8"} <= modules.keys()
    wider = task_of(recipe, "preprocess.width=96")
    assert wider.origin.decoder == YoloHeads(HEADS, (96, 64), 0.6), "anchors are pixels of the input"


def test_the_bundle_says_how_to_decode(recipe: Path):
    task = task_of(recipe)
    facts = json.loads(task.bundle_members()["app.json"])
    assert decoder_of(facts) == task.origin.decoder
    assert "anchors" not in facts and facts["classes"] == 2


def test_letter_box_is_the_preprocessing(recipe: Path):
    recipe.with_name("tiny.cfg").write_text(V4.replace("channels=3", "channels=3\nletter_box=1"))
    assert task_of(recipe).preprocess.resize == "letterbox"
    assert task_of(recipe, "preprocess.resize=crop").preprocess.resize == "crop"


def test_the_identity_tells_layers_apart_and_leaves_old_ones_alone(recipe: Path):
    first = task_of(recipe).network_id
    json.dumps(first)
    for old, new in (
        ("group_id=1", "group_id=0"),
        ("scale_x_y=1.05", "scale_x_y=1.1"),
        ("mask=1,2", "mask=0,2"),
    ):
        recipe.with_name("tiny.cfg").write_text(V4.replace(old, new))
        assert task_of(recipe).network_id != first


def encode(sample) -> list[np.ndarray]:
    """Logits that decode to a sample's boxes: darknet's formulas, solved, on the second head's cells."""
    outputs = [np.zeros((1, n, 8, 8), np.float32) for n in (4, 4, 2, 4)]
    outputs += [np.zeros((1, n, 16, 16), np.float32) for n in (2, 2, 1, 2)]
    outputs[2][:] = outputs[6][:] = -20
    for (cx, cy, w, h), category in zip(sample.boxes.astype(float), sample.classes, strict=True):
        row, column = int(cy * 16), int(cx * 16)
        offset = (np.array([cx * 16 - column, cy * 16 - row]) + 0.5) / 2
        outputs[4][0, :, row, column] = np.log(offset / (1 - offset))
        half = np.sqrt(np.array([w * 64 / 8, h * 64 / 9])) / 2
        outputs[5][0, :, row, column] = np.log(half / (1 - half))
        outputs[6][0, 0, row, column] = 12
        outputs[7][0, :, row, column] = -12
        outputs[7][0, category, row, column] = 12
    return outputs


def test_a_perfect_network_scores_one(recipe: Path, tmp_path: Path):
    task = task_of(recipe)
    data = task.data("test")
    at = iter(range(len(data)))
    assert task.score(lambda x: encode(data[next(at)]), data)["map50"] == pytest.approx(1)
    outputs = [encode(data[i]) for i in range(len(data))]
    assert task.score_outputs(outputs, data)["map"] > 0.99
    plain = detect([o[0] for o in outputs[0]], task.origin.decoder, 0.5)
    found = task.detections(lambda x: outputs[0], data[0].image, 0.5)
    np.testing.assert_allclose(found.boxes, plain.boxes, atol=1e-6)
    task.preview(lambda x: outputs[0], data, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size


def test_batches_have_no_labels_so_that_recovery_distils(recipe: Path):
    task = task_of(recipe)
    made = task.batches(task.data("train"), 2, 0)
    images, labels = made(0)
    assert images.shape[0] == 2 and labels is None and made.per_epoch == 2
    outputs = task.network()(images)
    assert float(task.distillation(outputs, outputs)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recover.method=labels", "key recover.method: .*needs a training loss.*distil"),
        ("squantize.method=both", "key squantize.method: .*needs a training loss.*distil"),
        ("prune.criterion=taylor", "key prune.criterion: .*needs a training loss.*activation"),
    ],
)
def test_what_needs_a_training_loss_is_refused(recipe: Path, override: str, expected: str):
    with pytest.raises(InputError, match=expected):
        task_of(recipe, override)


def test_training_is_refused_in_one_line(recipe: Path):
    task = task_of(recipe)
    with pytest.raises(InputError, match=r"\[yolo\] heads on labels is not supported; distil"):
        task.loss(task.network()(torch.zeros(1, 3, 64, 64)), [])
    with pytest.raises(UsageError, match=r"\[yolo\] heads is not supported; train it with darknet"):
        train(task.network(), task.data("train"))


def bernoulli(p: float, q: float) -> float:
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_distillation_is_its_definition():
    rng = np.random.default_rng(0)
    shapes = [(2, n, 2, 3) for n in (4, 4, 2, 6, 2, 2, 1, 3)]
    one, other = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    total = 0.0
    for head, squared in enumerate((False, True)):
        (xy, wh, obj, cls), (xy_t, wh_t, obj_t, cls_t) = (v[4 * head : 4 * head + 4] for v in (one, other))
        sig = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        for image, box, j, i in np.ndindex(obj.shape):
            p = sig(obj_t[image, box, j, i])
            total += bernoulli(p, sig(obj[image, box, j, i]))
            for k in (2 * box, 2 * box + 1):
                at = (image, k, j, i)
                total += p / 2 * (sig(xy[at]) - sig(xy_t[at])) ** 2
                gap = 2 * (sig(wh[at]) - sig(wh_t[at])) if squared else wh[at] - wh_t[at]
                total += p / 2 * gap**2
            for k in range(3 * box, 3 * box + 3):
                total += p * bernoulli(sig(cls_t[image, k, j, i]), sig(cls[image, k, j, i]))
    student, teacher = ([torch.from_numpy(v) for v in values] for values in (one, other))
    assert float(yolo_distillation(student, teacher, [False, True])) == pytest.approx(total / 2)
    with pytest.raises(InputError, match="the student's outputs are"):
        yolo_distillation(student[:4], teacher, [False])


def test_shipped_cfgs_have_no_key_that_is_ignored_by_mistake():
    for name in ("yolov3-tiny", "yolov4-tiny"):
        cfg = builtin_cfg(name)
        assert [len(yolo.mask) for yolo in cfg.yolos.values()] == [3, 3]
        assert cfg.classes == 80 and (cfg.net.width, cfg.net.height) == (416, 416)
