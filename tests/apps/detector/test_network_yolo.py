"""network.py: the published sizes, and darknet's own loops as oracles for what is odd about them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.apps.detector.darknet.darknet import builtin_cfg, parse_cfg
from paredown.apps.detector.darknet.layers import MaxPool, Reorg, output_shapes
from paredown.apps.detector.network import ConvLayer, MaxPoolLayer, ReorgLayer, YoloV2
from paredown.apps.detector.network.weights import head_rows
from paredown.targets.errors import UsageError

NANO_MAX_PARAMETERS, NANO_MAX_MACS = 400_000, 60e6


def conv_macs(network: nn.Module, width: int, height: int) -> int:
    """Multiply-accumulates of all convolutions, counted as they run, on shapes only."""
    counts: list[int] = []

    def count(conv: nn.Module, inputs: object, output: torch.Tensor) -> None:
        counts.append(output[0].numel() * conv.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(torch.zeros(1, 3, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def on_meta(name: str) -> YoloV2:
    with torch.device("meta"):
        return YoloV2.builtin(name).eval()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# darknet's published networks, at 416 x 416
@pytest.mark.parametrize(
    ("name", "gmac", "count"),
    [("yolov2-voc", "14.680", 50_655_389), ("yolov2-tiny-voc", "3.4855", 15_861_773)],
)
def test_published_size(name: str, gmac: str, count: int):
    network = on_meta(name)
    assert parameters(network) == count
    digits = len(gmac.partition(".")[2])
    assert f"{conv_macs(network, 416, 416) / 1e9:.{digits}f}" == gmac
    assert (network.width, network.height, network.stride, network.classes) == (416, 416, 32, 20)


def test_nano_is_small():
    network = on_meta("yolov2-nano")
    assert parameters(network) < NANO_MAX_PARAMETERS
    assert conv_macs(network, 160, 160) < NANO_MAX_MACS
    assert network.stride == 16


def reorg_loop(x: np.ndarray, stride: int) -> np.ndarray:
    """darknet's reorg_cpu as the reorg layer calls it (forward=0): out[in_index] = x[out_index]."""
    c, h, w = x.shape
    flat, out = x.ravel(), np.empty(x.size, x.dtype)
    out_c = c // (stride * stride)
    for k in range(c):
        for j in range(h):
            for i in range(w):
                in_index = i + w * (j + h * k)
                c2, offset = k % out_c, k // out_c
                w2, h2 = i * stride + offset % stride, j * stride + offset // stride
                out[in_index] = flat[w2 + w * stride * (h2 + h * stride * c2)]
    return out.reshape(c * stride * stride, h // stride, w // stride)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2))
def test_reorg_is_darknets_loop(groups: int, rows: int, columns: int, stride: int, batch: int):
    c, h, w = groups * stride**2, rows * stride, columns * stride
    x = torch.arange(batch * c * h * w, dtype=torch.float32).reshape(batch, c, h, w)
    out = ReorgLayer(Reorg(stride))(x)
    for image in range(batch):
        np.testing.assert_array_equal(out[image].numpy(), reorg_loop(x[image].numpy(), stride))


@pytest.mark.parametrize(("height", "alone"), [(20, True), (28, True), (26, False), (10, False)])
def test_reorg_channels_that_must_be_pruned_together(height: int, alone: bool):
    """Channel m goes to m, c + m, 2c + m, 3c + m: alone if H % 4 == 0, else mixed within 4i ... 4i + 3."""
    c = 16
    reorg = ReorgLayer(Reorg(2))
    for m in range(c):
        x = torch.zeros(1, c, height, height)
        x[:, m] = 1
        reached = set(torch.nonzero(reorg(x)[0].sum((1, 2))).ravel().tolist())
        own = {offset * c + m for offset in range(4)}
        family = {offset * c + m // 4 * 4 + t for offset in range(4) for t in range(4)}
        assert reached <= family
        if alone:
            assert reached == own
    assert (reached == own) == alone


def maxpool_loop(x: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    """darknet's forward_maxpool_layer."""
    c, h, w = x.shape
    out_h, out_w = (h + padding - size) // stride + 1, (w + padding - size) // stride + 1
    offset = -(padding // 2)  # C divides towards zero
    out = np.empty((c, out_h, out_w), x.dtype)
    for k in range(c):
        for i in range(out_h):
            for j in range(out_w):
                best = -np.inf
                for n in range(size):
                    for m in range(size):
                        cur_h, cur_w = offset + i * stride + n, offset + j * stride + m
                        if 0 <= cur_h < h and 0 <= cur_w < w:
                            best = max(best, x[k, cur_h, cur_w])
                out[k, i, j] = best
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.data())
def test_maxpool_is_darknets_loop(height: int, width: int, size: int, stride: int, data: st.DataObject):
    padding = data.draw(st.integers(0, size - 1))
    if min(height, width) + padding < size:
        return
    x = torch.from_numpy(
        np.random.default_rng(height * width).normal(-5, 1, (2, height, width)).astype(np.float32)
    )
    out = MaxPoolLayer(MaxPool(size, stride, padding))(x[None])[0]
    np.testing.assert_array_equal(out.numpy(), maxpool_loop(x.numpy(), size, stride, padding))


def test_maxpool_of_size_2_and_stride_1_keeps_the_size_and_pads_right_and_bottom():
    x = -torch.arange(1.0, 10).reshape(1, 1, 3, 3)  # all negative: a zero border would win
    out = MaxPoolLayer(MaxPool(2, 1, 1))(x)
    assert out.tolist() == x.tolist()
    assert MaxPoolLayer(MaxPool(2, 2, 1))(x).tolist() == [[[[-1.0, -3.0], [-7.0, -9.0]]]]


def test_batch_norm_is_close_to_darknets():
    """darknet: (x - mean) / (sqrt(variance) + 1e-6), for variances as small and large as yololite's."""
    layer = YoloV2.builtin("yolov2-nano").eval().layers[0]
    assert isinstance(layer, ConvLayer) and layer.bn is not None
    bn = layer.bn
    variances = torch.logspace(np.log10(0.009), np.log10(16.0), bn.num_features)
    bn.running_var.copy_(variances)
    bn.running_mean.uniform_(-1, 1)
    x = torch.randn(4, bn.num_features, 3, 3)
    mean = bn.running_mean[None, :, None, None]
    expected = (x - mean) / (variances.sqrt() + 1e-6)[None, :, None, None]
    torch.testing.assert_close(bn(x), expected, rtol=6e-5, atol=1e-6)


def test_split_head_is_one_convolution_in_darknets_order():
    torch.manual_seed(0)
    network = YoloV2.builtin("yolov2-nano").eval()
    head, anchors, classes = network.head, 5, 10
    merged = nn.Conv2d(96, anchors * (5 + classes), 1)
    with torch.no_grad():
        x = torch.randn(2, 96, 4, 6)
        # darknet's layout: per anchor x, y, w, h, objectness, classes
        by_anchor = merged(x).reshape(2, anchors, 5 + classes, 4, 6)
        w, b = (t.reshape(anchors, 5 + classes, -1) for t in (merged.weight, merged.bias))
        for conv, begin, end in ((head.xy, 0, 2), (head.wh, 2, 4), (head.obj, 4, 5), (head.cls, 5, 15)):
            conv.weight.copy_(w[:, begin:end].reshape(conv.weight.shape))
            conv.bias.copy_(b[:, begin:end].reshape(conv.bias.shape))
        for output, (begin, end) in zip(head(x), ((0, 2), (2, 4), (4, 5), (5, 15)), strict=True):
            expected = by_anchor[:, :, begin:end].reshape(output.shape)
            torch.testing.assert_close(output, expected)
        stacked = torch.cat(head(x), 1)
        torch.testing.assert_close(stacked[:, torch.from_numpy(head_rows(anchors, classes))], merged(x))


@pytest.mark.parametrize("name", ["yolov2-nano", "yolov2-tiny-voc", "yolov2-voc"])
def test_export_gives_plain_operators(name: str):
    network = on_meta(name)
    x = torch.zeros(1, 3, network.height, network.width, device="meta")
    program = torch.export.export(network, (x,))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert used <= {
        "aten.conv2d.default", "aten.batch_norm.default", "aten.leaky_relu.default", "aten.cat.default",
        "aten.max_pool2d.default", "aten.pad.default", "aten.reshape.default", "aten.permute.default",
    }  # fmt: skip
    assert ("aten.pad.default" in used) == (name == "yolov2-tiny-voc"), "only the stride-1 pool needs padding"
    cells = network.height // network.stride
    shapes = [tuple(t.shape) for t in network(x)]
    assert shapes == [(1, n, cells, cells) for n in (10, 10, 5, 5 * network.classes)]


def test_the_exported_program_computes_the_same():
    torch.manual_seed(1)
    network = YoloV2.builtin("yolov2-nano").eval()
    x = torch.rand(1, 3, 160, 160)
    program = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        for a, b in zip(network(x), program(x), strict=True):
            torch.testing.assert_close(a, b)


def test_other_sizes_batches_and_copies():
    network = YoloV2.builtin("yolov2-nano").eval()
    with torch.no_grad():
        x = torch.rand(3, 3, 128, 192)
        xy, _, obj, _ = network(x)
        assert xy.shape == (3, 10, 8, 12) and obj.shape == (3, 5, 8, 12)
        for a, b in zip(copy.deepcopy(network)(x), network(x), strict=True):
            assert torch.equal(a, b)
    assert output_shapes(network.cfg, 192, 128)[-1] == (75, 8, 12)


def test_every_layer_trains():
    torch.manual_seed(0)
    network = YoloV2.builtin("yolov2-nano").train()
    sum(output.square().mean() for output in network(torch.rand(2, 3, 160, 160))).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_the_cfg_follows_the_widths_after_pruning():
    network = YoloV2.builtin("yolov2-nano").eval()
    first, after = network.layers[2], network.layers[4]
    assert isinstance(first, ConvLayer) and isinstance(after, ConvLayer) and first.bn is not None
    keep = torch.arange(16)
    first.conv.weight = nn.Parameter(first.conv.weight[keep])
    first.conv.out_channels = 16
    for name in ("weight", "bias"):
        setattr(first.bn, name, nn.Parameter(getattr(first.bn, name)[keep]))
    for name in ("running_mean", "running_var"):
        setattr(first.bn, name, getattr(first.bn, name)[keep])
    first.bn.num_features = 16
    after.conv.weight = nn.Parameter(after.conv.weight[:, keep])
    after.conv.in_channels = 16
    thin = YoloV2.from_cfg(network.current_cfg()).eval()
    thin.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        for a, b in zip(thin(x), network(x), strict=True):
            assert torch.equal(a, b)


def test_grouped_relu_and_linear_layers():
    text = "[net]\nwidth=8\nheight=8\nchannels=4\n"
    text += "[convolutional]\nfilters=8\nsize=3\npad=1\ngroups=4\nactivation=relu\n"
    text += (
        "[convolutional]\nfilters=6\nactivation=linear\n[region]\nanchors=1,1\nnum=1\nclasses=1\nsoftmax=1\n"
    )
    network = YoloV2.from_cfg(parse_cfg(text)).eval()
    layer = network.layers[0]
    assert isinstance(layer, ConvLayer) and layer.conv.groups == 4 and layer.conv.weight.shape == (8, 1, 3, 3)
    with torch.no_grad():
        assert layer(torch.randn(1, 4, 8, 8)).min() == 0
        assert [t.shape[1] for t in network(torch.zeros(1, 4, 8, 8))] == [2, 2, 1, 1]


def test_an_unknown_network_is_a_usage_error():
    with pytest.raises(UsageError, match="no built-in network 'yolov9'"):
        YoloV2.builtin("yolov9")


def test_from_cfg_takes_a_parsed_cfg_and_a_file(tmp_path):
    cfg = builtin_cfg("yolov2-nano")
    from paredown.apps.detector.darknet.write import format_cfg

    path = tmp_path / "copy.cfg"
    path.write_text(format_cfg(cfg))
    states = [YoloV2.from_cfg(source).state_dict() for source in (cfg, path, str(path))]
    assert states[0].keys() == states[1].keys() == states[2].keys()
