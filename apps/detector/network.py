"""YOLO-v2 as a plain torch module, built from a darknet .cfg.

The convolution before [region] is split in four (xy, wh, objectness, classes): their ranges differ a lot, and
a quantizer that gives each its own scale loses much less (our design). `weights.py` merges them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.apps.detector.darknet.darknet import (
    Cfg,
    Convolutional,
    MaxPool,
    Reorg,
    Route,
    builtin_cfg,
    output_shapes,
    read_cfg,
)
from paredown.apps.detector.darknet.write import with_filters
from paredown.targets.errors import InputError

# darknet (CPU) divides by sqrt(v) + 1e-6, that is by sqrt(v + eps) with eps = 2e-6 sqrt(v): near 1e-6 for the
# variances of real networks (yololite's are .009 to 16: within 5e-5 relative, 6e-7 on average; torch's own
# 1e-5: 5e-4 and 7e-6).
BN_EPS = 1e-6

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Header:
    """The head of a .weights file: version, images seen in training; `seen` takes 8 bytes if wide, else 4."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0
    wide: bool = True


class ConvLayer(nn.Module):
    """[convolutional]: convolution, batch norm (then the convolution has no bias), activation."""

    def __init__(self, layer: Convolutional, channels: int) -> None:
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
        self.bn = nn.BatchNorm2d(layer.filters, eps=BN_EPS) if layer.batch_normalize else None
        activations = {"leaky": nn.LeakyReLU(0.1), "relu": nn.ReLU(), "linear": None}
        self.activation = activations[layer.activation]

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
    """[route]: concatenates earlier outputs along the channels."""

    def __init__(self, layer: Route) -> None:
        super().__init__()
        self.layers = layer.layers

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Maps feature maps (N, C_i, H, W) to (N, sum C_i, H, W)."""
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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
    """The convolution before [region], split by what its outputs mean."""

    def __init__(self, layer: Convolutional, channels: int, anchors: int, classes: int) -> None:
        super().__init__()

        def conv(filters: int) -> nn.Conv2d:
            return nn.Conv2d(channels, filters, layer.size, layer.stride, layer.padding)

        self.xy, self.wh = conv(2 * anchors), conv(2 * anchors)
        self.obj, self.cls = conv(anchors), conv(classes * anchors)

    def forward(self, x: Tensor) -> Outputs:
        """Maps (N, C, h, w) to logits (N, 2A, h, w), (N, 2A, h, w), (N, A, h, w), (N, A * classes, h, w)."""
        return self.xy(x), self.wh(x), self.obj(x), self.cls(x)


class YoloV2(nn.Module):
    """A YOLO-v2 network.

    Attributes:
        cfg: the .cfg it was built from.
        anchors: (width, height) of each anchor, in cells.
        classes: number of classes.
        width, height: the input's size in pixels, as in the .cfg; forward takes other sizes too.
        header: major, minor, revision and `seen` of the .weights file that was read; else darknet's own.
    """

    def __init__(self, cfg: Cfg) -> None:
        """Builds the network with torch's default initialisation; see `from_cfg`, `builtin`."""
        super().__init__()
        self.cfg = cfg
        self.anchors = cfg.region.anchors
        self.classes = cfg.region.classes
        self.width, self.height = cfg.net.width, cfg.net.height
        self.header = Header()
        shapes = output_shapes(cfg)
        layers: list[nn.Module] = []
        channels = cfg.net.channels
        for layer, shape in zip(cfg.layers[:-1], shapes, strict=False):
            if isinstance(layer, Convolutional):
                layers.append(ConvLayer(layer, channels))
            elif isinstance(layer, MaxPool):
                layers.append(MaxPoolLayer(layer))
            elif isinstance(layer, Route):
                layers.append(RouteLayer(layer))
            else:
                layers.append(ReorgLayer(layer))
            channels = shape[0]
        self.layers = nn.ModuleList(layers)
        last = cfg.layers[-1]
        assert isinstance(last, Convolutional)  # parse_cfg checked it
        self.head = RegionHead(last, channels, len(self.anchors), self.classes)
        # Outputs that a later route takes: the others need not stay in memory.
        self._kept = frozenset(i for layer in cfg.layers if isinstance(layer, Route) for i in layer.layers)

    @classmethod
    def from_cfg(cls, cfg: Cfg | str | Path) -> YoloV2:
        """Builds the network of a parsed .cfg, or of a .cfg file.

        Raises:
            InputError: if the file cannot be read or does not describe a YOLO-v2 network.
        """
        return cls(cfg if isinstance(cfg, Cfg) else read_cfg(cfg))

    @classmethod
    def builtin(cls, name: str) -> YoloV2:
        """Builds one of the detector's own networks: yolov2-voc, yolov2-tiny-voc or yolov2-nano.

        Raises:
            UsageError: if there is none of that name.
        """
        return cls(builtin_cfg(name))

    @property
    def stride(self) -> int:
        """Input pixels per cell."""
        return self.width // output_shapes(self.cfg)[-1][2]

    def forward(self, x: Tensor) -> Outputs:
        """Computes the raw logits of the region head.

        Args:
            x: images (N, channels, H, W), float.

        Returns:
            xy (N, 2A, h, w): x and y of anchor 0, then of anchor 1 ...; wh (N, 2A, h, w) likewise;
            obj (N, A, h, w); cls (N, A * classes, h, w): all classes of anchor 0, then of anchor 1 ...
        """
        kept: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            x = layer([kept[i] for i in layer.layers]) if isinstance(layer, RouteLayer) else layer(x)
            if index in self._kept:
                kept[index] = x
        return self.head(x)

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
