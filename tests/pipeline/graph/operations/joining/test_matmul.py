"""Products of two activations, and attention: torch's floats, exact on both runtimes in one delegate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import Builder, f32
from operation_checks import assert_codes, assert_cut, assert_float, assert_network_exact, images
from prune_networks import conv, network
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut, load_pruned, save_pruned
from paredown.pipeline.compress.coupling.trial import couple_on_trial
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import difference
from paredown.targets.errors import InputError
from paredown.targets.mcu import tflm

SHAPE = (1, 10, 6)


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), -1, 2, x.shape[-1] // 2).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), -1, 8)


def attention(m: nn.Module, x: Tensor, **options: object) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    return m.o(joined(F.scaled_dot_product_attention(q, k, v, **options)))


def biased(m: nn.Module, x: Tensor) -> Tensor:
    places = torch.arange(10.0)
    return attention(m, x, attn_mask=-(places[None] - places[:, None]).abs()[None, None] / 4)


def by_hand(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    return m.o(joined((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v))


def one_head(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x) for layer in (m.q, m.k, m.v))
    return m.o(torch.bmm(torch.bmm(q, k.transpose(-1, -2)).softmax(-1), v))


def queried(m: nn.Module, x: Tensor) -> Tensor:
    q = torch.linspace(-1, 1, 48).reshape(1, 2, 6, 4).expand(len(x), -1, -1, -1)
    return m.o(joined(F.scaled_dot_product_attention(q, heads(m.k(x)), heads(m.v(x)))))


def built(function) -> nn.Module:
    return network(function, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(8, 5))


@pytest.mark.parametrize("function", [pytest.param(attention, marks=pytest.mark.slow), one_head])
def test_the_floats_are_those_of_torch(function):
    assert_float(built(function), SHAPE)


@pytest.mark.parametrize("function", [biased, by_hand, one_head])
def test_attention_is_exact_on_both_runtimes(function):
    integer = assert_network_exact(built(function), SHAPE)
    assert [node.kind for node in integer].count("matmul") == 2


def test_queries_may_be_constants():
    graph = trace(built(queried), (1, 10, 6))
    x = images(SHAPE, 1)
    torch.testing.assert_close(graph.run(x)[graph.outputs[0]], built(queried)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.003, 0.4])
def test_it_is_exact_at_any_scale_and_equals_a_plain_loop(scale):
    b = Builder(3, (1, 24, 2, 7), scale)
    for name, shape in (("one", (1, 24, 2, 7)), ("two", (1, 7, 2, 24))):
        attrs = {"dims": (0, 3, 2, 1)} if name == "two" else {"dims": (0, 1, 2, 3)}
        b.put("permute", ("input",), shape, scale, b.node("input").out.zero_point, attrs, name=name)
    b.put("matmul", ("one", "two"), (1, 7, 2, 7), f32(scale * scale * 500), 11, {"scale": 0.3}, name="y")
    graph = b.graph("y")
    x = np.random.default_rng(0).integers(-128, 128, (3, 24, 2, 7)).astype(np.int8)
    assert_codes(graph, x, {})
    offset = x[0].astype(int) - graph.input.out.zero_point
    unit = np.float32(np.float64(f32(scale)) ** 2 * 0.3) * np.float32(1 / graph["y"].out.scale)
    found = reference.predict(graph, x[:1])[0][0]
    for h in range(2):
        for m in range(7):
            for n in range(7):
                total = sum(int(offset[k, h, m]) * int(offset[k, h, n]) for k in range(24))
                assert abs(max(-128, min(127, round(float(total * unit)) + 11)) - found[n, h, m]) <= (
                    abs(abs(total * unit) % 1 - 0.5) < 1e-3
                )


def test_a_map_whose_axes_are_in_another_order_is_brought_to_this_one():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        columns = m.a(x).permute(0, 3, 2, 1)
        return columns @ columns.transpose(-1, -2)

    assert_float(network(run, a=conv(3, 8, 3)), (1, 3, 5, 4))


def by_size(m: nn.Module, x: Tensor, head: int = 4) -> Tensor:
    """However many heads there are, each has four features."""
    q, k, v = (
        y.view(len(x), -1, y.shape[-1] // head, head).transpose(1, 2) for y in (m.q(x), m.k(x), m.v(x))
    )
    made = (q @ k.transpose(-1, -2) * 0.5 + m.bias.weight).softmax(-1) @ v
    return m.o(made.transpose(1, 2).reshape(len(x), x.shape[1], -1))


class Given(nn.Module):
    """A number for every score of every head."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, count * 100).reshape(count, 10, 10))


