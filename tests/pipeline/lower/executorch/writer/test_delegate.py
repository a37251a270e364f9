"""The .pte that is written directly, beside the one that ExecuTorch's exporter makes of the same graph."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import Builder, f32, inputs_for, random_graph
from operation_checks import ALL, integer_of, unary
from pte_files import graph_of, kinds_of, opened, planned
from torch import Tensor, nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.executorch.writer.delegate import written, written_float
from paredown.pipeline.lower.executorch.writer.recorder import NotWritten
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, in_int4
from paredown.pipeline.lower.parity import compare

ROOT = Path(__file__).parents[5]


def assert_exact(graph: IntegerGraph) -> bytes:
    """Written, loaded, and no other codes than the reference's."""
    data = written(graph)
    found = compare(graph, executorch.load(data), inputs_for(graph, 2))
    assert found.values and not found.differing
    return data


def plain() -> IntegerGraph:
    """All of it is in the order in which the exporter writes it too."""
    b = Builder(1)
    x = b.conv("input", 8, clamp="relu")
    wide = b.conv(x, 8, stride=2, groups=8, clamp="relu6")
    y = b.add(wide, b.conv(x, 8, 1, 2, (0, 0, 0, 0)), relu=True)
    return b.graph(b.mean(b.leaky(b.pool(y))))


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_of_every_kind_have_the_references_codes(seed):
    assert_exact(random_graph(seed, expose=seed % 2 == 0))


def test_a_plain_network_is_the_exporters_in_all_but_the_names_of_a_profile():
    graph = plain()
    ours, theirs = assert_exact(graph), executorch.export_integer(graph)
    assert (theirs.subgraphs, theirs.undelegated) == (1, ())
    assert graph_of(ours) == graph_of(theirs.data)
    assert len(ours) == len(theirs.data)
    one, other = opened(ours), opened(theirs.data)
    assert one.named_data == other.named_data
    assert one.program.execution_plan == other.program.execution_plan
    assert one.program.constant_segment == other.program.constant_segment


@pytest.mark.slow
@given(st.integers(100, 10_000))
@settings(max_examples=4, deadline=None)
def test_random_graphs_beside_the_exporter(seed):
    graph = random_graph(seed)
    ours, theirs = written(graph), executorch.export_integer(graph).data
    for x in inputs_for(graph, 2):
        pairs = zip(executorch.load(ours)(x[None]), executorch.load(theirs)(x[None]), strict=True)
        assert all((one == other).all() for one, other in pairs)
    assert len(ours) <= 1.01 * len(theirs)
    assert planned(ours) == planned(theirs)
    assert len(kinds_of(ours)) <= len(kinds_of(theirs))


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, act) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.first(x), self.last)


def attention(x: Tensor, last: nn.Module) -> Tensor:
    rows = x.reshape(1, 2, 4, 64)
    return torch.matmul(F.softmax(torch.matmul(rows.transpose(2, 3), rows), -1), rows.transpose(2, 3))


