"""conv2d with dilation: exact on both runtimes, an attribute only where it is not 1, pruned, solved again."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowering_networks import inputs_for
from operation_checks import PROGRAMS, assert_cut, assert_exact, assert_float, both, integer_of, kinds
from prune_networks import choose, conv, network
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.patches import at_spots, patches, pick_spots
from paredown.pipeline.compress.coupling.reconstruct import reconstruct
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.compress.sensitivity.forward import Engine, last
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.targets.mcu import tflm


@st.composite
def convs(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    kernel, dilation = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    groups, out = draw(st.sampled_from([(1, 5), (2, 6), (4, 4), (4, 8)]))
    stride = draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = draw(st.sampled_from(["same", "some"]))
    if padding == "same":
        stride = (1, 1)
    else:
        padding = draw(st.tuples(*[st.integers(0, 3)] * 2))
    before = draw(st.sampled_from([(0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 2)]))
    shape = (1, 4, draw(st.integers(7, 12)), draw(st.integers(7, 12)))
    layer = nn.Conv2d(4, out, kernel, stride, padding, dilation, groups)
    assume(max(kernel) > 1)
    return network(lambda m, x: F.relu(m.c(F.pad(x, before) if any(before) else x)), c=layer), shape


@settings(max_examples=60, deadline=None)
@given(PROGRAMS, convs())
def test_it_computes_what_torch_computes(programs, drawn):
    graph = assert_float(*drawn, programs=programs)
    dilation = drawn[0].c.dilation
    assert graph.nodes[1].attrs.get("dilation") == (None if dilation == (1, 1) else dilation)


@both
@settings(max_examples=10, deadline=None, derandomize=True)
@given(drawn=convs())
def test_it_is_exact_and_in_one_delegate(runtime: object, drawn):
    assert_exact(integer_of(*drawn), runtime, 1)


def test_the_codes_are_those_of_a_plain_loop():
    graph = integer_of(network(lambda m, x: m.c(x), c=nn.Conv2d(2, 3, 2, 2, 1, 3)), (1, 2, 6, 7))
    node, x = graph.nodes[1], inputs_for(graph, 1)[:1]
    zero, out = graph.input.out.zero_point, node.out
    unit = np.float32(graph.input.out.scale) * node.weight_scale / np.float32(out.scale)
    found = reference.predict(graph, x)[0]
    for o, i, j in np.ndindex(found.shape[1:]):
        total = int(node.bias[o])
        for c, u, v in np.ndindex(node.weight.shape[1:]):
            row, column = 2 * i - 1 + 3 * u, 2 * j - 1 + 3 * v
            if 0 <= row < 6 and 0 <= column < 7:
                total += int(node.weight[o, c, u, v]) * (int(x[0, c, row, column]) - zero)
        code = int(np.rint(np.float32(total) * unit[o])) + out.zero_point
        assert found[0, o, i, j] == max(-128, min(127, code))


def dilated() -> nn.Module:
    """Atrous convolutions beside each other, one depthwise."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.d(torch.cat([F.relu(m.b(y)), F.relu(m.c(y))], 1)).mean((2, 3))

    layers = {
        "a": nn.Conv2d(3, 6, 3, 1, 2, 2), "b": nn.Conv2d(6, 6, 3, 1, 3, 3, groups=6),
        "c": nn.Conv2d(6, 4, 3, 1, (1, 2), (1, 2)), "d": conv(10, 5),
    }  # fmt: skip
    return network(forward, **layers)


def test_channels_are_pruned_through_it():
    groups = assert_cut(dilated(), (1, 3, 8, 8))
    assert [name for name, group in groups.items() if not group.locked] == ["a", "c"]


def test_its_patches_times_its_weights_are_its_output():
    graph = trace(network(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, (3, 2), 2, 1, (2, 3))), (1, 3, 9, 9))
    node, x = graph.nodes[1], torch.randn(2, 3, 9, 9)
    output = graph.run(x)[node.name] - node.bias.reshape(1, -1, 1, 1)
    spots = pick_spots(tuple(output.shape), 20, np.random.default_rng(0))
    rows = patches(node, x, spots)
    assert torch.allclose(rows @ node.weight.flatten(1).double().T, at_spots(output, spots), atol=1e-4)


def test_a_cut_network_is_solved_again():
    net = dilated()
    graph, x = trace(net, (1, 3, 8, 8)), torch.rand(24, 3, 8, 8)
    groups = couple(graph)
    kept = {"a": (0, 1, 2, 4), "c": (0, 2, 3)}
    smaller = cut(net, graph, groups, kept)
    with torch.no_grad():
        before = float((smaller(x) - net(x)).square().mean())
        reconstruct(smaller, graph, groups, kept, x)
        assert float((smaller(x) - net(x)).square().mean()) < before
    assert choose(groups, 0).keys() <= {"a", "c"}


def test_the_fast_forward_pass_has_the_dilation_too():
    net = dilated()
    graph, x = trace(net, (1, 3, 8, 8)), torch.rand(4, 3, 8, 8)
    (name,) = graph.outputs
    found = Engine(graph, 4).run(last(x), frozenset())[name]
    torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-5)


@both
def test_a_network_with_it_is_exact(runtime):
    graph = integer_of(dilated(), (1, 3, 8, 8))
    assert kinds(graph).count("conv2d") == 4
    assert_exact(graph, runtime)


def test_litert_micro_is_within_one_code():
    from paredown.pipeline.lower.litert.program import lower_integer
    from paredown.pipeline.lower.parity import difference

    graph = integer_of(dilated(), (1, 3, 8, 8))
    x = inputs_for(graph)
    (found,) = tflm.run(lower_integer(graph).data, x).outputs
    assert difference(reference.predict(graph, x)[0], found).max_lsb <= 2
