"""Attention as networks write it: one projection for all three, masks, torch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowering_networks import ranges_of
from operation_checks import assert_cut, assert_float, assert_network_exact, images, kinds
from prune_networks import assert_near, choose, graph_outputs, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.surgery import cut, mask
from paredown.pipeline.compress.coupling.trial import couple_on_trial
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.targets.errors import InputError

LENGTH, WIDTH, HEAD = 7, 20, 5
SHAPE = (1, LENGTH, WIDTH)
SCALE = HEAD**-0.5


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), LENGTH, -1, HEAD).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), LENGTH, -1)


def soft(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * SCALE) @ k.transpose(-2, -1)).softmax(-1) @ v


def unbound(m: nn.Module, x: Tensor) -> Tensor:
    """As in timm's ViT and DeiT."""
    q, k, v = m.qkv(x).reshape(len(x), LENGTH, 3, -1, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(joined(soft(q, k, v)))


def indexed(m: nn.Module, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(len(x), LENGTH, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
    return m.o(joined(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])))


def chunked(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (heads(part) for part in m.qkv(x).chunk(3, -1))
    return m.o(joined(F.scaled_dot_product_attention(q, k, v, scale=0.3)))


def apart(m: nn.Module, x: Tensor) -> Tensor:
    """Queries are scaled before they are multiplied."""
    q, k, v = (heads(part) for part in (m.q(x), m.k(x), m.v(x)))
    return m.o(joined(soft(q, k, v)))


def built(function) -> nn.Module:
    torch.manual_seed(0)
    if function is apart:
        return network(function, **{name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}, o=nn.Linear(WIDTH, 6))
    return network(function, qkv=nn.Linear(WIDTH, 3 * WIDTH), o=nn.Linear(WIDTH, 6))


FORMS = [unbound, indexed, chunked, apart]


@pytest.mark.parametrize("function", FORMS)
def test_heads_are_units_of_what_makes_all_three(function):
    net = built(function)
    assert "island" not in kinds(assert_float(net, SHAPE, programs=False))
    group = next(iter(assert_cut(net, SHAPE).values()))
    assert (group.units, group.locked) == (4, "")
    size = HEAD if function is apart else 3 * HEAD
    assert {len(unit) for maker in group.makers for unit in maker.channels} == {size}


@pytest.mark.parametrize("function", FORMS)
def test_both_runtimes_compute_their_codes(function):
    assert_network_exact(built(function), SHAPE)


UPPER = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
NUMBERS = torch.linspace(-1, 1, LENGTH * LENGTH).reshape(LENGTH, LENGTH)
MASKS = {
    "causal": {"is_causal": True},
    "-inf": {"attn_mask": torch.zeros(LENGTH, LENGTH).masked_fill(UPPER, -torch.inf)},
    "large numbers": {"attn_mask": NUMBERS.masked_fill(UPPER, -1e9)},
    "whether it counts": {"attn_mask": ~UPPER},
    "of one row": {"attn_mask": torch.tensor([[True] * 4 + [False] * 3])},
    "of each head": {"attn_mask": torch.stack([NUMBERS * head for head in range(4)])[None]},
}


def masked_by(name: str) -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (part.view(1, LENGTH, 4, HEAD).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        return m.o(joined(F.scaled_dot_product_attention(q, k, v, **MASKS[name])))

    torch.manual_seed(0)
    net = network(run, qkv=nn.Linear(WIDTH, 3 * WIDTH), o=nn.Linear(WIDTH, 6))
    with torch.no_grad():
        net.qkv.weight.mul_(3)  # scores that matter
    return net


@pytest.mark.parametrize("name", MASKS)
def test_masks_compute_what_torch_does(name):
    net = masked_by(name)
    x = images(SHAPE, 1)
    graph = trace(net, SHAPE)
    assert_near(graph_outputs(graph, x), outputs(net, x))


@pytest.mark.parametrize("name", ["-inf", "causal", "large numbers"])
def test_masks_are_exact_on_both_runtimes(name):
    assert_network_exact(masked_by(name), SHAPE)


@pytest.mark.parametrize("name", MASKS)
def test_masks_cost_scores_no_resolution(name):
    net, x = masked_by(name), torch.rand(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    graph = trace(net, SHAPE)
    integer = quantize(graph, ranges_of(graph), input_range=(0.0, 1.0))
    made = reference.predict(integer, integer.input.out.quantize(x.numpy()))[0]
    real = integer[integer.outputs[0]].out.dequantize(made)
    expected = outputs(net, x)[0].numpy()
    assert ((real - expected) ** 2).mean() < 1e-3 * (expected**2).mean()  # 30 dB


@pytest.mark.parametrize(
    "mask",
    [~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1), torch.full((LENGTH, LENGTH), torch.nan)],
)
def test_a_mask_that_leaves_nothing_is_refused(mask: Tensor):
    mask = ~mask if mask.dtype == torch.bool else mask

    def run(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (part.view(1, LENGTH, 4, HEAD).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        return m.o(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    with pytest.raises(InputError, match="leaves out every place of a row, or is not a number"):
        trace(network(run, qkv=nn.Linear(WIDTH, 3 * WIDTH), o=nn.Linear(WIDTH, 6)), SHAPE)


class Own(nn.Module):
    """torch's own attention, in any of its forms."""

    def __init__(self, first: bool, weights: bool, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.h = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.m = nn.MultiheadAttention(WIDTH, 4, batch_first=first)
        self.first, self.weights, self.masked = first, weights, masked

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        y = x if self.first else x.transpose(0, 1)
        y, _ = self.m(y, y, y, need_weights=self.weights, attn_mask=UPPER if self.masked else None)
        return self.h(x + (y if self.first else y.transpose(0, 1)))


def layer(norm_first: bool, first: bool, activation: str) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        WIDTH, 4, 24, batch_first=first, norm_first=norm_first, activation=activation
    )


class Encoder(nn.Module):
    """torch's own layers, before a mean."""

    def __init__(
        self, norm_first: bool, first: bool = True, activation: str = "relu", count: int = 1
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.l = layer(norm_first, first, activation)
        if count > 1:
            self.l = nn.TransformerEncoder(self.l, count, enable_nested_tensor=False)
        self.h = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x) if self.first else self.l(x.transpose(0, 1)).transpose(0, 1)
        return self.h(y.mean(1))


LAYERS = {
    "weights left out": lambda: Own(True, False),
    "weights dropped": lambda: Own(True, True),
    "length first": lambda: Own(False, False),
    "length first, weights": lambda: Own(False, True),
    "masked": lambda: Own(True, False, True),
    "masked, weights": lambda: Own(True, True, True),
    "layer": lambda: Encoder(False),
    "layer, norm first": lambda: Encoder(True),
    "layer, length first": lambda: Encoder(False, False),
    "layers": lambda: Encoder(True, True, "gelu", 2),
}

FAST = ("length first", "masked, weights")  # of the others, a part is in these


@pytest.mark.parametrize("name", LAYERS)
def test_torch_s_own_layers_need_no_float(name):
    net = LAYERS[name]().eval()
    graph = trace(net, SHAPE)
    assert not {"island", "opaque"} & {*kinds(graph)}
    x = images(SHAPE, 1)
    assert_near(graph_outputs(graph, x), outputs(net, x))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n not in ("length first", "masked, weights")))
        for n in LAYERS
    ],
)
def test_torch_s_own_layers_are_exact_on_both_runtimes(name):
    assert_network_exact(LAYERS[name]().eval(), SHAPE)


@pytest.mark.parametrize("name", ["layer", "layer, norm first", "masked"])
def test_their_heads_and_width_are_numbers_of_torch_s_and_the_rest_is_free(name):
    """The attention says why it cannot be cut; the layers behind it can, and compute the same."""
    net = LAYERS[name]().eval()
    graph = trace(net, SHAPE)
    groups = couple_on_trial(net, graph)
    free = {group.name for group in groups if not group.locked and group.units > 1}
    assert free == ({"l.linear1"} if name.startswith("layer") else set())
    kept, x = choose([group for group in groups if group.name in free], 1), images(SHAPE, 1)
    assert_near(outputs(cut(net, graph, groups, kept), x), graph_outputs(mask(graph, groups, kept), x))
    assert all(group.locked or group.units == 1 or group.name in free for group in groups)
