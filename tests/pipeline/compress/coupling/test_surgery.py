"""surgery.py: the smaller network computes what the original does with the same channels made zero."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_networks import (
    assert_near,
    choose,
    conv,
    graph_outputs,
    masked,
    network,
    outputs,
    programs,
    randomized,
    reorg,
    shuffle,
    unroll,
)
from torch import Tensor, nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import read_weights
from paredown.pipeline.compress.coupling.coupling import Group, couple
from paredown.pipeline.compress.coupling.surgery import check, cut, load_pruned, mask, save_pruned, thin
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 3, 8, 8)


def prepared(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[Graph, tuple[Group, ...]]:
    graph = trace(net, shape, opaque=True)
    return graph, couple(graph)


def assert_surgery(net: nn.Module, shape: tuple[int, ...] = SHAPE, seeds: int = 3) -> None:
    """Mask, thin and cut against the original module, whose own layers' outputs hooks make zero."""
    graph, groups = prepared(net, shape)
    assert any(not group.locked for group in groups)
    x = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(1))
    for seed in range(seeds):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        thinner = thin(graph, groups, kept)
        assert_near(graph_outputs(thinner, x), expected)
        assert [n.kind for n in thinner] == [n.kind for n in graph]
        values = thinner.run(x)
        assert all(values[n.name].shape[1:] == n.shape[1:] for n in thinner if n.kind != "opaque")
    smaller = cut(net, graph, groups, kept)
    assert_near(outputs(smaller, x), expected)
    left = sum(p.numel() for p in smaller.parameters())
    fewer = any(len(kept.get(g.name, range(g.units))) < g.units for g in groups)
    assert (left < sum(p.numel() for p in net.parameters())) == fewer


# -- properties ----------------------------------------------------------------------------------------------


def check_random_surgery(net: nn.Module, seed: int) -> None:
    graph, groups = prepared(net)
    x = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))
    for index in range(4):
        kept = choose(groups, seed + index)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
    assert_near(outputs(cut(net, graph, groups, kept), x), expected)


@settings(max_examples=10, deadline=None)
@given(net=st.one_of(programs(), programs(unknown=True)), seed=st.integers(0, 1000))
def test_random_networks_lose_random_channels_and_compute_the_same(net: nn.Module, seed: int):
    check_random_surgery(net, seed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=st.one_of(programs(), programs(unknown=True)), seed=st.integers(0, 10**6))
def test_many_random_networks_lose_random_channels_and_compute_the_same(net: nn.Module, seed: int):
    check_random_surgery(net, seed)


# -- every network -------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Each kind of tie once: residual, concat, depthwise, grouped in both ways, shared layers, rearranged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.twice = conv(8, 8, 3)
        self.depth, self.multiply = conv(8, 8, 3, groups=8), conv(8, 16, 3, groups=8)
        self.whole, self.position = conv(16, 8, groups=4), conv(8, 12, 3, groups=2, bias=False)
        self.norm, self.other = nn.BatchNorm2d(12), conv(8, 12)
        self.up, self.mix, self.down = conv(24, 16, stride=2), conv(4, 8), conv(32, 6)
        self.last, self.first, self.second = conv(38, 6, 3), nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(x)))
        x = x + self.twice(F.relu(self.twice(x)))
        y = self.whole(F.leaky_relu(self.multiply(self.depth(x)), 0.1))
        y = shuffle(torch.cat([self.norm(self.position(y)), self.norm(self.other(x))], 1), 2)
        y = reorg(self.mix(unroll(F.relu(self.up(y)))))
        y = self.last(torch.cat([self.down(y), y], 1))
        return self.second(F.relu(self.first(F.max_pool2d(F.pad(y, (1, 0, 0, 0)), 4).flatten(1))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "everything": (Everything, 16),
    "resnet20": (lambda: build("resnet20"), 32),
    "mobilenet_v2": (lambda: build("mobilenet_v2"), 64),
    "yolov2-nano": (lambda: YoloV2.builtin("yolov2-nano"), 160),
}
LARGE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet56": (lambda: build("resnet56"), 32),
    "resnet18": (lambda: build("resnet18"), 224),
    "resnet50": (lambda: build("resnet50"), 224),
    "yolov2-tiny-voc": (lambda: YoloV2.builtin("yolov2-tiny-voc"), 416),
    "yolov2-voc": (lambda: YoloV2.builtin("yolov2-voc"), 416),
}


