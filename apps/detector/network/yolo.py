"""YOLO v2, v3 and v4 as a plain torch module, built from a darknet .cfg.

The convolution before a head is split in four (xy, wh, objectness, classes): their ranges differ a lot, and
a quantizer that gives each its own scale loses much less (our design). `weights.py` merges them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
from paredown.apps.detector.darknet.layers import (
    AvgPool,
    Cfg,
    Convolutional,
    Crop,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shortcut,
    Softmax,
    Upsample,
    coarsest_stride,
    output_shapes,
)
from paredown.apps.detector.darknet.write import with_filters
from paredown.targets.errors import InputError

# darknet (CPU) divides by sqrt(v) + 1e-6, that is by sqrt(v + eps) with eps = 2e-6 sqrt(v): near 1e-6 for the
# variances of real networks (yololite's are .009 to 16: within 5e-5 relative, 6e-7 on average; torch's own
# 1e-5: 5e-4 and 7e-6).
BN_EPS = 1e-6
# Networks with [yolo] are later than that: what they are trained and run with divides by sqrt(v + 1e-5).
YOLO_BN_EPS = 1e-5

#: xy, wh, obj, cls of a head; of one head after the other where there are several.
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Header:
    """The head of a .weights file: version, images seen in training; `seen` takes 8 bytes if wide, else 4."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0
    wide: bool = True


def _activation(name: str) -> nn.Module | None:
    kinds: dict[str, Callable[[], nn.Module]] = {
        "leaky": lambda: nn.LeakyReLU(0.1), "relu": nn.ReLU, "relu6": nn.ReLU6, "mish": nn.Mish,
        "logistic": nn.Sigmoid, "swish": nn.SiLU, "hardswish": nn.Hardswish,
    }  # fmt: skip
    return kinds[name]() if name in kinds else None


class ConvLayer(nn.Module):
    """[convolutional]: convolution, batch norm (then the convolution has no bias), activation."""

    def __init__(self, layer: Convolutional, channels: int, eps: float = BN_EPS) -> None:
        """Builds the layer for `channels` input channels, with torch's default initialisation."""
        super().__init__()
        self.conv = nn.Conv2d(
            channels,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=not layer.batch_normalize,
        )
        self.bn = nn.BatchNorm2d(layer.filters, eps=eps) if layer.batch_normalize else None
        self.activation = _activation(layer.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, filters, H', W')."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.activation is None else self.activation(x)


class MaxPoolLayer(nn.Module):
    """[maxpool]: darknet's padding: padding // 2 left and top, the rest right and bottom, all -inf."""

    def __init__(self, layer: MaxPool) -> None:
        super().__init__()
        self.size, self.stride, self.padding = layer.size, layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, (H + padding - size) // stride + 1, same for W)."""
        top, bottom = self._pads(x.shape[2])
        left, right = self._pads(x.shape[3])
        if top or bottom or left or right:
            x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, self.size, self.stride)

    def _pads(self, length: int) -> tuple[int, int]:
        before = self.padding // 2
        windows = (length + self.padding - self.size) // self.stride + 1
        # Only what a window reaches: an even map under 2x2 windows gets no pad node in the graph.
        reached = (windows - 1) * self.stride + self.size
        return before, max(0, reached - before - length)


class RouteLayer(nn.Module):
    """[route]: concatenates earlier outputs, or one of the groups of each, along the channels."""

    def __init__(self, layer: Route) -> None:
        super().__init__()
        self.layers, self.groups, self.group_id = layer.layers, layer.groups, layer.group_id

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Maps feature maps (N, C_i, H, W) to (N, sum C_i / groups, H, W)."""
        if self.groups > 1:
            parts = [self._group(part) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _group(self, x: Tensor) -> Tensor:
        size = x.shape[1] // self.groups
        return x[:, size * self.group_id : size * (self.group_id + 1)]


class ShortcutLayer(nn.Module):
    """[shortcut]: adds earlier outputs to the previous one, then the activation."""

    def __init__(self, layer: Shortcut) -> None:
        super().__init__()
        self.layers = layer.layers
        self.activation = _activation(layer.activation)

    def forward(self, x: Tensor, others: list[Tensor]) -> Tensor:
        """Maps (N, C, H, W) and others of that shape to their sum."""
        for other in others:
            x = x + other
        return x if self.activation is None else self.activation(x)


class UpsampleLayer(nn.Module):
    """[upsample]: repeats every value, across and down."""

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H s, W s)."""
        return F.interpolate(x, scale_factor=float(self.stride), mode="nearest")


