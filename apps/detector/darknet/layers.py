"""What a darknet .cfg says, as frozen dataclasses, and the shape of the tensor behind every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from paredown.apps.detector.darknet.text import Options
from paredown.targets.errors import InputError

MAX_PARAMETERS = 1 << 29  # ten times yolov2-voc: a cfg that asks for more is a typing mistake, not a network
MAX_ACTIVATION = 1 << 28  # values in one feature map


@dataclass(frozen=True)
class Net:
    """[net]: the input's size in pixels and its channels; the training keys stay in `options`."""

    width: int
    height: int
    channels: int
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Convolutional:
    """[convolutional]: `padding` pixels on every side; BN (if any) comes before the activation."""

    filters: int
    size: int
    stride: int
    padding: int
    groups: int
    batch_normalize: bool
    activation: str
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class MaxPool:
    """[maxpool]: `padding` is darknet's: the total of both sides, padding // 2 of it left and top."""

    size: int
    stride: int
    padding: int
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Route:
    """[route]: concatenates the outputs of earlier layers, given here as absolute layer numbers.

    With `groups`, of each of them only the part number `group_id` of the channels, of that many equal parts.
    """

    layers: tuple[int, ...]
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True)
class Shortcut:
    """[shortcut]: adds the outputs of earlier layers (absolute numbers) to the previous one's."""

    layers: tuple[int, ...]
    activation: str
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Upsample:
    """[upsample]: every value `stride` times across and down."""

    stride: int
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class AvgPool:
    """[avgpool]: the mean of a whole map."""

    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Dropout:
    """[dropout]: nothing but a layer number, outside of training."""

    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Crop:
    """[crop]: the middle of the input; with `adjust`, from -1 to 1 where it was from 0 to 1."""

    height: int
    width: int
    adjust: bool
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Softmax:
    """[softmax]: over all values of a map, or over each of `groups` equal parts of them, one by one."""

    groups: int
    temperature: float
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Cost:
    """[cost]: the loss in training; here nothing."""

    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Reorg:
    """[reorg]: darknet's space-to-depth."""

    stride: int
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Region:
    """[region]: the YOLO-v2 head; anchors are (width, height) in cells. Scales and thresh are the loss's."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    object_scale: float
    noobject_scale: float
    class_scale: float
    coord_scale: float
    thresh: float
    rescore: bool
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Yolo:
    """[yolo]: a head of YOLO v3 or v4.

    Attributes:
        anchors: (width, height) in pixels of the input, those of all heads.
        mask: which of them are this head's.
        classes: independent of each other.
        scale_x_y: how far a centre can leave its cell: s * sigmoid - (s - 1) / 2.
        new_coords: width and height are the anchor's times (2 * sigmoid)^2, not times exp.
        nms_beta: of the suppression by distance; None: by the intersection over union alone.
        line, options: where it stands, and all its keys.
    """

    anchors: tuple[tuple[float, float], ...]
    mask: tuple[int, ...]
    classes: int
    scale_x_y: float
    new_coords: bool
    nms_beta: float | None
    line: int = 0
    options: Options = field(default_factory=dict, hash=False)


Layer = (
    Convolutional | MaxPool | Route | Reorg | Shortcut | Upsample | AvgPool | Dropout | Crop | Softmax | Cost
    | Yolo
)  # fmt: skip
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Cfg:
    """A parsed .cfg. `layers` are numbered as darknet numbers them.

    The last one feeds `region`. Without a region there are heads among the layers; a classifier has neither.
    """

    net: Net
    layers: tuple[Layer, ...]
    region: Region | None
    where: str

    @property
    def yolos(self) -> dict[int, Yolo]:
        """The [yolo] heads by layer number; none of a network with a [region]."""
        return {index: layer for index, layer in enumerate(self.layers) if isinstance(layer, Yolo)}

    @property
    def detects(self) -> bool:
        """Whether there is a head that finds boxes; else it is a classifier."""
        return self.region is not None or bool(self.yolos)

    @property
    def classes(self) -> int:
        """How many, alike in all heads; of a classifier its outputs."""
        if self.region:
            return self.region.classes
        return next((yolo.classes for yolo in self.yolos.values()), 0) or output_shapes(self)[-1][0]

    @property
    def letter_box(self) -> bool:
        """Whether darknet feeds this network with images that keep their aspect ratio."""
        return self.net.options.get("letter_box", "0") != "0"

    def at(self, line: int) -> str:
        """Returns "file:line", for errors."""
        return f"{self.where}:{line}"


def _sizes(shapes: Sequence[Shape]) -> str:
    return ", ".join(f"{c} channels of {w}x{h}" for c, h, w in shapes)


def output_shapes(cfg: Cfg, width: int | None = None, height: int | None = None) -> tuple[Shape, ...]:
    """Returns (channels, height, width) after every layer, at the cfg's own input size or at another one.

    Raises:
        InputError: naming the line, where a layer cannot take what reaches it.
    """
    shapes: list[Shape] = []
    shape: Shape = (cfg.net.channels, height or cfg.net.height, width or cfg.net.width)
    parameters = 0
    for layer in cfg.layers:
        c, h, w = shape
        if isinstance(layer, Convolutional):
            if c % layer.groups or layer.filters % layer.groups:
                raise InputError(
                    f"groups={layer.groups} does not divide {c} input channels and {layer.filters} filters",
                    where=cfg.at(layer.line),
                )
            parameters += layer.filters * c // layer.groups * layer.size**2
            grow = 2 * layer.padding - layer.size
            shape = (layer.filters, (h + grow) // layer.stride + 1, (w + grow) // layer.stride + 1)
        elif isinstance(layer, MaxPool):
            grow = layer.padding - layer.size
            shape = (c, (h + grow) // layer.stride + 1, (w + grow) // layer.stride + 1)
        elif isinstance(layer, Reorg):
            s = layer.stride
            if c % s**2 or h % s or w % s:
                raise InputError(
                    f"[reorg] stride={s} cannot take {c} channels of {w}x{h}",
                    where=cfg.at(layer.line),
                    hint=f"channels must be a multiple of {s * s}, width and height of {s}",
                )
            shape = (c * s**2, h // s, w // s)
        elif isinstance(layer, Upsample):
            shape = (c, h * layer.stride, w * layer.stride)
        elif isinstance(layer, AvgPool):
            shape = (c, 1, 1)
        elif isinstance(layer, Crop):
            if layer.height > h or layer.width > w:
                raise InputError(
                    f"[crop] takes {layer.width}x{layer.height} of a {w}x{h} map", where=cfg.at(layer.line)
                )
            shape = (c, layer.height, layer.width)
        elif isinstance(layer, Softmax):
            if c * h * w % layer.groups:
                raise InputError(
                    f"groups={layer.groups} does not divide the {c * h * w} values of a [softmax]",
                    where=cfg.at(layer.line),
                )
        elif isinstance(layer, Shortcut):
            for other in (shapes[i] for i in layer.layers):
                if other != shape:
                    raise InputError(
                        f"[shortcut] adds maps of different shapes: {_sizes([shape, other])}",
                        where=cfg.at(layer.line),
                        hint="darknet would add a part of them; that is not supported",
                    )
        elif isinstance(layer, Route):
            parts = [shapes[i] for i in layer.layers]
            if len({p[1:] for p in parts}) != 1:
                sizes = ", ".join(f"{p[2]}x{p[1]}" for p in parts)
                raise InputError(f"[route] joins maps of different sizes: {sizes}", where=cfg.at(layer.line))
            for part in parts:
                if part[0] % layer.groups:
                    raise InputError(
                        f"groups={layer.groups} does not divide the {part[0]} channels of a [route]",
                        where=cfg.at(layer.line),
                    )
            shape = (sum(p[0] // layer.groups for p in parts), *parts[0][1:])
        if min(shape) < 1:
            raise InputError(f"nothing is left of a {w}x{h} feature map", where=cfg.at(layer.line))
        if parameters > MAX_PARAMETERS or math.prod(shape) > MAX_ACTIVATION:
            raise InputError("the network grows beyond any that fits in memory", where=cfg.at(layer.line))
        shapes.append(shape)
    return tuple(shapes)


def coarsest_stride(cfg: Cfg) -> int:
    """Returns how many pixels of the input a cell takes across, in the head with the largest cells."""
    shapes = output_shapes(cfg)
    return max(cfg.net.width // shapes[index][2] for index in cfg.yolos or [len(shapes) - 1])
