"""weights.py: darknet's bytes, and nothing else than an InputError for any other bytes."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.network import ConvLayer, Header, YoloV2
from paredown.apps.detector.network.weights import (
    head_rows,
    load_checkpoint,
    read_weights,
    weights_bytes,
    write_weights,
)
from paredown.targets.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "yololite-yolov2"
YOLOLITE = {
    "voc-trial3-noBatch": 572_317,
    "voc-trial3-bn": 574_189,
    "coco-trial6": 649_417,
}  # floats, SOURCE.txt
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/yololite-yolov2 is absent")

CFG = """[net]
width=16
height=16
channels=3
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
filters=5
size=1
activation=relu
[convolutional]
filters=16
size=1
activation=linear
[region]
anchors=1,1, 2,2
num=2
classes=3
softmax=1
"""
FLOATS = (4 * 4 + 4 * 27) + (5 + 5 * 4) + (16 + 16 * 5)
SHORT, LONG = struct.pack("<iiii", 0, 1, 0, 6400), struct.pack("<iiiq", 0, 2, 0, 6400)


def network() -> YoloV2:
    return YoloV2.from_cfg(parse_cfg(CFG, "tiny.cfg")).eval()


def floats(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 1, FLOATS).astype("<f4")


def written(path: Path, header: bytes, values: np.ndarray) -> Path:
    path.write_bytes(header + values.astype("<f4").tobytes())
    return path


def unchanged(net: YoloV2, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_float_lands_where_darknet_puts_it(tmp_path: Path):
    """Darknet's layout, taken apart here by hand."""
    values = floats()
    net = network()
    read_weights(written(tmp_path / "x.weights", LONG, values), net)
    first, second = net.layers[0], net.layers[2]
    assert isinstance(first, ConvLayer) and isinstance(second, ConvLayer) and first.bn is not None
    parts = np.split(values, np.cumsum([4, 4, 4, 4, 108, 5, 20, 16]))
    for tensor, part in zip(
        (first.bn.bias, first.bn.weight, first.bn.running_mean, first.bn.running_var, first.conv.weight,
         second.conv.bias, second.conv.weight), parts, strict=False,
    ):  # fmt: skip
        np.testing.assert_array_equal(tensor.detach().numpy().ravel(), part)
    # the head, filter by filter: x, y, w, h, objectness, 3 classes; then the second anchor's
    bias, weight = parts[7].reshape(2, 8), parts[8].reshape(2, 8, 5)
    head = net.head
    for anchor in range(2):
        pairs = [(head.xy, 2 * anchor, 0), (head.xy, 2 * anchor + 1, 1), (head.wh, 2 * anchor, 2),
                 (head.wh, 2 * anchor + 1, 3), (head.obj, anchor, 4), (head.cls, 3 * anchor, 5),
                 (head.cls, 3 * anchor + 1, 6), (head.cls, 3 * anchor + 2, 7)]  # fmt: skip
        for conv, ours, theirs in pairs:
            assert conv.bias is not None
            assert conv.bias[ours].item() == bias[anchor, theirs]
            np.testing.assert_array_equal(conv.weight[ours].detach().numpy().ravel(), weight[anchor, theirs])
    assert net.header == Header(0, 2, 0, 6400, True)


@pytest.mark.parametrize(("name", "size"), [("yolov2-voc", 202_704_260), ("yolov2-tiny-voc", 63_471_556)])
def test_published_file_sizes(name: str, size: int):
    with torch.device("meta"):
        net = YoloV2.builtin(name)
    rows = head_rows(5, 20)
    assert sorted(rows) == list(range(125))
    total = 16 + 4 * (
        sum(p.numel() for p in net.parameters())
        + sum(b.numel() for n, b in net.named_buffers() if "running" in n)
    )
    assert total == size
    assert weights_bytes(net, wide=False) == size
    assert weights_bytes(net, wide=True) == size + 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(-5, 5),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**32 - 1),
)
def test_what_was_read_is_written_back_byte_for_byte(tmp_path: Path, major, minor, revision, seen, seed):
    wide = major * 10 + minor >= 2
    header = struct.pack("<iiiq" if wide else "<iiii", major, minor, revision, seen)
    values = np.random.default_rng(seed).standard_normal(FLOATS).astype("<f4")
    values[12:16] = abs(values[12:16])  # the variances
    net = network()
    source = written(tmp_path / "in.weights", header, values)
    read_weights(source, net)
    assert net.header == Header(major, minor, revision, seen, wide)
    write_weights(tmp_path / "out.weights", net)
    assert (tmp_path / "out.weights").read_bytes() == source.read_bytes()


