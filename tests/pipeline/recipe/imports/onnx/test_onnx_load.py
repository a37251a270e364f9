"""Whole ONNX files: what both exporters of torch write, random graphs, layouts, batches."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import compared, floats, model_of, saved, small_net
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.trial import couple_on_trial
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.imports.read import read
from paredown.targets.errors import InputError


def exported(network: nn.Module, shape: tuple[int, ...], path: Path, dynamo: bool, **options: Any) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (torch.zeros(shape),), str(path), dynamo=dynamo, **options)
    return path


class Block(nn.Module):
    """A residual block with squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        share = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return x + y * share


class Net(nn.Module):
    """Blocks, a shuffle, an attention over places, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.Hardswish())
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.norm = nn.LayerNorm(12)
        self.query = nn.Linear(12, 36)
        self.head = nn.Linear(12, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.query(y).chunk(3, -1)
        y = y + torch.softmax(q @ k.transpose(1, 2) / 12**0.5, -1) @ v
        return self.head(y.mean(1))


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torch_exports_is_imported(tmp_path, dynamo):
    network = Net()
    found = read(exported(network, (1, 3, 16, 16), tmp_path / "net.onnx", dynamo))
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        far = (found.module(x[:1]) - network(x[:1])).abs().max()
    assert float(far) < 1e-5
    assert found.module.get_submodule("stem.0").weight.shape == (12, 3, 3, 3)


def test_batch_norm_stays_where_the_file_has_it(tmp_path):
    network = Net()
    keep = torch.onnx.TrainingMode.PRESERVE
    path = exported(network, (1, 3, 16, 16), tmp_path / "net.onnx", False, training=keep)
    found = read(path)
    norms = [name for name, module in found.module.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ["blocks.0.norm", "blocks.1.norm"]
    state, own = found.module.state_dict(), network.state_dict()
    for name in norms:
        assert torch.equal(state[f"{name}.running_var"], own[f"{name}.running_var"])
        assert torch.equal(state[f"{name}.weight"], own[f"{name}.weight"])


def test_an_import_traces_and_couples_as_the_original(tmp_path):
    network = Net()
    path = exported(network, (1, 3, 16, 16), tmp_path / "net.onnx", False)
    found = read(path)
    ours, theirs = (trace(module, (1, 3, 16, 16)) for module in (found.module, network))
    assert ours.macs == theirs.macs and len(ours.nodes) <= len(theirs.nodes)
    groups = [sorted((g.units, g.locked == "") for g in couple_on_trial(m, g))
              for m, g in ((found.module, ours), (network, theirs))]  # fmt: skip
    assert groups[0] == groups[1]


def test_an_import_takes_more_than_one_image_and_trains(tmp_path):
    network = Net()
    found = read(exported(network, (1, 3, 16, 16), tmp_path / "net.onnx", False))
    x = torch.randn(3, 3, 16, 16)
    assert torch.allclose(found.module(x), network(x), atol=1e-5)
    found.module.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in found.module.parameters())


def test_errors_of_tracing_name_the_layer(tmp_path):
    node = helper.make_node("ReduceMax", ["x"], ["y"], "all_of_it", keepdims=0)
    found = read(saved(tmp_path, model_of([node], (1, 3, 8, 8))))
    with pytest.raises(InputError, match="layer all_of_it"):
        trace(found.module, found.shape)


# -- layouts and batches -------------------------------------------------------------------------------------


def test_images_with_channels_last_lose_their_transpose(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w"], ["y"], "conv"),
    ]
    path = saved(tmp_path, model_of(nodes, ("n", "h", "w", 3), {"w": floats(4, 3, 3, 3)}))
    for shape in ((8, 6), (8, 6, 3), (3, 8, 6)):
        found, far = compared(path, shape)
        assert found.shape == (1, 3, 8, 6) and far < 1e-6
        assert not [m for m in found.module.modules() if "permute" in repr(m)]
        assert any("(N, H, W, C)" in note for note in found.notes)


def test_a_transpose_that_is_not_alone_stays(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["x"], ["b"], "mean", axes=[1, 2]),
        helper.make_node("ReduceMean", ["a"], ["c"], "other", axes=[2, 3]),
    ]
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 8, 6, 3), outputs=("b", "c"))))
    assert found.shape == (1, 8, 6, 3) and far < 1e-6


def test_a_batch_of_many_becomes_one(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Reshape", ["a", "s"], ["b"], "shape"),
        helper.make_node("Expand", ["b", "e"], ["y"], "expand"),
    ]
    tensors = {"w": floats(4, 3, 3, 3), "s": np.array([10, 4, 1, 36]), "e": np.array([10, 4, 2, 36])}
    found, far = compared(saved(tmp_path, model_of(nodes, (10, 3, 8, 8), tensors)))
    assert found.shape == (1, 3, 8, 8) and far < 1e-6
    assert found.notes == ("the file is for a batch of 10; here it is 1",)


def test_whole_numbers_as_input_are_floats_here(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=1), helper.make_node("Mul", ["a", "w"], ["y"])]
    found = read(saved(tmp_path, model_of(nodes, (1, 4), {"w": floats(4)}, kind=TensorProto.UINT8)))
    assert found.notes == ("the input x is uint8; here it is float32, of the same whole numbers",)
    assert torch.equal(found.module(torch.full((1, 4), 200.0)), torch.from_numpy(floats(4) * 200)[None])


def test_an_output_that_is_constant_is_left_out_and_it_is_said(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["z"], to=1),
    ]
    found = read(saved(tmp_path, model_of(nodes, (1, 4), outputs=("y", "z"))))
    assert found.outputs == ("y",)
    assert found.notes == ("the output z does not depend on the input and is left out",)


@pytest.mark.parametrize(
    ("order", "shape", "here"), [([2, 0, 1], (4, 1, 3), (1, 4, 3)), ([1, 2], (3, 4), (1, 3, 4))]
)
def test_an_output_gets_its_batch_first_and_it_is_said(tmp_path, order, shape, here):
    first = helper.make_node("Relu", ["x"], ["a"])
    nodes = [first, helper.make_node("Transpose", ["a"], ["y"], perm=order)]
    if len(order) == 2:
        nodes = [first, helper.make_node("Squeeze", ["a", "zero"], ["y"])]
    path = saved(tmp_path, model_of(nodes, (1, 3, 4), {"zero": np.array([0])}))
    found, far = compared(path)
    assert far == 0
    assert tuple(found.module(torch.zeros(found.shape)).shape) == here
    words = ["x".join(map(str, each)) for each in (shape, here)]
    assert found.notes == (f"the output y is {words[0]} in the file; here it is {words[1]}, the batch first",)
    assert trace(found.module, found.shape)[trace(found.module, found.shape).outputs[0]].shape == here


def test_one_value_for_each_image_is_traced_where_it_is_spread_again(tmp_path):
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["a"], "least", axes=[1, 2], keepdims=0),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Sub", ["x", "b"], ["y"]),
    ]
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 3, 4), {"shape": np.array([1, 1, 1])})))
    graph = trace(found.module, found.shape)
    assert far == 0 and graph["least"].shape == (1, 1, 1)
    x = torch.randn(2, 3, 4)
    assert torch.equal(graph.run(x)[graph.outputs[0]], x - x.amin((1, 2), keepdim=True))


def test_an_embedding_by_comparison_is_refused_in_one_line(tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["a"]),
        helper.make_node("Equal", ["a", "rows"], ["b"], "one_hot"),
        helper.make_node("Cast", ["b"], ["c"], to=1),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    tensors = {"last": np.array([2]), "rows": np.arange(9, dtype=np.float32), "w": floats(9, 2)}
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 4), tensors)))
    assert far == 0
    with pytest.raises(
        InputError, match="layer one_hot: operation eq compares rounded values with 9 numbers"
    ):
        trace(found.module, found.shape)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 20, 22])
def test_opsets(tmp_path, opset):
    found, far = compared(small_net(tmp_path, opset=opset))
    assert found.format == f"ONNX, opset {opset}" and far < 1e-6


# -- random graphs -------------------------------------------------------------------------------------------


KINDS = "conv depthwise act norm pool add cat gate shuffle resize split pad".split()


def random_model(draw: Any) -> Any:
    """Layers in a row, with branches that join again."""
    nodes, tensors, last, channels, size = [], {}, "x", 3, 8

    def add(kind: str, *names: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(kind, list(names), [f"v{len(nodes)}"], f"{kind}_{len(nodes)}", **attrs))
        return nodes[-1].output[0]

    def weight(*shape: int, positive: bool = False) -> str:
        name = f"w{len(tensors)}"
        values = floats(*shape, seed=len(tensors))
        tensors[name] = np.abs(values) + 0.5 if positive else values
        return name

    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(KINDS))
        if kind == "conv":
            out, k = draw(st.integers(1, 6)), draw(st.sampled_from((1, 3)))
            last = add("Conv", last, weight(out, channels, k, k), weight(out), pads=[k // 2] * 4)
            channels = out
        elif kind == "depthwise":
            last = add("Conv", last, weight(channels, 1, 3, 3), group=channels, pads=[0, 1, 2, 1])
        elif kind == "act":
            last = add(
                draw(st.sampled_from(("Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Softplus"))), last
            )
        elif kind == "norm":
            parts = [weight(channels) for _ in range(3)]
            last = add("BatchNormalization", last, *parts, weight(channels, positive=True))
        elif kind == "pool" and size >= 4:
            op = draw(st.sampled_from(("MaxPool", "AveragePool")))
            last, size = add(op, last, kernel_shape=[2, 2], strides=[2, 2]), size // 2
        elif kind == "add":
            last = add("Add", last, add("Relu", last))
        elif kind == "cat":
            last, channels = add("Concat", last, add("Tanh", last), axis=1), 2 * channels
        elif kind == "gate":
            mean = add("GlobalAveragePool", last)
            last = add("Mul", last, add("Sigmoid", add("Conv", mean, weight(channels, channels, 1, 1))))
        elif kind == "shuffle" and channels % 2 == 0:
            for values in ((1, 2, channels // 2, size, size), (1, channels, size, size)):
                tensors[f"s{len(tensors)}"] = np.array(values)
            up, down = list(tensors)[-2:]
            last = add("Reshape", add("Transpose", add("Reshape", last, up), perm=[0, 2, 1, 3, 4]), down)
        elif kind == "resize" and size <= 8:
            tensors[name := f"s{len(nodes)}"] = np.array([1, 1, 2, 2], np.float32)
            mode = draw(st.sampled_from(("nearest", "linear")))
            last, size = add("Resize", last, "", name, mode=mode), size * 2
        elif kind == "split" and channels % 2 == 0:
            tensors[name := f"s{len(nodes)}"] = np.array([channels // 2] * 2)
            parts = [f"p{len(nodes)}a", f"p{len(nodes)}b"]
            nodes.append(helper.make_node("Split", [last, name], parts, f"Split_{len(nodes)}", axis=1))
            last, channels = add("Sub", *parts), channels // 2
        elif kind == "pad":
            tensors[name := f"s{len(nodes)}"] = np.array([0, 0, 0, 1, 0, 0, 1, 0])
            last, size = add("Pad", last, name, mode="constant"), size + 1
    return model_of([*nodes, helper.make_node("Identity", [last], ["y"])], (1, 3, 8, 8), tensors)


@given(st.data())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_graphs_are_those_of_onnxruntime(tmp_path, data):
    model = random_model(data.draw)
    if len(model.graph.node) > 1:
        _, far = compared(saved(tmp_path, model))
        assert far < 1e-5