class Attention(nn.Module):
    """It holds how many heads it has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.all_head_size = 3, 12
        self.q, self.k, self.v, self.o = (nn.Linear(a, b) for a, b in ((6, 12), (6, 12), (6, 12), (12, 5)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y(x).view(len(x), -1, self.num_heads, 4).transpose(1, 2) for y in (self.q, self.k, self.v))
        made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(made.reshape(len(x), -1, self.all_head_size))


def of_heads() -> nn.Module:
    layers = {name: nn.Linear(6, 12) for name in "qkv"}
    return network(by_size, **layers, o=nn.Linear(12, 5), bias=Given(3))


@pytest.mark.parametrize("net", [of_heads(), network(lambda m, x: m.a(x), a=Attention())])
def test_heads_are_units_of_all_that_makes_and_reads_them(net):
    groups = assert_cut(net, SHAPE)
    group = next(iter(groups.values()))
    assert (group.units, len(group.makers), group.locked) == (3, 3, "")
    assert {len(unit) for member in group.members if not member.carried for unit in member.channels} == {4}
    assert "head by head" in group.describe()


def test_what_is_added_to_the_scores_of_a_head_goes_with_it():
    net = of_heads()
    graph = trace(net, SHAPE)
    smaller = cut(net, graph, couple(graph), {"q": (0, 2)})
    assert torch.equal(smaller.bias.weight, net.bias.weight[[0, 2]]) and smaller.q.weight.shape == (8, 6)


def test_heads_that_a_module_counts_are_saved_with_it(tmp_path):
    net, x = network(lambda m, x: m.a(x), a=Attention()), images(SHAPE)
    graph = trace(net, SHAPE)
    smaller = cut(net, graph, couple(graph), {"a.q": (1,)})
    save_pruned(smaller, tmp_path / "heads.safetensors")
    again = load_pruned(network(lambda m, x: m.a(x), a=Attention()), tmp_path / "heads.safetensors")
    assert (again.a.num_heads, again.a.all_head_size) == (1, 4)
    assert torch.equal(again(x), smaller(x))


def test_a_forward_that_holds_its_heads_as_a_number_is_locked_on_trial():
    net = built(attention)
    groups = {group.name: group for group in couple_on_trial(net, trace(net, SHAPE))}
    assert "cannot be cut" in groups["q"].locked


def test_of_one_head_the_factors_are_locked_and_the_values_are_free():
    groups = assert_cut(built(one_head), SHAPE)
    assert all("is multiplied in" in groups[name].locked for name in "qk")
    assert groups["v"].units == 8 and not groups["v"].locked


def test_litert_micro_computes_it_too():
    graph = assert_network_exact(built(by_hand), SHAPE)
    x = graph.input.out.quantize(images(SHAPE, 1).numpy())
    found = tflm.run(litert.lower_integer(graph).data, x).outputs[0]
    assert difference(reference.predict(graph, x)[0], found).max_lsb <= 2


def test_a_mask_that_leaves_nothing_out_is_none():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return attention(m, x, attn_mask=torch.ones(1, 1, 10, 10, dtype=torch.bool))

    kinds = [node.kind for node in trace(built(run), SHAPE)]
    assert "constant" not in kinds and kinds.count("matmul") == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dropout_p": 0.5}, "drops values"),
        ({"attn_mask": torch.zeros(10, 10).bool()}, "leaves out every place of a row"),
    ],
)
def test_what_is_refused_says_what_to_change(options, why):
    with pytest.raises(InputError, match=why):
        trace(built(lambda m, x: attention(m, x, **options)), SHAPE, floats=False)


def test_matrices_that_are_spread_are_refused():
    with pytest.raises(InputError, match="need three axes or more"):
        net = network(lambda m, x: x.unsqueeze(1).expand(-1, 1, -1, -1) @ x.transpose(1, 2))
        trace(net, SHAPE, floats=False)


def test_a_mask_of_large_numbers_leaves_the_scores_their_codes():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return attention(
            m, x, attn_mask=torch.zeros(10, 10).masked_fill(torch.ones(10, 10).triu(1) > 0, -100.0)
        )

    integer = assert_network_exact(built(run), SHAPE)
    added = next(node for node in integer if node.kind == "add")
    scores = integer[added.inputs[0]]
    assert added.out.scale * 255 < scores.out.scale * 255 + 13
