"""Networks to prune, random ones too, and the oracle: the original whose channels torch's hooks make zero."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.flow import Group, Kept
from paredown.pipeline.graph.graph import Graph

TOLERANCE = 1e-5  # of the output's largest value


class Lambda(nn.Module):
    """A network of one function and a few modules."""

    def __init__(self, function: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def network(function: Callable, seed: int = 0, **modules: nn.Module) -> nn.Module:
    """A `Lambda` in evaluation mode with random weights and statistics."""
    return randomized(Lambda(function, **modules), seed).eval()


def conv(cin: int, cout: int, k: int = 1, **options: object) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(cin, cout, k, **{"padding": k // 2, **options})


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight, bias and statistic random: what is cut wrongly shows."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.5, 0.5)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.requires_grad:
                limit = (3 / module.weight[0].numel()) ** 0.5
                uniform(module.weight, -limit, limit)
                if module.bias is not None:
                    uniform(module.bias, -0.5, 0.5)
    return net


def choose(groups: Sequence[Group], seed: int) -> dict[str, tuple[int, ...]]:
    """Random units of every group that may lose some, as `Group.step` allows."""
    rng, kept = random.Random(seed), {}
    for group in groups:
        widths = [w for w in range(1, group.units + 1) if w % group.step == 0 or w == group.units]
        if not group.locked and rng.random() < 0.9:
            kept[group.name] = tuple(sorted(rng.sample(range(group.units), rng.choice(widths))))
    return kept


def removed(groups: Sequence[Group], kept: Kept, side: str) -> dict[str, list[int]]:
    """Node to the channels of one side that go."""
    gone: dict[str, list[int]] = {}
    for group in groups:
        for unit in sorted(set(range(group.units)) - set(kept.get(group.name, range(group.units)))):
            for member in group.members:
                if member.side == side:
                    gone.setdefault(member.node, []).extend(member.channels[unit])
    return gone


def masked(net: nn.Module, graph: Graph, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy of a user's module that sets channels to zero itself, where its layers have made them."""
    twin, modules = copy.deepcopy(net), dict(net.named_modules())
    for name, channels in removed(groups, kept, "out").items():
        paths = graph[name].parameters
        owner = paths.get("weight", "").rpartition(".")[0]
        if isinstance(modules.get(owner), nn.RNNBase | nn.RNNCellBase):  # its gates at zero: so is the state
            with torch.no_grad():
                for path in paths.values():
                    twin.get_parameter(path)[channels] = 0
            continue
        own = name.partition("#")[0]
        last = paths.get("bn_mean") or (f"{own}.weight" if own in modules else paths["weight"])

        def hook(module: nn.Module, inputs: object, output: Tensor, channels: list[int] = channels) -> Tensor:
            output = output.clone()
            if isinstance(module, nn.Linear):  # its features are last
                output[..., channels] = 0
            else:
                output[:, channels] = 0
            return output

        twin.get_submodule(last.rpartition(".")[0]).register_forward_hook(hook)
    return twin


def outputs(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = net(x.clone())
    return found if isinstance(found, tuple) else (found,)


def graph_outputs(graph: Graph, x: Tensor) -> tuple[Tensor, ...]:
    values = graph.run(x.clone())
    return tuple(values[name] for name in graph.outputs)


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Within `TOLERANCE` of the largest value of all outputs together."""
    assert len(found) == len(expected)
    largest = max(float(t.abs().max()) for t in expected)
    assert largest > 1e-3, "an output of nothing shows nothing"
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= TOLERANCE * largest


# -- random networks -----------------------------------------------------------------------------------------


def reorg(x: Tensor, s: int = 2) -> Tensor:
    """YOLO's reorg, in the words of METHODS: it is not pixel_unshuffle."""
    n, c, h, w = x.shape
    x = x.view(n, c // (s * s), h, s, w, s).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, s * s * c, h // s, w // s)


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def unroll(x: Tensor) -> Tensor:
    """Pixel shuffle by hand."""
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


FUNCTIONS: Mapping[str, Callable] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "add": lambda x, y: x + y,
    "cat": lambda *parts: torch.cat(parts, 1),
    "wide": lambda x, y: torch.cat([x, y], 3),
    "pool": lambda x: F.max_pool2d(x, 2),
    "same pool": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1),
    "pad": lambda x: F.pad(x, (2, 0, 1, 1)),
    "reorg": reorg,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unroll": unroll,
    "shuffle": lambda x: shuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "mean": lambda x: x.mean((2, 3)),
    "flatten": lambda x: x.flatten(1),
    "turned": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "half": lambda x: x / 2,
    "sine": torch.sin,
    "times": lambda x, y: x * y,
    "swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
}