def test_odd_floats_survive(tmp_path: Path):
    values = floats()
    values[:4] = [-0.0, 1e-45, 3.4e38, -3.4e38]  # signed zero, a denormal, the largest
    net = network()
    source = written(tmp_path / "in.weights", SHORT, values)
    read_weights(source, net)
    write_weights(tmp_path / "out.weights", net)
    assert (tmp_path / "out.weights").read_bytes() == source.read_bytes()


def test_a_new_network_is_written_as_darknet_does_today(tmp_path: Path):
    net = network()
    write_weights(tmp_path / "new.weights", net)
    data = (tmp_path / "new.weights").read_bytes()
    assert struct.unpack_from("<iiiq", data) == (0, 2, 0, 0)
    assert len(data) == 20 + 4 * FLOATS
    other = network()
    read_weights(tmp_path / "new.weights", other)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))


def test_a_count_of_images_that_outgrew_32_bits_takes_the_long_header(tmp_path: Path):
    net = network()
    net.header = Header(0, 1, 0, 2**31, wide=False)
    write_weights(tmp_path / "x.weights", net)
    other = network()
    read_weights(tmp_path / "x.weights", other)
    assert other.header == Header(0, 2, 0, 2**31, wide=True), "the version tells darknet so"


@pytest.mark.parametrize("header", [SHORT, LONG], ids=["short header", "long header"])
@pytest.mark.parametrize("change", [-FLOATS, -1, 1, 2, 1000])
def test_one_float_short_or_long_names_both_sizes(tmp_path: Path, header: bytes, change: int):
    """Also where the size then fits the other header: -1 with the long one, +1 with the short one."""
    values = np.resize(floats(), FLOATS + change)
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        read_weights(written(tmp_path / "bad.weights", header, values), net)
    message = str(caught.value)
    assert "bad.weights" in message
    assert f"{len(header) + 4 * (FLOATS + change):,}" in message
    assert f"{16 + 4 * FLOATS:,}" in message and f"{20 + 4 * FLOATS:,}" in message
    assert unchanged(net, before)


@pytest.mark.parametrize("size", [0, 1, 3, 12, 16, 19, 20, 21, 16 + 4 * FLOATS - 2, 20 + 4 * FLOATS + 1])
def test_other_sizes_are_input_errors(tmp_path: Path, size: int):
    (tmp_path / "bad.weights").write_bytes((LONG + bytes(4 * FLOATS + 8))[:size])
    with pytest.raises(InputError, match=f"holds {size:,} bytes"):
        read_weights(tmp_path / "bad.weights", network())


def test_the_size_decides_over_a_version_that_a_converter_got_wrong(tmp_path: Path):
    for version, wide in (((0, 2, 0), False), ((0, 0, 0), True), ((0, 1, 0), True)):
        header = struct.pack("<iiiq" if wide else "<iiii", *version, 6400)
        net = network()
        read_weights(written(tmp_path / "x.weights", header, floats()), net)
        assert net.header.wide == wide and net.header.seen == 6400
        write_weights(tmp_path / "y.weights", net)
        assert (tmp_path / "y.weights").read_bytes() == (tmp_path / "x.weights").read_bytes()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, np.nan, "layer 0 [convolutional] biases hold 1 values that are NaN"),
        (9, np.inf, "layer 0 [convolutional] means"),
        (13, -0.5, "layer 0 [convolutional] variances hold 1 negative"),
        (125, np.nan, "layer 2 [convolutional] biases"),
        (FLOATS - 1, -np.inf, "layer 3 [convolutional] before [region] weights"),
    ],
)
def test_broken_values_name_the_layer(tmp_path: Path, index: int, value: float, message: str):
    values = floats()
    values[index] = value
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        read_weights(written(tmp_path / "bad.weights", SHORT, values), net)
    assert message in str(caught.value)
    assert unchanged(net, before)