class AvgPoolLayer(nn.Module):
    """[avgpool]: the mean of every map."""

    def __init__(self, layer: AvgPool) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class CropLayer(nn.Module):
    """[crop]: the middle; a value v of 0 to 1 becomes 2 v - 1 unless noadjust says otherwise."""

    def __init__(self, layer: Crop) -> None:
        super().__init__()
        self.height, self.width, self.adjust = layer.height, layer.width, layer.adjust

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, height, width)."""
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        x = x[:, :, top : top + self.height, left : left + self.width]
        return 2 * x - 1 if self.adjust else x


class SoftmaxLayer(nn.Module):
    """[softmax]: over all values, or over each part of them, divided by the temperature."""

    def __init__(self, layer: Softmax) -> None:
        super().__init__()
        self.groups, self.temperature = layer.groups, layer.temperature

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to as many."""
        if self.temperature != 1:
            x = x / self.temperature
        if self.groups == 1 and x.shape[2:] == (1, 1):
            return x.softmax(1)
        return x.reshape(x.shape[0], self.groups, -1).softmax(2).reshape(x.shape)


class ReorgLayer(nn.Module):
    """[reorg]: darknet's loop, which is not pixel_unshuffle.

    The loop reinterprets memory. With stride 2, input channel m becomes output channels m, C + m, 2C + m and
    3C + m only where H is a multiple of 4. Elsewhere (26x26 in yolov2-voc at 416) values also move among the
    four channels 4i ... 4i + 3: these four live and die together when channels are pruned.
    """

    def __init__(self, layer: Reorg) -> None:
        super().__init__()
        self.stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C s^2, H / s, W / s)."""
        n, c, h, w = x.shape
        s = self.stride
        x = x.reshape(n, c // (s * s), h, s, w, s).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * s * s, h // s, w // s)


class RegionHead(nn.Module):
    """The convolution before [region] or [yolo], split by what its outputs mean.

    An activation=logistic, which [yolo] with new_coords asks for, is left to decoding: outputs are logits.
    """

    def __init__(self, layer: Convolutional, channels: int, anchors: int, classes: int) -> None:
        super().__init__()

        def conv(filters: int) -> nn.Conv2d:
            return nn.Conv2d(channels, filters, layer.size, layer.stride, layer.padding)

        self.xy, self.wh = conv(2 * anchors), conv(2 * anchors)
        self.obj, self.cls = conv(anchors), conv(classes * anchors)

    def forward(self, x: Tensor) -> Outputs:
        """Maps (N, C, h, w) to logits (N, 2A, h, w), (N, 2A, h, w), (N, A, h, w), (N, A * classes, h, w)."""
        return self.xy(x), self.wh(x), self.obj(x), self.cls(x)


class Yolo(nn.Module):
    """A YOLO network: of v2 with one [region], of v3 or v4 with one or several [yolo].

    Attributes:
        cfg: the .cfg it was built from.
        anchors: (width, height) of each anchor of a [region], in cells; none with [yolo].
        classes: number of classes.
        width, height: the input's size in pixels, as in the .cfg; forward takes other sizes too.
        header: major, minor, revision and `seen` of the .weights file that was read; else darknet's own.
    """

    def __init__(self, cfg: Cfg) -> None:
        """Builds the network with torch's default initialisation; see `from_cfg`, `builtin`."""
        super().__init__()
        self.cfg = cfg
        self.anchors = cfg.region.anchors if cfg.region else ()
        self.classes = cfg.classes
        self.width, self.height = cfg.net.width, cfg.net.height
        self.header = Header()
        shapes = output_shapes(cfg)
        self._before = [cfg.net.channels, *(shape[0] for shape in shapes)]
        old = cfg.region or not cfg.detects
        self._eps = BN_EPS if old else YOLO_BN_EPS
        body = cfg.layers[:-1] if cfg.region else cfg.layers
        self.layers = nn.ModuleList(self._made(index, layer) for index, layer in enumerate(body))
        if cfg.region:
            self.head = self._head(len(body), len(self.anchors))
        # Outputs that a later layer takes: the others need not stay in memory.
        taking = (layer for layer in cfg.layers if isinstance(layer, Route | Shortcut))
        self._kept = frozenset(i for layer in taking for i in layer.layers)

    def _made(self, index: int, layer: Layer) -> nn.Module:
        if isinstance(layer, Convolutional):
            if index + 1 in self.cfg.yolos:
                return self._head(index, len(self.cfg.yolos[index + 1].mask))
            return ConvLayer(layer, self._before[index], self._eps)
        if isinstance(layer, MaxPool):
            return MaxPoolLayer(layer)
        if isinstance(layer, Route):
            return RouteLayer(layer)
        if isinstance(layer, Shortcut):
            return ShortcutLayer(layer)
        if isinstance(layer, Upsample):
            return UpsampleLayer(layer)
        if isinstance(layer, AvgPool):
            return AvgPoolLayer(layer)
        if isinstance(layer, Reorg):
            return ReorgLayer(layer)
        if isinstance(layer, Crop):
            return CropLayer(layer)
        if isinstance(layer, Softmax):
            return SoftmaxLayer(layer)
        return nn.Identity()  # [dropout] when nothing is trained, [cost], and the place of a [yolo]

    def _head(self, index: int, anchors: int) -> RegionHead:
        layer = self.cfg.layers[index]
        assert isinstance(layer, Convolutional)  # parse_cfg checked it
        return RegionHead(layer, self._before[index], anchors, self.classes)

    @property
    def heads(self) -> dict[int, RegionHead]:
        """The convolutions before a [region] or [yolo], by layer number."""
        if self.cfg.region:
            return {len(self.layers): self.head}
        return {index: layer for index, layer in enumerate(self.layers) if isinstance(layer, RegionHead)}

    @classmethod
    def from_cfg(cls, cfg: Cfg | str | Path) -> Yolo:
        """Builds the network of a parsed .cfg, or of a .cfg file.

        Raises:
            InputError: if the file cannot be read or does not describe a YOLO network.
        """
        return cls(cfg if isinstance(cfg, Cfg) else read_cfg(cfg))

    @classmethod
    def builtin(cls, name: str) -> Yolo:
        """Builds one of the detector's own networks, see `builtin_names`; the weights are random.

        Raises:
            UsageError: if there is none of that name.
        """
        return cls(builtin_cfg(name))

    @property
    def stride(self) -> int:
        """Input pixels per cell, of the head with the largest cells."""
        return coarsest_stride(self.cfg)

    def forward(self, x: Tensor) -> Outputs:
        """Computes the raw logits of the head, or of one head after the other.

        Args:
            x: images (N, channels, H, W), float.

        Returns:
            Of every head xy (N, 2A, h, w): x and y of anchor 0, then of anchor 1 ...; wh likewise;
            obj (N, A, h, w); cls (N, A * classes, h, w): all classes of anchor 0, then of anchor 1 ...
        """
        x, outputs = self.run(x)
        return self.head(x) if self.cfg.region else outputs

    def run(self, x: Tensor) -> tuple[Tensor, Outputs]:
        """The output of the last layer, and the logits of the [yolo] heads."""
        kept: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, RegionHead):
                outputs += layer(x)
                continue
            if isinstance(layer, RouteLayer):
                x = layer([kept[i] for i in layer.layers])
            elif isinstance(layer, ShortcutLayer):
                x = layer(x, [kept[i] for i in layer.layers])
            else:
                x = layer(x)
            if index in self._kept:
                kept[index] = x
        return x, tuple(outputs)

    def current_cfg(self) -> Cfg:
        """Returns the .cfg of the network as it is now: channel pruning changes widths, never the head's.

        Raises:
            InputError: if the convolutions no longer fit together, or were replaced by something else.
        """
        filters = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, ConvLayer):
                if not isinstance(layer.conv, nn.Conv2d):
                    raise InputError(
                        f"layer {index} is a {type(layer.conv).__name__}, not a convolution",
                        where=self.cfg.where,
                    )
                filters[index] = layer.conv.out_channels
        return with_filters(self.cfg, filters)


#: The name from when there were only networks with a [region].
YoloV2 = Yolo
