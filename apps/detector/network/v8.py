"""A detector without anchors, of an own definition: after what is published of YOLO v8's architecture.

A backbone of strided convolutions and blocks whose bottlenecks are all concatenated, pooled at its end over
several windows; levels that exchange their maps from coarse to fine and back; and for each level one branch
for the distances to a box's sides, as bins, and one for the classes. There is no published network whose
weights fit it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from paredown.targets.errors import UsageError

#: How sure of every class an untrained network is: training starts from mostly background.
PRIOR = 0.01

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def _conv(channels: int, filters: int, size: int, stride: int, activation: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(filters),
        _ACTIVATIONS[activation](),
    )


class Bottleneck(nn.Module):
    """Two convolutions, added to what they see."""

    def __init__(self, channels: int, activation: str, add: bool) -> None:
        super().__init__()
        self.first, self.second = (_conv(channels, channels, 3, 1, activation) for _ in range(2))
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        found: Tensor = self.second(self.first(x))
        return x + found if self.add else found


class Block(nn.Module):
    """Half of the channels go through bottlenecks; every one's output is concatenated."""

    def __init__(self, channels: int, filters: int, depth: int, activation: str, add: bool = True) -> None:
        super().__init__()
        half = filters // 2
        self.enter = _conv(channels, 2 * half, 1, 1, activation)
        self.steps = nn.ModuleList(Bottleneck(half, activation, add) for _ in range(depth))
        self.leave = _conv((2 + depth) * half, filters, 1, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, h, w) to (N, filters, h, w)."""
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        found: Tensor = self.leave(torch.cat(parts, 1))
        return found


class Pooled(nn.Module):
    """Maxima over windows of 5, 9 and 13 cells beside the map itself."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.enter = _conv(channels, channels // 2, 1, 1, activation)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = _conv(4 * (channels // 2), channels, 1, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        found: Tensor = self.leave(torch.cat(parts, 1))
        return found


class V8Like(nn.Module):
    """A detector whose outputs are, of each level, distances (N, 4 * bins, h, w) and classes (N, C, h, w).

    Args:
        classes: how many.
        widths: channels at strides 2, 4, 8 and so on; the last `levels` of them are detected on.
        depths: bottlenecks behind each width but the first.
        levels: how many.
        bins: of a distance, which is at most bins - 1 cells; 1 is the distance itself.
        activation: "relu" or "silu".
        input_size: side of the input in pixels, a multiple of the last stride.
    """

    def __init__(
        self,
        classes: int,
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        depths: tuple[int, ...] = (1, 2, 2, 1),
        levels: int = 3,
        bins: int = 16,
        activation: str = "relu",
        input_size: int = 320,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS or len(depths) != len(widths) - 1 or not 0 < levels < len(widths):
            raise ValueError(f"no network of {widths}, {depths}, {levels} levels and {activation}")
        conv = functools.partial(_conv, activation=activation)
        block = functools.partial(Block, activation=activation)
        self.classes, self.input_size, self.levels = classes, input_size, levels
        strides = [2 ** (len(widths) - levels + 1 + level) for level in range(levels)]
        self.decoding = {"kind": "v8", "strides": strides, "bins": bins}
        self.stem = conv(3, widths[0], 3, 2)
        pairs = zip(widths, widths[1:], depths, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(conv(a, b, 3, 2), block(b, b, d)) for a, b, d in pairs)
        self.pooled = Pooled(widths[-1], activation)
        found = widths[-levels:]
        self.up = nn.Upsample(scale_factor=2.0)
        neighbours = tuple(zip(found, found[1:], strict=False))
        self.fine = nn.ModuleList(block(a + b, a, 1, add=False) for a, b in neighbours)
        self.down = nn.ModuleList(conv(width, width, 3, 2) for width in found[:-1])
        self.coarse = nn.ModuleList(block(a + b, b, 1, add=False) for a, b in neighbours)
        hidden = max(16, found[0])
        near = torch.ones(4) if bins == 1 else -torch.arange(bins).repeat(4) / 2  # boxes begin small
        self.boxes = nn.ModuleList(self._branch(conv, width, hidden, near) for width in found)
        rare = torch.full((classes,), -math.log((1 - PRIOR) / PRIOR))
        self.kinds = nn.ModuleList(self._branch(conv, width, hidden, rare) for width in found)

    @staticmethod
    def _branch(conv: Callable[..., nn.Module], channels: int, hidden: int, bias: Tensor) -> nn.Module:
        last = nn.Conv2d(hidden, len(bias), 1)
        assert last.bias is not None
        with torch.no_grad():
            last.bias.copy_(bias)
        return nn.Sequential(conv(channels, hidden, 3, 1), conv(hidden, hidden, 3, 1), last)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps images (N, 3, H, W) to box and classes of the finest level, then of the next."""
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [*maps[-self.levels : -1], self.pooled(x)]
        for level in reversed(range(self.levels - 1)):
            maps[level] = self.fine[level](torch.cat([maps[level], self.up(maps[level + 1])], 1))
        for level in range(self.levels - 1):
            maps[level + 1] = self.coarse[level](
                torch.cat([self.down[level](maps[level]), maps[level + 1]], 1)
            )
        outputs: list[Tensor] = []
        for level, found in enumerate(maps):
            outputs += [self.boxes[level](found), self.kinds[level](found)]
        return tuple(outputs)


#: Name in a recipe -> activation.
BUILTIN = {"yolov8-nano-like": "relu", "yolov8-nano-like-silu": "silu"}


def builtin(name: str, classes: int) -> V8Like:
    """A network by name, with random weights.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in BUILTIN:
        raise UsageError(f"no built-in network {name!r}", hint=f"use one of: {', '.join(BUILTIN)}")
    return V8Like(classes, activation=BUILTIN[name])