class Program(nn.Module):
    """A network that runs a list of steps: (function, or index of a layer, and the values that it reads)."""

    def __init__(self, steps: Sequence[tuple[object, tuple[int, ...]]], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps, self.layers = tuple(steps), nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for what, reads in self.steps:
            function = FUNCTIONS[what] if isinstance(what, str) else self.layers[what]
            values.append(function(*(values[i] for i in reads)))
        return values[-1]

    def __repr__(self) -> str:
        return f"{self.steps} {[str(layer) for layer in self.layers]}"


@st.composite
def programs(draw: st.DrawFn, unknown: bool = False) -> Program:
    """A random network for (1, 3, 8, 8); with `unknown` operations, where asked for."""
    steps: list[tuple[object, tuple[int, ...]]] = []
    layers: list[nn.Module] = []
    shapes: list[tuple[int, int, int]] = [(3, 8, 8)]

    norms: set[object] = set()  # steps that are batch norms

    def step(what: object, reads: Sequence[int], shape: tuple[int, int, int]) -> int:
        steps.append((what, tuple(reads)))
        shapes.append(shape)
        return len(shapes) - 1

    def layer(module: nn.Module, x: int, channels: int) -> int:
        layers.append(module)
        norms.update([len(layers) - 1] if isinstance(module, nn.BatchNorm2d) else [])
        return step(len(layers) - 1, [x], (channels, *shapes[x][1:]))

    def new(x: int, cout: int, groups: int = 1, norm: bool | None = None) -> int:
        k = draw(st.sampled_from((1, 3)))
        bias = draw(st.booleans())
        y = layer(conv(shapes[x][0], cout, k, groups=groups, bias=bias), x, cout)
        if draw(st.booleans()) if norm is None else norm:
            y = layer(nn.BatchNorm2d(cout, affine=draw(st.integers(0, 4)) > 0), y, cout)
        what = draw(st.sampled_from(("relu", "relu6", "leaky", "")))
        return step(what, [y], shapes[y]) if what else y

    widths = st.sampled_from((4, 6, 8, 12, 16))
    last = new(0, draw(widths))
    for _ in range(draw(st.integers(1, 5))):
        c, h, w = shapes[last]
        kinds = ["conv", "residual", "project", "concat", "grouped", "depthwise", "twice", "same norm",
                 "padded", "same pool", "skip"]  # fmt: skip
        kinds += ["pool"] if min(h, w) >= 4 and h % 2 == w % 2 == 0 else []
        # Of fewer channels it is not to be seen which dim of a reshape is their number divided by a constant.
        kinds += ["pixel_unshuffle"] if h % 2 == w % 2 == 0 and c <= 16 else []
        kinds += ["reorg"] if h % 2 == w % 2 == 0 and min(h, w) >= 4 and c in {12, 16} else []
        kinds += ["pixel_shuffle", "unroll"] if c % 4 == 0 and c >= 12 and h <= 8 else []
        kinds += ["shuffle", "channel_shuffle"] if c % 2 == 0 and c >= 6 else []
        kinds += ["wide"] if w <= 8 else []
        kinds += ["tanh", "silu", "hardswish", "half"]
        kinds += ["sigmoid", "sine", "times"] + ["swapped"] * (c % 2 == 0) if unknown else []
        what = draw(st.sampled_from(kinds))
        if what == "conv":
            last = new(last, draw(widths))
        elif what == "residual":
            last = step("add", [new(new(last, draw(widths)), c), last], (c, h, w))
        elif what == "project":
            cout = draw(widths)
            last = step("add", [new(last, cout), new(last, cout)], (cout, h, w))
        elif what == "concat":
            parts = [
                new(last, draw(widths)),
                last,
                *([new(last, draw(widths))] if draw(st.booleans()) else []),
            ]
            last = step("cat", parts, (sum(shapes[p][0] for p in parts), h, w))
        elif what == "skip":
            read = {i for what, reads in steps for i in reads if what in norms}  # BN must read its conv alone
            parts = [i for i, s in enumerate(shapes) if s[1:] == (h, w) and i not in read]
            last = step("cat", [last, draw(st.sampled_from(parts))], (c, h, w))
            shapes[last] = (c + shapes[steps[-1][1][1]][0], h, w)
        elif what in {"grouped", "depthwise"}:
            choices = [g for g in range(2, c) if c % g == 0] or [1]
            groups = c if what == "depthwise" else draw(st.sampled_from(choices))
            last = new(last, groups * draw(st.integers(1, 3)), groups)
        elif what == "twice":
            first = layer(conv(c, c, 3), last, c)
            last = step(steps[-1][0], [step("relu", [first], (c, h, w))], (c, h, w))
        elif what == "same norm":
            cout = draw(widths)
            a = layer(nn.BatchNorm2d(cout), layer(conv(c, cout), last, cout), cout)
            norm = steps[-1][0]
            b = step(norm, [layer(conv(c, cout), last, cout)], (cout, h, w))
            last = step("cat", [a, b], (2 * cout, h, w))
        elif what == "padded":
            padded = step("pad", [last], (c, h + 2, w + 2))
            last = layer(nn.Conv2d(c, draw(widths), 3), padded, 0)
            shapes[last] = (layers[-1].out_channels, h, w)
        elif what == "times":
            last = step("times", [last, new(last, c)], (c, h, w))
        elif what == "wide":
            last = step("wide", [last, new(last, c)], (c, h, 2 * w))
        else:
            size = {"pool": (1, 2), "reorg": (4, 2), "pixel_unshuffle": (4, 2)}.get(what, (1, 1))
            shape = (c * size[0], h // size[1], w // size[1])
            shape = (c // 4, 2 * h, 2 * w) if what in {"pixel_shuffle", "unroll"} else shape
            last = step(what, [last], shape)
            if draw(st.booleans()):
                last = new(last, draw(widths))
    what = draw(st.sampled_from(("mean", "flatten", "turned")))
    c, h, w = shapes[last]
    features = c if what == "mean" else c * h * w
    last = step(what, [last], (features, 1, 1))
    layers.append(nn.Linear(features, 5))
    last = step(len(layers) - 1, [last], (5, 1, 1))
    layers.append(nn.Linear(5, 3))
    step(len(layers) - 1, [step("relu", [last], (5, 1, 1))], (3, 1, 1))
    program = Program(steps, layers)
    return randomized(program, draw(st.integers(0, 2**16))).eval()