#: Of the zoo's, one of residuals; the others' kinds are in "everything".
SLOW = ("mobilenet_v2", "yolov2-nano")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NETWORKS]
)
def test_networks(name: str):
    make, side = NETWORKS[name]
    assert_surgery(randomized(make()).eval(), (1, 3, side, side), 3 if name == "everything" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_networks(name: str):
    make, side = LARGE[name]
    assert_surgery(randomized(make()).eval(), (1, 3, side, side), 1)


@pytest.mark.parametrize(
    "name",
    ["coco-trial6", *(pytest.param(f"voc-trial3-{n}", marks=pytest.mark.slow) for n in ("bn", "noBatch"))],
)
def test_yolo_lite_with_its_own_weights(name: str, shared: Path):
    folder = shared / "yololite-yolov2"
    net = YoloV2.from_cfg(folder / f"{name}.cfg").eval()
    read_weights(next(folder.glob(f"{name}*.weights")), net)
    assert_surgery(net, (1, 3, net.height, net.width))


def test_units_of_a_reorg_are_what_its_values_allow():
    """26x26 as in yolov2-voc at 416: pairs of channels mix, and the network divides their number by 4."""

    def forward(m, x):
        y = F.relu(m.a(x))
        return m.c(torch.cat([reorg(m.b(y)), F.max_pool2d(y, 2)], 1))

    net = network(forward, a=conv(3, 8), b=conv(8, 16), c=conv(72, 4))
    graph, groups = prepared(net, (1, 3, 26, 26))
    group = next(g for g in groups if g.name == "b")
    assert (group.units, group.channels, group.step) == (8, 16, 2)
    assert_surgery(net, (1, 3, 26, 26))
    with pytest.raises(InputError, match="3 units, and the network reshapes them by 2"):
        cut(net, graph, groups, {"b": [0, 1, 2]})


def test_what_is_kept_whole_stays_the_same_network():
    net = randomized(Everything()).eval()
    graph, groups = prepared(net, (1, 3, 16, 16))
    for kept in ({}, {g.name: range(g.units) for g in groups}):
        same = cut(net, graph, groups, kept)
        x = torch.randn(1, 3, 16, 16)
        assert torch.equal(outputs(same, x)[0], outputs(net, x)[0])
        assert thin(graph, groups, kept).dump()[0] == graph.dump()[0]


def test_the_narrowest_network_still_computes_the_same():
    net = randomized(Everything()).eval()
    graph, groups = prepared(net, (1, 3, 16, 16))
    kept = {g.name: tuple(range(g.units - g.step, g.units)) for g in groups if not g.locked}
    x = torch.randn(2, 3, 16, 16)
    assert_near(outputs(cut(net, graph, groups, kept), x), outputs(masked(net, graph, groups, kept), x))


# -- nothing of ours is left ---------------------------------------------------------------------------------


def cut_everything(net: nn.Module) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    graph, groups = prepared(net, (1, 3, 16, 16))
    kept = {
        g.name: tuple(range(0, max(g.step, g.units // 2 // g.step * g.step))) for g in groups if not g.locked
    }
    return cut(net, graph, groups, kept), kept


def test_the_cut_network_is_a_plain_copy_and_the_original_is_untouched():
    net = randomized(Everything()).train()
    net.norm.eval()  # frozen
    net.norm.weight.requires_grad_(False)
    net.first.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    smaller, _ = cut_everything(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and not net.norm.training

    assert smaller.state_dict().keys() == before.keys()
    pairs = list(zip(smaller.modules(), net.modules(), strict=True))
    for mine, yours in pairs:
        assert type(mine) is type(yours) and mine is not yours
        assert mine.training == yours.training
        assert vars(mine).keys() == vars(yours).keys()
        hooks = [v for k, v in vars(mine).items() if "hook" in k and k != "_is_full_backward_hook"]
        assert not any(hooks)
    assert sum(type(m) is nn.Conv2d for m, _ in pairs) >= 10
    wanted = {name: (p.requires_grad, p.dtype) for name, p in net.named_parameters()}
    assert {name: (p.requires_grad, p.dtype) for name, p in smaller.named_parameters()} == wanted
    assert all(type(p) is nn.Parameter and p.is_leaf and p.is_contiguous() for p in smaller.parameters())
    memory = {tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values()}
    assert all(t.untyped_storage().data_ptr() not in memory for t in smaller.state_dict().values())


def test_what_layers_say_of_themselves_is_right():
    smaller, kept = cut_everything(randomized(Everything()).eval())
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)
    again = Everything()
    halved = (again.depth.groups // 2, again.whole.groups // 2, again.position.groups)
    assert (smaller.depth.groups, smaller.whole.groups, smaller.position.groups) == halved
    assert str(smaller) != str(again)


def test_the_cut_network_trains_saves_copies_and_exports(tmp_path: Path):
    torch.manual_seed(0)
    smaller, _ = cut_everything(randomized(Everything()).train())
    smaller.train()
    optimizer = torch.optim.SGD(smaller.parameters(), 0.1)
    x = torch.randn(4, 3, 16, 16)
    start = {name: p.detach().clone() for name, p in smaller.named_parameters()}
    loss = smaller(x).square().mean()
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())
    changed = [name for name, p in smaller.named_parameters() if not torch.equal(p, start[name])]
    assert {"stem.weight", "norm.bias", "whole.weight", "second.bias"} <= set(changed)
    assert smaller(x).square().mean() < loss

    smaller.eval()
    expected = outputs(smaller, x)[0]
    torch.save(smaller.state_dict(), tmp_path / "state.pt")
    twin = copy.deepcopy(smaller)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(outputs(twin, x)[0], expected)
    exported = torch.export.export(smaller, (x[:1],)).module()
    torch.testing.assert_close(outputs(exported, x[:1])[0], expected[:1])


def test_a_network_can_be_cut_again():
    net = randomized(Everything()).eval()
    smaller, _ = cut_everything(net)
    assert_surgery(smaller, (1, 3, 16, 16))


@pytest.mark.parametrize("one", [True, False], ids=["one tensor", "two tensors of one memory"])
def test_a_parameter_under_two_names_stays_one(one: bool, tmp_path: Path):
    def forward(m, x):
        return m.d(torch.cat([m.b(m.a(x)), m.c(F.relu(m.a(x)))], 1))

    def make() -> nn.Module:
        parts = dict(a=conv(3, 6, 3), b=conv(6, 6, groups=6), c=conv(6, 6, groups=6), d=conv(12, 2))
        net = network(forward, **parts)
        net.c.weight = net.b.weight if one else nn.Parameter(net.b.weight.data)
        return net

    net = make()
    graph, groups = prepared(net)
    kept = {"a": (0, 2, 3)}
    smaller = cut(net, graph, groups, kept)
    x = torch.randn(1, *SHAPE[1:])
    assert_near(outputs(smaller, x), outputs(masked(net, graph, groups, kept), x))
    assert (smaller.b.weight is smaller.c.weight) == one
    assert smaller.b.weight.data_ptr() == smaller.c.weight.data_ptr()
    assert (smaller.b.groups, smaller.c.groups, smaller.c.out_channels) == (3, 3, 3)
    save_pruned(smaller, tmp_path / "pruned.safetensors")
    back = load_pruned(make(), tmp_path / "pruned.safetensors")
    assert torch.equal(outputs(back, x)[0], outputs(smaller, x)[0])
    assert (back.c.weight is back.b.weight) == one


def test_layers_without_modules_are_cut_too():
    class Bare(nn.Module):
        """Parameters of its own, and what it says of its groups."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(8, 3, 3, 3), torch.randn(8, 1, 3, 3)])
            self.weight, self.bias = nn.Parameter(torch.randn(4, 8, 1, 1)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(F.conv2d(x, self.weights[0], padding=1))
            x = F.relu(F.conv2d(x, self.weights[1], padding=1, groups=x.shape[1]))
            return F.conv2d(x, self.weight, self.bias)

    net = Bare().eval()
    graph, groups = prepared(net)
    kept = {groups[0].name: (1, 4, 7)}
    assert [len(m.channels) for m in groups[0].members] == [8, 8, 8, 8]
    x = torch.randn(2, *SHAPE[1:])
    smaller = cut(net, graph, groups, kept)
    assert [tuple(p.shape) for p in smaller.weights] == [(3, 3, 3, 3), (3, 1, 3, 3)]
    assert_near(outputs(smaller, x), graph_outputs(mask(graph, groups, kept), x))


# -- a forward() that does not follow is refused --


def wide(function: Callable) -> Callable:
    """a, b -> the given lines -> c: what a channel count as a number may break."""
    return lambda m, x: m.c(F.relu(function(m, F.relu(m.b(F.relu(m.a(x)))))))


def parts() -> dict[str, nn.Module]:
    return dict(a=conv(3, 6), b=conv(6, 8), c=conv(8, 2))


FIXED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "view of all": (
        lambda: network(lambda m, x: m.f(m.b(m.a(x)).view(-1, 8 * 64)), f=nn.Linear(512, 2), **parts()), "does not run",  # noqa: E501
    ),
    "view of channels": (lambda: network(wide(lambda m, y: y.view(-1, 8, 64).view(-1, 8, 8, 8)), **parts()), ""),  # noqa: E501
    "channels from the rest": (
        lambda: network(wide(lambda m, y: y.view(1, 2, -1, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8)), **parts()), "",  # noqa: E501
    ),
    "shuffle by columns": (
        lambda: network(wide(lambda m, y: y.view(1, -1, 4, 8, 8).transpose(1, 2).flatten(1, 2)), **parts()),
        "does not run|does not follow its new widths|no legal form",
    ),
    "groups": (
        lambda: network(wide(lambda m, y: F.conv2d(y, m.w, groups=8)), w=nn.Conv2d(8, 8, 1, groups=8), **parts()), "",  # noqa: E501
    ),
    "a branch on the width": (
        lambda: network(wide(lambda m, y: F.relu6(y) if y.shape[1] > 7 else F.relu(y)), **parts()), "runs where",  # noqa: E501
    ),
    "a layer by the width": (
        lambda: network(
            lambda m, x: [m.d, m.c][m.b(m.a(x)).shape[1] > 7](m.b(m.a(x))), d=conv(8, 2), **parts()
        ),
        "does not run|runs where",
    ),
    "a slope from the width": (
        lambda: network(wide(lambda m, y: F.leaky_relu(y, 1 / y.shape[1])), **parts()), "with other numbers",
    ),
    "a number from another width": (
        lambda: network(lambda m, x: m.d(m.c(m.b(m.a(x)))) / m.b.weight.shape[0], d=conv(2, 2), **parts()),
        "with other numbers",
    ),
    "a tensor from another width": (
        lambda: network(
            lambda m, x: m.d(m.c(m.b(m.a(x)))) + torch.full((1, 2, 8, 8), m.b.weight.shape[0]), d=conv(2, 2), **parts()  # noqa: E501
        ),
        "with other numbers",
    ),
    "outputs by the width": (
        lambda: network(
            lambda m, x: (lambda y, z: (y, z) if m.b.weight.shape[0] > 7 else (z, y))(m.d(x), m.c(m.b(m.a(x)))),  # noqa: E501
            d=conv(3, 2), **parts(),
        ),
        "outputs",
    ),
    "a layer whose result nobody reads": (
        lambda: network(lambda m, x: (lambda y: (m.d(y), m.c(y))[1])(m.b(m.a(x))), d=conv(8, 3), **parts()), "",  # noqa: E501
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_a_forward_that_holds_a_channel_count_is_refused_in_one_line(name: str):
    make, words = FIXED[name]
    net = make()
    if name == "groups":
        net.w = nn.Parameter(net.w.weight.data)
    graph, groups = prepared(net)
    group = next(g for g in groups if any(m.node.partition("#")[0] == "b" for m in g.makers))
    assert not group.locked
    kept = {group.name: range(group.units - group.step)}
    x = torch.randn(1, *SHAPE[1:])
    expected = graph_outputs(mask(graph, groups, kept), x)
    assert_near(
        graph_outputs(thin(graph, groups, kept), x), expected
    )  # the graph can be cut, the module cannot
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError) as error:
        cut(net, graph, groups, kept)
    text = str(error.value)
    assert "\n" not in text
    assert re.search(r"\.py:\d+", text) or "outputs" in text
    assert re.search(words, text), text
    unread = name == "a layer whose result nobody reads"
    hint = "d runs, and no output hangs on it" if unread else "forward() holds a channel count as a number"
    assert hint in text
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_a_number_that_does_no_harm_is_no_reason_to_refuse():
    """-1 takes up what is missing, and the values lie as before."""

    def forward(m, x):
        y = F.relu(m.a(x))
        return m.f(y.reshape(1, 4, -1).flatten(1).view(1, -1))

    net = network(forward, a=conv(3, 6), f=nn.Linear(384, 2))
    graph, groups = prepared(net)
    smaller = cut(net, graph, groups, kept := {"a": (0, 1, 5)})
    x = torch.randn(1, *SHAPE[1:])
    assert_near(outputs(smaller, x), outputs(masked(net, graph, groups, kept), x))
    assert smaller.f.in_features == 192


# -- what is to be kept is checked --


BAD = {
    "unknown": ({"nothing": [0]}, "no channel group `nothing`"),
    "nothing left": ({"a": []}, "group a: would lose all of its channels"),
    "beyond": ({"a": [0, 6]}, "not rising within 0..5"),
    "negative": ({"a": [-1, 0]}, "not rising within 0..5"),
    "unsorted": ({"a": [2, 1]}, "not rising"),
    "twice": ({"a": [1, 1]}, "not rising"),
    "locked": ({"c": [0]}, "group c: cannot be cut: it is the network's output c"),
    "step": ({"r": [0, 1, 2]}, "group r: 3 units, and the network reshapes them by 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_kept_is_one_line(name: str):
    kept, message = BAD[name]
    net = network(lambda m, x: m.c(reorg(m.r(m.a(x)))), a=conv(3, 6), r=conv(6, 8), c=conv(32, 2))
    graph, groups = prepared(net)
    assert {g.name: g.step for g in groups} == {"a": 1, "r": 4, "c": 1}
    for call in (
        lambda: check(groups, kept),
        lambda: mask(graph, groups, kept),
        lambda: thin(graph, groups, kept),
        lambda: cut(net, graph, groups, kept),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    check(groups, {"a": range(6), "c": [0, 1], "r": (0, 3, 5, 7)})  # these are fine


# -- on disk --


def test_a_pruned_network_comes_back_from_its_file(tmp_path: Path):
    smaller, _ = cut_everything(randomized(Everything()).eval())
    save_pruned(smaller, tmp_path / "pruned.safetensors")
    back = load_pruned(Everything(), tmp_path / "pruned.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(outputs(back, x)[0], outputs(smaller, x)[0])
    assert str(back) == str(smaller)
    assert not any(module.training for module in back.modules())


def test_layers_that_were_not_cut_keep_their_numbers_when_loaded(tmp_path: Path):
    class Odd(nn.Module):
        """Layers that surgery does not know."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv1d(4, 8, 3, groups=2)
            self.back = nn.ConvTranspose2d(6, 4, 2, groups=2)
            self.norm = nn.GroupNorm(2, 4)
            self.words = nn.Embedding(5, 3)

    save_pruned(Odd(), tmp_path / "pruned.safetensors")
    assert str(load_pruned(Odd(), tmp_path / "pruned.safetensors")) == str(Odd())


def test_a_damaged_or_wrong_file_is_one_line(tmp_path: Path):
    smaller, _ = cut_everything(randomized(Everything()).eval())
    path = tmp_path / "pruned.safetensors"
    save_pruned(smaller, path)
    for other in (network(lambda m, x: m.a(x), a=conv(3, 2)), nn.Linear(2, 2)):
        with pytest.raises(InputError, match="another network") as error:
            load_pruned(other, path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot read") as error:
            load_pruned(Everything(), bad)
        assert "\n" not in str(error.value)
