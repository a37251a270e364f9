"""Random integer graphs and small torch networks that the lowering tests share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, quantize
from paredown.targets.runners.vectors import test_inputs as make_inputs


def f32(value: float) -> float:
    return float(np.float32(value))


def window_counts(height: int, width: int, k: int, stride: int, pads: tuple[int, ...]) -> tuple[int, int]:
    left, right, top, bottom = pads
    return (height + top + bottom - k) // stride + 1, (width + left + right - k) // stride + 1


class Builder:
    """Puts integer graphs together by hand, with scales and zero points as bad as one likes."""

    def __init__(self, seed: int, shape: tuple[int, ...] = (1, 4, 12, 11), scale: float = 0.02) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[IntegerNode] = []
        self.put("input", (), shape, scale, self.zero_point(), name="input")

    def zero_point(self) -> int:
        return int(self.rng.choice([-128, 127, 0, int(self.rng.integers(-128, 128))]))

    def node(self, name: str) -> IntegerNode:
        return next(node for node in self.nodes if node.name == name)

    def put(self, kind, inputs, shape, scale, zero, attrs=None, low=-128, high=127, name="", **arrays) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        out = Affine(f32(scale), int(zero))
        self.nodes.append(
            IntegerNode(name, kind, tuple(inputs), tuple(shape), out, low, high, attrs or {}, **arrays)
        )
        return name

    def graph(self, *outputs: str) -> IntegerGraph:
        names = outputs or tuple(n.name for n in self.nodes if n.kind != "input")
        return IntegerGraph(tuple(self.nodes), names).upto(names)

    def conv(self, x, cout, k=3, stride=1, pads=None, groups=1, *, gain=1.0, clamp="", scale=None, zero=None,
             bias=2000) -> str:  # fmt: skip
        feed = self.node(x)
        _, cin, h, w = feed.shape
        pads = (k // 2,) * 4 if pads is None else pads
        weight = self.rng.integers(-127, 128, (cout, cin // groups, k, k)).astype(np.int8)
        sizes = (10 ** self.rng.uniform(-3, -2, cout)).astype(np.float32)
        spread = feed.out.scale * float(np.median(sizes)) * 73 * 80 * np.sqrt(cin // groups * k * k)
        scale = spread / 60 * gain if scale is None else scale
        # XNNPACK's limit: an input's unit is at most 255 of the output's
        sizes = np.minimum(sizes, np.float32(250 * scale / feed.out.scale))
        zero = self.zero_point() if zero is None else zero
        low = zero if clamp else -128
        high = min(127, round(6 / scale) + zero) if clamp == "relu6" else 127
        shape = (1, cout, *window_counts(h, w, k, stride, pads))
        attrs = {"stride": (stride, stride), "padding": tuple(pads), "groups": groups}
        arrays = {
            "weight": weight, "weight_scale": sizes,
            "bias": self.rng.integers(-bias, bias + 1, cout).astype(np.int32),
        }  # fmt: skip
        return self.put("conv2d", (x,), shape, scale, zero, attrs, low, high, **arrays)

    def linear(self, x, cout) -> str:
        feed = self.node(x)
        weight = self.rng.integers(-127, 128, (cout, feed.shape[1])).astype(np.int8)
        sizes = (10 ** self.rng.uniform(-3, -2, cout)).astype(np.float32)
        scale = feed.out.scale * float(np.median(sizes)) * 90 * np.sqrt(feed.shape[1])
        bias = self.rng.integers(-2000, 2001, cout).astype(np.int32)
        return self.put(
            "linear", (x,), (1, cout), scale, self.zero_point(),
            weight=weight, weight_scale=sizes, bias=bias,
        )  # fmt: skip

    def leaky(self, x, slope=0.1, ratio=1.0) -> str:
        feed = self.node(x)
        scale = feed.out.scale / ratio
        return self.put("leaky_relu", (x,), feed.shape, scale, self.zero_point(), {"slope": slope})

    def pool(self, x, k=2, stride=2, pads=(0, 0, 0, 0)) -> str:
        feed = self.node(x)
        _, c, h, w = feed.shape
        shape = (1, c, *window_counts(h, w, k, stride, pads))
        attrs = {"kernel": (k, k), "stride": (stride, stride), "padding": tuple(pads)}
        return self.put("max_pool2d", (x,), shape, feed.out.scale, feed.out.zero_point, attrs)

    def add(self, a, b, scale=None, relu=False) -> str:
        feeds = [self.node(a), self.node(b)]
        scale = sum(feed.out.scale for feed in feeds) * 0.7 if scale is None else scale
        zero = self.zero_point()
        return self.put("add", (a, b), feeds[0].shape, scale, zero, low=zero if relu else -128)

    def concat(self, *names) -> str:
        feeds = [self.node(name) for name in names]
        shape = (1, sum(feed.shape[1] for feed in feeds), *feeds[0].shape[2:])
        out = feeds[0].out
        assert all(feed.out == out for feed in feeds)
        return self.put("concat", names, shape, out.scale, out.zero_point, {"dim": 1})

    def relu(self, x, kind="relu") -> str:
        feed = self.node(x)
        zero = feed.out.zero_point
        high = min(127, round(6 / feed.out.scale) + zero) if kind == "relu6" else 127
        return self.put(kind, (x,), feed.shape, feed.out.scale, zero, {}, zero, high)

    def mean(self, x, ratio=1.0) -> str:
        feed = self.node(x)
        shape = (1, feed.shape[1], 1, 1)
        return self.put("mean", (x,), shape, feed.out.scale / ratio, self.zero_point())

    def pad(self, x, pads) -> str:
        feed = self.node(x)
        _, c, h, w = feed.shape
        shape = (1, c, h + pads[2] + pads[3], w + pads[0] + pads[1])
        return self.put("pad", (x,), shape, feed.out.scale, feed.out.zero_point, {"padding": tuple(pads)})

    def reshape(self, x, shape) -> str:
        out = self.node(x).out
        return self.put("reshape", (x,), shape, out.scale, out.zero_point, {"shape": tuple(shape)})

    def permute(self, x, dims) -> str:
        feed = self.node(x)
        shape = tuple(feed.shape[d] for d in dims)
        return self.put("permute", (x,), shape, feed.out.scale, feed.out.zero_point, {"dims": tuple(dims)})

    def reorg(self, x) -> str:
        _, c, h, w = self.node(x).shape
        y = self.reshape(x, (1, c, h // 2, 2, w // 2, 2))
        return self.reshape(self.permute(y, (0, 3, 5, 1, 2, 4)), (1, 4 * c, h // 2, w // 2))


def random_graph(seed: int, expose: bool = False) -> IntegerGraph:
    """A network with every kind of operation and random everything; odd sizes, one input."""
    rng = np.random.default_rng(seed + 1000)
    odd = int(rng.integers(6, 9)) * 2 + 1
    b = Builder(seed, (1, int(rng.integers(1, 6)), odd, odd + 2), 10 ** rng.uniform(-3, 0))

    def pads(k: int) -> tuple[int, ...]:
        return tuple(int(p) for p in rng.integers(0, k, 4))

    gain = lambda: 10 ** rng.uniform(-1, 1)  # noqa: E731
    x = b.conv("input", 8, 3, 2, gain=gain(), clamp=str(rng.choice(["", "relu", "relu6"])))
    x = b.leaky(b.conv(x, 8, int(rng.choice([1, 3, 5])), gain=gain()), 0.1, float(rng.uniform(1, 10)))
    k = int(rng.choice([2, 3]))
    pooled = b.pool(x, k, int(rng.choice([1, 2])), pads(k))
    dw = b.conv(x, 8, 3, groups=8, gain=gain(), clamp="relu")
    pw = b.conv(dw, 8, 1, gain=gain())
    y = b.add(pw, x, relu=bool(rng.integers(2)))
    y = b.conv(y, 6, 3, 1, pads(3), groups=2, gain=gain())
    z = b.relu(y, str(rng.choice(["relu", "relu6"])))
    z = b.leaky(z, float(rng.choice([0.1, 0.01, 0.25, 1.0])), float(rng.uniform(1, 3)))
    z = b.pad(z, tuple(int(p) for p in rng.integers(0, 3, 4)))
    both = b.add(y, y, scale=b.node(y).out.scale * gain())
    h, w = b.node(both).shape[2:]
    even = b.conv(both, 6, 1, 1, (0, w % 2, 0, h % 2), gain=gain())
    passed = b.reorg(even)
    down = b.pool(even, 2, 2)
    joined = b.concat(passed, down)
    head = b.conv(joined, 7, 1, gain=gain())
    flat = b.reshape(b.mean(joined, float(rng.uniform(0.3, 4))), (1, b.node(joined).shape[1]))
    fc = b.linear(flat, 9)
    return b.graph() if expose else b.graph(pooled, z, head, fc)


def inputs_for(graph: IntegerGraph, count: int = 6) -> np.ndarray:
    """Textures, and the two constant extremes, which saturate."""
    shape = graph.input.shape
    ends = [np.full(shape, value, np.int8) for value in (-128, 127)]
    return np.concatenate([make_inputs(shape, count, 7), *ends])


class Residual(nn.Module):
    """ResNet-like: BN, ReLU, residual add, k3 s2 p1 pool, mean, linear; two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(F.relu(self.bn(self.stem(x))))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3))), x


class Passthrough(nn.Module):
    """YOLO-like: leaky ReLU, darknet's one-sided pool, reorg and concat."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.c, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.a(x), 0.1)
        p = F.leaky_relu(self.b(x), 0.1)
        n, c, h, w = p.shape
        p = p.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        y = F.max_pool2d(F.leaky_relu(self.c(x), 0.1), 2)
        y = F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=float("-inf")), 2, 1)
        return self.head(torch.cat([p, y], 1))


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and BN statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.dtype == torch.float32:
            low, high = (0.3, 1.5) if name.endswith(("running_var",)) else (-0.4, 0.4)
            if "bn" in name and name.endswith("weight"):
                low, high = 0.5, 1.5
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return network.eval()


def ranges_of(graph: Graph, seed: int = 0, count: int = 4) -> dict[str, tuple[float, float]]:
    x = torch.rand((count, *graph.nodes[0].shape[1:]), generator=torch.Generator().manual_seed(seed))
    return {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}


def quantized(network: nn.Module, shape: tuple[int, ...] = (1, 3, 16, 16)) -> IntegerGraph:
    graph = trace(network, shape)
    return quantize(graph, ranges_of(graph), input_range=(0.0, 1.0))