def test_a_broken_network_is_not_written(tmp_path: Path):
    net = network()
    with torch.no_grad():
        net.head.obj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="layer 3"):
        write_weights(tmp_path / "x.weights", net)
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_read_or_written(tmp_path: Path):
    (tmp_path / "folder.weights").mkdir()
    for name in ("none.weights", "folder.weights", "none.pth", "none.safetensors", "nul\0.weights"):
        with pytest.raises(InputError, match="cannot read"):
            load_checkpoint(tmp_path / name, network())
    with pytest.raises(InputError):
        write_weights(tmp_path / "folder.weights", network())
    for name in ("x.onnx", "weights", "x.weights.gz"):
        with pytest.raises(InputError, match=r"use \.weights, \.safetensors, \.pt"):
            load_checkpoint(tmp_path / name, network())


def saved(path: Path, state: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.th", "X.PT"])
def test_checkpoints_come_back(tmp_path: Path, name: str):
    net, other = network(), network()
    load_checkpoint(saved(tmp_path / name, net.state_dict()), other)
    assert unchanged(other, net.state_dict())


def test_wrapped_and_prefixed_checkpoints(tmp_path: Path):
    net = network()
    state = {f"module.{name}": value for name, value in net.state_dict().items() if "num_batches" not in name}
    for wrapped in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        other = network()
        load_checkpoint(saved(tmp_path / "x.pth", wrapped), other)
        assert unchanged(other, net.state_dict())


class Reducer:
    """A pickle of this runs code where it is opened without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, protocol: str):
    path, trap = tmp_path / "evil.pth", tmp_path / "ran"
    if protocol == "torch":
        torch.save({"state_dict": Reducer(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Reducer(trap)))
    with pytest.raises(InputError, match="not a torch checkpoint of tensors only"):
        load_checkpoint(path, network())
    assert not trap.exists()


def test_checkpoints_of_something_else(tmp_path: Path):
    good = network().state_dict()
    cases = {
        "lacks head.obj.bias": {k: v for k, v in good.items() if k != "head.obj.bias"},
        "has the unknown fc.weight": {**good, "fc.weight": torch.zeros(1)},
        "head.obj.bias is (3,), not (2,)": {**good, "head.obj.bias": torch.zeros(3)},
        "head.obj.bias is torch.int8, not floating": {
            **good,
            "head.obj.bias": torch.zeros(2, dtype=torch.int8),
        },
        "head.obj.bias values hold 2 values that are NaN": {
            **good,
            "head.obj.bias": torch.full((2,), torch.nan),
        },
        "variances hold 4 negative": {**good, "layers.0.bn.running_var": -torch.ones(4)},
    }
    for message, state in cases.items():
        for suffix in (".pt", ".safetensors"):
            net = network()
            before = {name: value.clone() for name, value in net.state_dict().items()}
            with pytest.raises(InputError) as caught:
                load_checkpoint(saved(tmp_path / f"x{suffix}", state), net)
            assert message in str(caught.value)
            assert unchanged(net, before)
    for state in (
        [1, 2],
        {},
        {"head.obj.bias": 3},
        torch.zeros(3),
        {"state_dict": {1: 2}},
        {1: torch.zeros(1)},
    ):
        with pytest.raises(InputError):
            load_checkpoint(saved(tmp_path / "x.pt", state), network())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_checkpoints_load_or_are_input_errors(tmp_path: Path, data: st.DataObject):
    suffix = data.draw(st.sampled_from([".pt", ".safetensors", ".weights"]))
    path = tmp_path / f"x{suffix}"
    if suffix == ".weights":
        write_weights(path, network())
    else:
        saved(path, network().state_dict())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    net = network()
    try:
        load_checkpoint(path, net)
    except InputError as error:
        assert "\n" not in str(error)
    assert all(value.isfinite().all() for value in net.state_dict().values())


@needs_shared
@pytest.mark.parametrize("name", YOLOLITE)
def test_yololite_files_come_back_byte_for_byte(tmp_path: Path, name: str):
    source = next(SHARED.glob(f"{name}*.weights"))
    net = YoloV2.from_cfg(SHARED / f"{name}.cfg")
    load_checkpoint(source, net)
    assert (weights_bytes(net, wide=False) - 16) // 4 == YOLOLITE[name]
    write_weights(tmp_path / "out.weights", net)
    assert (tmp_path / "out.weights").read_bytes() == source.read_bytes()


@needs_shared
def test_weights_of_another_network_name_both_sizes():
    net = YoloV2.from_cfg(SHARED / "voc-trial3-bn.cfg")
    with pytest.raises(InputError, match=r"holds 2,289,284 bytes.* 2,296,772 .* 2,296,776"):
        load_checkpoint(SHARED / "voc-trial3-noBatch.weights", net)
