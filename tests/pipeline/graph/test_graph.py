"""Tracing: the graph computes what torch computes, and what it cannot carry is named with its line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import KINDS
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 3, 12, 10)


class Lambda(nn.Module):
    """A network of one function and a few modules."""

    def __init__(self, function: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def conv(cin: int = 3, cout: int = 4, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, k, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    for tensor in (bn.weight.data, bn.running_var):
        tensor.uniform_(0.3, 1.7)
    for tensor in (bn.bias.data, bn.running_mean):
        tensor.uniform_(-0.5, 0.5)
    return bn


def assert_same(network: nn.Module, shape: tuple[int, ...] = SHAPE, batch: int = 3) -> Graph:
    """The graph gives what the network gives, for a batch too."""
    network.eval()
    graph = trace(network, shape)
    assert {node.kind for node in graph} <= set(KINDS)
    x = torch.randn(batch, *shape[1:])
    values = graph.run(x.clone())
    with torch.no_grad():
        outputs = network(x.clone())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(graph.outputs)
    for name, expected in zip(graph.outputs, outputs, strict=True):
        assert values[name].shape == expected.shape
        torch.testing.assert_close(values[name], expected, rtol=1e-5, atol=1e-5)
    for node in graph:
        assert values[node.name].shape[1:] == node.shape[1:]
    return graph


def kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph]


def block(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


MINUS = float("-inf")
NETWORKS = {
    "conv, no bias": (block(conv(bias=False)), "conv2d"),
    "conv, stride and padding": (block(conv(stride=2, padding=(2, 1))), "conv2d"),
    "conv, same with an even kernel": (block(conv(k=4, padding="same")), "conv2d"),
    "conv, valid": (block(conv(k=4, padding="valid")), "conv2d"),
    "conv, kernel of two sizes": (block(conv(k=(3, 5), padding=(1, 2))), "conv2d"),
    "asymmetric pad": (Lambda(lambda m, x: m.c(F.pad(x, (0, 1, 2, 0))), c=conv(stride=2)), "conv2d"),
    "pad and padding add up": (Lambda(lambda m, x: m.c(F.pad(x, (1, 0))), c=conv(padding=1)), "conv2d"),
    "zero pad module": (block(nn.ZeroPad2d(2), conv()), "conv2d"),
    "grouped": (block(conv(3, 6, groups=3)), "conv2d"),
    "depthwise": (block(conv(3, 3, groups=3)), "conv2d"),
    "conv and BN": (block(conv(), norm(4)), "conv2d"),
    "conv without bias and BN": (block(conv(bias=False), norm(4)), "conv2d"),
    "BN without affine": (block(conv(), nn.BatchNorm2d(4, affine=False)), "conv2d"),
    "relu": (block(conv(), nn.ReLU()), "conv2d relu"),
    "relu in place": (block(conv(), nn.ReLU(inplace=True)), "conv2d relu"),
    "relu6": (block(conv(), nn.ReLU6()), "conv2d relu6"),
    "relu6 in place": (block(conv(), nn.ReLU6(inplace=True)), "conv2d relu6"),
    "hardtanh as relu6": (block(conv(), nn.Hardtanh(0, 6)), "conv2d relu6"),
    "leaky": (block(conv(), nn.LeakyReLU(0.1)), "conv2d leaky_relu"),
    "leaky, default slope": (Lambda(lambda m, x: F.leaky_relu(x)), "leaky_relu"),
    "leaky in place": (block(conv(), nn.LeakyReLU(0.2, inplace=True)), "conv2d leaky_relu"),
    "pool": (block(nn.MaxPool2d(2)), "max_pool2d"),
    "pool of two sizes": (block(nn.MaxPool2d((2, 3), stride=(1, 2))), "max_pool2d"),
    "pool with padding": (block(nn.MaxPool2d(3, 2, 1)), "max_pool2d"),
    "darknet's pool": (
        Lambda(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=MINUS), 2, 1)), "max_pool2d",
    ),
    "pool padded beyond torch's half kernel": (
        Lambda(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=MINUS), 3, 2, 1)), "max_pool2d",
    ),
    "pool over zeros": (Lambda(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2)), "pad max_pool2d"),
    "add": (Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv()), "conv2d conv2d add"),
    "add to itself": (Lambda(lambda m, x: x + x), "add"),
    "cat": (
        Lambda(lambda m, x: torch.cat([m.a(x), x, m.a(x)], 1), a=conv(padding=1)), "conv2d conv2d concat",
    ),
    "cat along width": (Lambda(lambda m, x: torch.cat([x, x], -1)), "concat"),
    "mean": (Lambda(lambda m, x: x.mean((2, 3))), "mean reshape"),
    "mean, dims kept and negative": (Lambda(lambda m, x: x.mean([-1, -2], keepdim=True)), "mean"),
    "adaptive pool": (Lambda(lambda m, x: F.adaptive_avg_pool2d(x, 1)), "mean"),
    "average pool of the whole map": (block(nn.AvgPool2d((12, 10))), "mean"),
    "classifier": (
        block(conv(), norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5)),
        "conv2d mean reshape linear",
    ),
    "linear and BN": (
        block(nn.Flatten(), nn.Linear(360, 5, bias=False), nn.BatchNorm1d(5)), "reshape linear",
    ),
    "view and permute": (
        Lambda(lambda m, x: x.view(-1, 3, 6, 2, 10).permute(0, 3, 1, 2, 4).reshape(x.shape[0], 6, 6, 10)),
        "reshape permute reshape",
    ),
    "transpose": (Lambda(lambda m, x: x.transpose(1, -1)), "permute"),
    "pixel shuffle": (
        block(conv(3, 8), nn.PixelShuffle(2), nn.ReLU()), "conv2d reshape permute reshape relu",
    ),
    "pixel unshuffle": (block(nn.PixelUnshuffle(2), conv(12, 2)), "reshape permute reshape conv2d"),
    "channel shuffle": (block(conv(3, 6), nn.ChannelShuffle(3)), "conv2d reshape permute reshape"),
    "two shuffles of one tensor": (
        Lambda(lambda m, x: F.channel_shuffle(m.c(x), 3) + F.channel_shuffle(m.c(x), 2), c=conv(3, 6)),
        "conv2d conv2d reshape permute reshape reshape permute reshape add",
    ),
    "dropout is nothing": (block(conv(), nn.Dropout(0.3), nn.ReLU()), "conv2d relu"),
    "the input is returned too": (Lambda(lambda m, x: (F.relu(x), x)), "relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_equals_torch(name):
    torch.manual_seed(0)
    network, expected = NETWORKS[name]
    graph = assert_same(network)
    assert kinds(graph)[0] == "input"
    assert sorted(kinds(graph)[1:]) == sorted(expected.split())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_random_conv_stacks_equal_torch(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    channels, size = 3, 14
    for _ in range(data.draw(st.integers(1, 3))):
        groups = data.draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
        k, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
        cout = groups * data.draw(st.integers(1, 3))
        layers.append(nn.ZeroPad2d(pads))
        layers.append(conv(channels, cout, k, stride=stride, groups=groups, bias=data.draw(st.booleans())))
        channels = cout
        if data.draw(st.booleans()):
            layers.append(norm(channels))
        activations = [nn.ReLU(True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Identity()]
        layers.append(data.draw(st.sampled_from(activations)))
    graph = assert_same(nn.Sequential(*layers), (1, 3, size, size), 2)
    assert "pad" not in kinds(graph)


def test_a_pad_with_several_readers_stays_and_is_shared():
    def forward(m, x):
        x = F.pad(x, (1, 1, 1, 1))
        return m.a(x), m.b(x)

    graph = assert_same(Lambda(forward, a=conv(), b=conv(k=1)))
    assert kinds(graph) == ["input", "pad", "conv2d", "conv2d"]
    assert len(graph.consumers(graph.nodes[1].name)) == 2


def test_a_minus_infinity_pad_with_several_pools_folds_into_each():
    def forward(m, x):
        x = F.pad(x, (0, 1, 0, 1), value=MINUS)
        return F.max_pool2d(x, 2, 1), F.max_pool2d(x, 3, 2)

    assert kinds(assert_same(Lambda(forward))) == ["input", "max_pool2d", "max_pool2d"]


def test_a_module_called_twice_gives_two_nodes_that_share_memory():
    module = conv(3, 3, padding=1)
    graph = assert_same(Lambda(lambda m, x: m.c(m.c(x)), c=module))
    assert [node.name for node in graph] == ["input", "c", "c#2"]
    assert graph["c"].weight.data_ptr() == graph["c#2"].weight.data_ptr() == module.weight.data_ptr()


def test_a_shared_conv_takes_each_bn_for_itself():
    network = Lambda(lambda m, x: m.a(m.c(x)) + m.b(m.c(x)), c=conv(), a=norm(4), b=norm(4))
    graph = assert_same(network)
    assert not torch.equal(graph["c"].weight, graph["c#2"].weight)


def test_outputs_that_are_read_again_and_returned_twice():
    def forward(m, x):
        y = F.relu(m.c(x))
        z = m.d(y)
        return y, z, y

    graph = assert_same(Lambda(forward, c=conv(), d=conv(4, 2)))
    assert graph.outputs == ("relu", "d", "relu")


def test_in_place_changes_reach_whoever_reads_later():
    def forward(m, x):
        y = m.c(x)
        F.relu_(y)
        z = F.leaky_relu(y, 0.1)
        z += y
        return z, y

    assert_same(Lambda(forward, c=conv()))


def test_modules_keep_their_training_mode():
    network = nn.Sequential(conv(), norm(4), nn.Dropout()).train()
    network[1].eval()  # frozen
    trace(network, SHAPE)
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_a_module_named_input_does_not_hide_the_input():
    network = nn.Sequential()
    network.add_module("input", conv())
    graph = assert_same(network)
    assert [node.kind for node in graph] == ["input", "conv2d"]


def test_macs_and_parameters_equal_hand_counts():
    network = nn.Sequential(
        conv(3, 8, 3, stride=2, padding=1, bias=False), norm(8), nn.ReLU(),  # 6x5 outputs
        conv(8, 8, 3, groups=8), nn.ReLU6(),  # 4x3
        conv(8, 6, 1, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    graph = trace(network, SHAPE)
    assert graph.macs == 8 * 3 * 9 * 30 + 8 * 9 * 12 + 6 * 4 * 12 + 60
    assert graph.parameters == (8 * 27 + 8) + (8 * 9 + 8) + (6 * 4 + 6) + (60 + 10)
    assert graph["8"].macs == 60


def test_sources_name_the_users_line():
    graph = trace(Lambda(lambda m, x: F.relu(m.c(x)), c=conv()), SHAPE)
    assert all(__file__ in node.source for node in graph if node.kind != "input")


def test_dump_and_load_give_back_the_graph():
    network = NETWORKS["classifier"][0]
    graph = trace(network, SHAPE)
    structure, arrays = graph.dump()
    again = Graph.load(structure, arrays)
    assert again.dump()[0] == structure
    x = torch.randn(2, *SHAPE[1:])
    for a, b in zip(graph.run(x).values(), again.run(x).values(), strict=True):
        assert torch.equal(a, b)
    assert again.outputs == graph.outputs
    assert [n.attrs for n in again] == [dict(n.attrs) for n in graph]


def test_unknown_names_and_consumers():
    graph = trace(NETWORKS["classifier"][0], SHAPE)
    with pytest.raises(KeyError):
        graph["nothing"]
    assert [n.kind for n in graph.consumers("input")] == ["conv2d"]


# -- refusals: the operation and the line of the user's code -----------------------------------------------


def training_dropout(m: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def changed_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.c(x)
    y.view(x.shape[0], -1).relu_()
    return y


def early_view(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.c(x)
    flat = y.view(x.shape[0], -1)
    return F.relu_(y), flat


def changed_part(m: nn.Module, x: Tensor) -> Tensor:
    y = m.c(x)
    y[:, 0].zero_()
    return y


REFUSED = {
    "sine": (Lambda(lambda m, x: torch.sin(x)), "operation sin is not one"),
    "constant without an end in cat": (
        Lambda(lambda m, x: torch.cat([x, torch.full((1, 1, 12, 10), math.inf)], 1)), "finite floats",
    ),
    "scaled add": (Lambda(lambda m, x: torch.add(x, F.relu(x), alpha=2)), "alpha"),
    "weights of the input": (Lambda(lambda m, x: F.conv2d(x, x[:, :, :3, :3])), "that the network computes"),
    "BN without statistics": (
        Lambda(lambda m, x: m.b(m.c(x)), c=conv(), b=nn.BatchNorm2d(4, track_running_stats=False)),
        "running statistics",
    ),
    "mean of everything": (Lambda(lambda m, x: x.mean()), "keep the batch"),
    "pad with a value": (Lambda(lambda m, x: F.pad(x, (1, 1), value=3.0)), "is known with zeros"),
    "minus infinity without a pool": (Lambda(lambda m, x: F.pad(x, (1, 1), value=MINUS)), "max_pool2d"),
    "a window of padding": (
        Lambda(lambda m, x: F.max_pool2d(F.pad(x, (2, 0, 0, 0), value=MINUS), 2)), "only padding",
    ),
    "batch moved": (Lambda(lambda m, x: x.permute(1, 0, 2, 3)), "batch"),
    "batch dropped": (Lambda(lambda m, x: x.reshape(-1)), "batch"),
    "dropout that stays on": (Lambda(training_dropout), "training=True"),
    "a view changed in place": (Lambda(changed_view, c=conv()), "view in place"),
    "a view taken before a change in place": (Lambda(early_view, c=conv()), "view in place"),
    "a part changed in place": (Lambda(changed_part, c=conv()), "view in place"),
    "a shape that does not fit": (Lambda(lambda m, x: m.c(F.relu(x)), c=conv(5)), "cannot be traced"),
}  # fmt: skip


def test_weights_that_are_computed_from_parameters_alone_are_constants():
    net = Lambda(lambda m, x: F.conv2d(x, m.c.weight * 2 + torch.ones(4, 1, 1, 1)), c=conv()).eval()
    graph, x = trace(net, SHAPE), torch.randn(2, *SHAPE[1:])
    assert torch.equal(graph.run(x)[graph.outputs[0]], net(x))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_named_with_its_line(name):
    network, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        trace(network.eval(), SHAPE, floats=False)
    assert message in str(error.value)
    assert "test_graph.py:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("forward", [training_dropout, lambda m, x: x + torch.rand_like(x)])
def test_what_is_random_does_not_stay_in_float_either(forward):
    with pytest.raises(InputError, match="random|training=True"):
        trace(Lambda(forward).eval(), SHAPE)


def test_data_dependent_control_flow_is_an_input_error_with_its_line():
    def forward(m, x):
        return F.relu(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"test_graph\.py:\d+: the network cannot be traced") as error:
        trace(Lambda(forward), SHAPE)
    assert "depends on the values" in str(error.value)


def test_networks_of_the_wrong_form_are_input_errors():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    cases = [Two(), Lambda(lambda m, x: m.w, w=nn.Parameter(torch.zeros(3))),
             Lambda(lambda m, x: (x, None)), Lambda(lambda m, x: x.numpy())]  # fmt: skip
    for network in cases:
        with pytest.raises(InputError):
            trace(network, SHAPE)
    with pytest.raises(InputError):  # the wrong number of channels
        trace(conv(), (1, 5, 8, 8))


def test_upper_and_lower_order_of_nodes_is_a_running_order():
    for network, _ in itertools.islice(NETWORKS.values(), 0, None, 5):
        seen: set[str] = set()
        for node in trace(network.eval(), SHAPE):
            assert set(node.inputs) <= seen
            seen.add(node.name)


# -- operations that are kept without knowing them -----------------------------------------------------------


def doubled(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.c(x)
    z = F.relu(y)
    y.mul_(2)
    return y.sigmoid_(), z


def weighed(m: nn.Module, x: Tensor) -> Tensor:
    """Weights of a mean of one, a norm over everything: nothing of one image may reach another."""
    weight = m.c.weight / m.c.weight.norm()
    y = F.conv2d(x, weight)
    return y * y.norm() + y.mean() + y.flatten().view(4, -1).mean(1).reshape(1, 4, 1, 1)


OPAQUE = {
    name: network
    for name, (network, _) in REFUSED.items()
    if not any(word in name for word in ("in place", "does not fit", "stays on"))
} | {
    "changed in place": Lambda(doubled, c=conv()),
    "of one image only": Lambda(weighed, c=conv()),
    "the batch as a number": Lambda(lambda m, x: torch.sigmoid(m.c(x).view(1, 4, 2, 5, 8)), c=conv()),
    "parts": Lambda(lambda m, x: torch.cat([p * i for i, p in enumerate(x.split([2, 1], 1))], 1)),
    "minimum and its place": Lambda(lambda m, x: x.min(1)),
    "a mask": Lambda(lambda m, x: torch.where(x > 0, x, m.c.bias.sum()), c=conv()),
    "known after unknown": Lambda(lambda m, x: F.relu(m.c(torch.sigmoid(x))), c=conv()),
    "the batch moved there and back": Lambda(
        lambda m, x: m.c(x).permute(1, 0, 2, 3).flip(2).permute(1, 0, 2, 3), c=conv()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPAQUE)
def test_unknown_operations_run_as_in_the_network_for_each_image(name):
    torch.manual_seed(0)
    network = OPAQUE[name].eval()
    graph = trace(network, SHAPE, opaque=True, floats=False)
    unknown = [node for node in graph if node.kind == "opaque"]
    assert all("test_graph.py:" in node.source and node.attrs["op"] for node in unknown)
    assert {node.kind for node in graph} <= {*KINDS, "opaque"}
    x = torch.randn(3, *SHAPE[1:])

    def expected(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = network(image.clone())
        return tuple(found) if isinstance(found, tuple) else (found,)

    for _ in range(2):  # the second run finds nothing changed by the first
        values = graph.run(x)
        for index in range(3):
            image = x[index : index + 1]
            alone = graph.run(image)
            for output, want in zip(graph.outputs, expected(image), strict=True):
                torch.testing.assert_close(alone[output], want, rtol=1e-5, atol=1e-5)
                row = values[output][index]
                torch.testing.assert_close(row.reshape(want.shape), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(values["input"], x)


def test_of_what_is_known_an_opaque_trace_is_the_same():
    for network, _ in itertools.islice(NETWORKS.values(), 0, None, 4):
        network.eval()
        plain, opaque = trace(network, SHAPE), trace(network, SHAPE, opaque=True)
        assert plain.dump()[0] == opaque.dump()[0]


def test_changes_in_place_of_parts_are_refused_even_where_unknown_operations_are_kept():
    def half(m, x):
        y = m.c(x)
        return torch.cat([y[:, 2:].relu_(), y], 1)

    for function in (changed_view, early_view, changed_part, half):
        with pytest.raises(InputError, match=r"test_graph\.py:\d+: operation \w+ changes a view in place"):
            trace(Lambda(function, c=conv()), SHAPE, opaque=True)


def test_chance_is_refused_where_it_would_become_a_constant():
    with pytest.raises(InputError, match=r"test_graph\.py:\d+: operation randn? is random"):
        trace(Lambda(lambda m, x: x + torch.randn(1, 3, 12, 10)), SHAPE, opaque=True)


def test_constants_of_unknown_operations_tell_them_apart():
    given = [
        trace(
            Lambda(lambda m, x, n=n: torch.atan2(x * n, torch.full((1, 3, 12, 10), n))),
            SHAPE,
            opaque=True,
            floats=False,
        )  # fmt: skip
        for n in (2.0, 2.0, 3.0)
    ]
    seen = [[node.attrs for node in graph] for graph in given]
    assert seen[0] == seen[1] != seen[2]
    assert [a != b for a, b in zip(seen[0], seen[2], strict=True)] == [False, True, True]


# -- parameters: what weight and bias are made of ------------------------------------------------------------


def test_nodes_name_the_parameters_that_they_are_made_of():
    network = block(conv(bias=False), norm(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4, affine=False),
                    nn.Flatten(), nn.Linear(192, 3))  # fmt: skip
    graph = trace(network.eval(), SHAPE)
    assert [dict(node.parameters) for node in graph if node.weight is not None] == [
        {"weight": "0.weight", "bn_weight": "1.weight", "bn_bias": "1.bias", "bn_mean": "1.running_mean",
         "bn_var": "1.running_var"},
        {"weight": "3.weight", "bias": "3.bias", "bn_mean": "4.running_mean", "bn_var": "4.running_var"},
        {"weight": "6.weight", "bias": "6.bias"},
    ]  # fmt: skip
    assert all(not node.parameters for node in graph if node.weight is None)
    state = network.state_dict()
    names = [name for node in graph for name in node.parameters.values()]
    assert sorted(names) == sorted(name for name in state if not name.endswith("num_batches_tracked"))
    again = Graph.load(*graph.dump())
    assert [dict(node.parameters) for node in again] == [dict(node.parameters) for node in graph]


@pytest.mark.parametrize("one", [True, False], ids=["one tensor", "two tensors of one memory"])
def test_a_parameter_under_two_names_has_one(one: bool):
    network = Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(bias=False), b=conv(bias=False))
    network.b.weight = network.a.weight if one else nn.Parameter(network.a.weight.data)
    graph = trace(network, SHAPE)
    assert [dict(n.parameters) for n in graph if n.weight is not None] == [{"weight": "a.weight"}] * 2


def test_tensors_that_are_only_alike_are_two_parameters():
    network = Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv())
    network.b.load_state_dict(network.a.state_dict())
    network.b.bias = nn.Parameter(network.a.bias.data[:4].clone())
    names = [n.parameters["weight"] for n in trace(network, SHAPE) if n.weight is not None]
    assert names == ["a.weight", "b.weight"]


def test_weights_that_are_computed_name_what_they_come_from():
    def forward(m, x):
        y = F.conv2d(x, m.c.weight * m.s.weight[0, 0, 0, 0], torch.ones(4))
        return torch.atan2(y, m.c.bias.reshape(1, 4, 1, 1))

    graph = trace(Lambda(forward, c=conv(), s=conv()), SHAPE, opaque=True)
    layer = next(node for node in graph if node.kind == "conv2d")
    roles = {"computed weight 0": "c.weight", "computed weight 1": "s.weight", "computed bias 0": ""}
    assert dict(layer.parameters) == roles
    unknown = next(node for node in graph if node.kind == "island")
    assert set(unknown.parameters.values()) == {"c.bias"}