NETWORKS = {
    "sigmoid": lambda x, last: last(torch.sigmoid(x)),
    "silu": lambda x, last: last(F.silu(x)),
    "hardswish": lambda x, last: last(F.hardswish(x)),
    "gelu": lambda x, last: last(F.gelu(x)),
    "mish": lambda x, last: last(F.mish(x)),
    "elu": lambda x, last: last(F.elu(x)),
    "prelu": lambda x, last: last(F.prelu(x, torch.full((8,), 0.2))),
    "softmax": lambda x, last: F.softmax(last(x), 1),
    "log_softmax": lambda x, last: F.log_softmax(last(x).mean((2, 3)), 1),
    "squeeze": lambda x, last: last(x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "sub": lambda x, last: last(x) - x,
    "constant": lambda x, last: last(x + torch.arange(8.0).reshape(1, 8, 1, 1)),
    "concat": lambda x, last: last(torch.cat([x[:, :4], last(x)[:, 4:]], 1)),
    "seven": lambda x, last: torch.cat([x] * 7, 1),
    "average": lambda x, last: last(F.avg_pool2d(x, 3, 1, 1)),
    "resize": lambda x, last: last(F.interpolate(x, scale_factor=2)),
    "bilinear": lambda x, last: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "shuffle": lambda x, last: last(F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    "slice": lambda x, last: x[:, 1:5, 2:],
    "steps": lambda x, last: last(x[:, :, ::2, ::2]),
    "group norm": lambda x, last: last(F.group_norm(x, 2)),
    "layer norm": lambda x, last: F.layer_norm(last(x), (8, 8, 8)),
    "unit norm": lambda x, last: F.normalize(last(x), dim=1),
    "attention": attention,
    "clamp": lambda x, last: last(x.clamp(-0.5, 0.5)),
    "twice": lambda x, last: (x, last(x), x),
}


#: What is of several operations in float, and in no more than one delegate only on codes.
ON_CODES = {"attention", "log_softmax", "mish", "prelu", "softmax", "unit norm"}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_networks_have_between_their_layers(name):
    torch.manual_seed(0)
    network = Between(NETWORKS[name]).eval()
    assert_exact(integer_of(network, (1, 3, 8, 8)))
    graph, x = trace(network, (1, 3, 8, 8)), torch.randn(1, 3, 8, 8)
    if name in ON_CODES:
        with pytest.raises(NotWritten):
            written_float(graph)
        return
    with torch.no_grad():
        expected = network(x)
    found = executorch.load(written_float(graph))(x.numpy())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy().reshape(one.shape), atol=1e-5)


def test_axes_that_become_those_of_memory_cost_nothing():
    """The head of a detector: channels last, then a row for each place."""
    b = Builder(2)
    x = b.permute(b.conv("input", 6), (0, 2, 3, 1))
    rows = b.reshape(x, (1, 132, 6))
    assert kinds_of(assert_exact(b.graph(rows))) == ["StaticTranspose", "Conv2d", "StaticReshape"]


def test_a_pad_is_computed_on_codes():
    b = Builder(3)
    data = assert_exact(b.graph(b.conv("input", 4, 3, 2, (0, 1, 0, 1))))
    assert kinds_of(data) == ["StaticConstantPad", "StaticTranspose", "Conv2d", "StaticTranspose"]


def test_both_readers_of_a_tensor_share_one_transpose():
    b = Builder(4)
    both = b.graph(b.conv("input", 4), b.conv("input", 3, 1))
    assert kinds_of(assert_exact(both)).count("StaticTranspose") == 3


def test_four_bits_are_written_as_four_bits():
    b = Builder(5, (1, 8, 1, 1))
    graph = b.graph(b.linear(b.reshape("input", (1, 8)), 6))
    node = graph.nodes[-1]
    small = IntegerGraph((*graph.nodes[:-1], _clipped(node)), graph.outputs)
    four = in_int4(small, {"linear"})
    assert four.nodes[-1].int4
    data = assert_exact(four)
    types = [value["xvalue_union"]["tensor_value"]["datatype"] for value in graph_of(data)["xvalues"]]
    assert types.count("xnn_datatype_qcint4") == 1
    assert len(data) < len(written(small)) + 1


def _clipped(node: IntegerNode) -> IntegerNode:
    return replace(node, weight=np.clip(node.weight, -8, 7))


def test_an_output_that_is_the_input_is_a_copy():
    start = IntegerNode("input", "input", (), ALL.shape, Affine(f32(0.1), 3))
    data = written(IntegerGraph((start,), ("input", "input")))
    assert all((out == ALL).all() for out in executorch.load(data)(ALL))


def test_what_is_not_known_goes_through_the_exporter():
    graph = unary("max_pool2d", Affine(f32(0.1), 0), Affine(f32(0.1), 0), kernel=(1, 1), stride=(2, 2),
                  padding=(0, 0, 0, 0))  # fmt: skip
    last = graph.nodes[-1]
    gaps = IntegerGraph(
        (graph.nodes[0], IntegerNode("y", last.kind, last.inputs, (1, 4, 4, 4), last.out, attrs=last.attrs)),
        ("y",),
    )
    with pytest.raises(NotWritten, match="gaps"):
        written(gaps)
    (found,) = executorch.load(executorch.lower_integer(gaps).data)(ALL)
    assert (found == ALL[:, :, ::2, ::2]).all()


def test_neither_torchs_compiler_nor_the_exporter_is_imported():
    code = (
        "import sys, lowering_networks as n\n"
        "b = n.Builder(1)\n"
        "g = b.graph(b.linear(b.reshape(b.mean(b.conv('input', 8, clamp='relu')), (1, 8)), 3))\n"
        "from paredown.pipeline.lower.executorch.program import lower_integer\n"
        "lower_integer(g)\n"
        "print(*{name for name in sys.modules if name in ('torch._dynamo', 'executorch')})\n"
    )
    paths = f"{ROOT / 'tests' / 'helpers'}:{ROOT}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": paths, "PATH": ""},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == []
