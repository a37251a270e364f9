"""Darknet's .cfg files: text in, frozen dataclasses out, every mistake named with its line.

Keys and defaults are those of darknet's parser; `keys.py` has all of them. What darknet accepts
but this detector cannot compute is refused with the line it stands on; keys that matter in training only are
kept in `options`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from paredown.apps.detector.darknet.keys import check_keys
from paredown.apps.detector.darknet.text import Options, Section, real, scan, whole
from paredown.targets.errors import InputError, UsageError

ACTIVATIONS = ("leaky", "linear", "relu", "relu6", "mish", "logistic", "swish", "hardswish")
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


Layer = Convolutional | MaxPool | Route | Reorg | Shortcut | Upsample | AvgPool | Dropout | Yolo
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Cfg:
    """A parsed .cfg. `layers` are numbered as darknet numbers them.

    The last one feeds `region`. Without a region there are heads among the layers.
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
    def classes(self) -> int:
        """How many, alike in all heads."""
        return self.region.classes if self.region else next(iter(self.yolos.values())).classes

    @property
    def letter_box(self) -> bool:
        """Whether darknet feeds this network with images that keep their aspect ratio."""
        return self.net.options.get("letter_box", "0") != "0"

    def at(self, line: int) -> str:
        """Returns "file:line", for errors."""
        return f"{self.where}:{line}"


def _activation(section: Section, default: str) -> str:
    activation = section.text("activation", default)
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation={activation[:40]} is not supported",
            where=section.at("activation"),
            hint=f"supported: {', '.join(ACTIVATIONS)}",
        )
    return activation


def _convolutional(section: Section) -> Convolutional:
    size = section.integer("size", 1, 1, 63)
    padding = section.integer("padding", 0, 0, 63)
    if section.integer("pad", 0, 0, 1):
        padding = size // 2
    normalize = section.integer("batch_normalize", 0, 0, 2) or section.integer("cbn", 0, 0, 1)
    return Convolutional(
        filters=section.integer("filters", 1, 1, 1 << 16),
        size=size,
        stride=section.integer("stride", 1, 1, 63),
        padding=padding,
        groups=section.integer("groups", 1, 1, 1 << 16),
        batch_normalize=bool(normalize),  # 2 and cbn=1: another way to train the same layer
        activation=_activation(section, "logistic"),
        line=section.line,
        options=section.options,
    )


def _maxpool(section: Section) -> MaxPool:
    stride = section.integer("stride", 1, 1, 63)
    size = section.integer("size", stride, 1, 63)
    padding = section.integer("padding", size - 1, 0, size - 1)
    return MaxPool(size, stride, padding, section.line, section.options)


def _earlier(section: Section, key: str, index: int) -> tuple[int, ...]:
    """The layer numbers under a key, which may be counted back from the layer itself."""
    layers = []
    for raw in section.text(key, "").rstrip(",").split(","):
        value = whole(raw)
        layer = index if value is None else index + value if value < 0 else value
        if not 0 <= layer < index:
            raise InputError(
                f"{key}={section.text(key, '')[:40]} in [{section.kind}] does not name earlier layers",
                where=section.at(key),
                hint=f"this is layer {index}, the first is 0",
            )
        layers.append(layer)
    return tuple(layers)


def _route(section: Section, index: int) -> Route:
    groups = section.integer("groups", 1, 1, 1 << 16)
    group_id = section.integer("group_id", 0, 0, 1 << 16)
    if group_id >= groups:
        raise InputError(
            f"group_id={group_id} of groups={groups} in [route]",
            where=section.at("group_id"),
            hint=f"the last one is {groups - 1}",
        )
    return Route(_earlier(section, "layers", index), section.line, section.options, groups, group_id)


def _shortcut(section: Section, index: int) -> Shortcut:
    if index == 0:
        raise InputError("[shortcut] is the first layer", where=section.at())
    activation = _activation(section, "linear")
    return Shortcut(_earlier(section, "from", index), activation, section.line, section.options)


def _upsample(section: Section) -> Upsample:
    return Upsample(section.integer("stride", 2, 1, 63), section.line, section.options)


def _layer(section: Section, index: int) -> Layer:
    line, options = section.line, section.options
    made: dict[str, Callable[[], Layer]] = {
        "convolutional": lambda: _convolutional(section),
        "maxpool": lambda: _maxpool(section),
        "route": lambda: _route(section, index),
        "shortcut": lambda: _shortcut(section, index),
        "upsample": lambda: _upsample(section),
        "reorg": lambda: Reorg(section.integer("stride", 1, 1, 63), line, options),
        "avgpool": lambda: AvgPool(line, options),
        "dropout": lambda: Dropout(line, options),
        "yolo": lambda: _yolo(section),
    }
    return made[section.kind]()


def _anchors(section: Section, num: int) -> tuple[tuple[float, float], ...]:
    values = [real(v, "anchors", section) for v in section.text("anchors", "").rstrip(",").split(",") if v]
    if len(values) != 2 * num:
        raise InputError(
            f"anchors holds {len(values)} values, num={num} needs {2 * num}", where=section.at("anchors")
        )
    if min(values) <= 0:
        raise InputError(f"anchor {min(values)} is not positive", where=section.at("anchors"))
    return tuple(zip(values[::2], values[1::2], strict=True))


def _mask(section: Section, num: int) -> tuple[int, ...]:
    if "mask" not in section.options:
        return tuple(range(num))
    text = section.text("mask", "")
    mask = [whole(raw) for raw in text.rstrip(",").split(",")]
    if any(value is None or not 0 <= value < num for value in mask):
        raise InputError(
            f"mask={text[:40]} in [yolo] does not name anchors",
            where=section.at("mask"),
            hint=f"num={num}, so they are 0 to {num - 1}",
        )
    return tuple(value for value in mask if value is not None)


#: darknet's greedynms takes the distance into account as its diounms does, and always with this exponent.
_GREEDY_BETA = 0.6


def _yolo(section: Section) -> Yolo:
    num = section.integer("num", 1, 1, 1000)
    kind = section.text("nms_kind", "default")
    if kind not in ("default", "greedynms", "diounms"):
        raise InputError(
            f"nms_kind={kind[:40]} in [yolo] is not supported",
            where=section.at("nms_kind"),
            hint="supported: default, greedynms, diounms",
        )
    beta = section.real("beta_nms", 0.6)
    if not 0 < beta < 100:
        raise InputError(f"beta_nms={beta:g} is not within 0 and 100", where=section.at("beta_nms"))
    scale = section.real("scale_x_y", 1.0)
    if not 0 < scale < 100:
        raise InputError(f"scale_x_y={scale:g} is not within 0 and 100", where=section.at("scale_x_y"))
    return Yolo(
        anchors=_anchors(section, num),
        mask=_mask(section, num),
        classes=section.integer("classes", 20, 1, 100_000),
        scale_x_y=scale,
        new_coords=bool(section.integer("new_coords", 0, 0, 1)),
        nms_beta={"default": None, "greedynms": _GREEDY_BETA, "diounms": beta}[kind],
        line=section.line,
        options=section.options,
    )


_NO_SOFTMAX = "[region] without softmax=1, that is with independent classes, is not supported"
_SOFTMAX_HINT = "use a network that was trained with softmax=1"


def _region(section: Section) -> Region:
    num = section.integer("num", 1, 1, 1000)
    classes = section.integer("classes", 20, 1, 100_000)
    if section.integer("softmax", 0, 0, 1) == 0:
        raise InputError(_NO_SOFTMAX, where=section.at(), hint=_SOFTMAX_HINT)
    return Region(
        anchors=_anchors(section, num),
        classes=classes,
        object_scale=section.real("object_scale", 1.0),
        noobject_scale=section.real("noobject_scale", 1.0),
        class_scale=section.real("class_scale", 1.0),
        coord_scale=section.real("coord_scale", 1.0),
        thresh=section.real("thresh", 0.5),
        rescore=bool(section.integer("rescore", 0, 0, 1)),
        line=section.line,
        options=section.options,
    )


def parse_cfg(text: str, where: str = "<cfg>") -> Cfg:
    """Parses and checks the text of a darknet .cfg.

    Args:
        text: the file's content.
        where: the file's name, for errors.

    Raises:
        InputError: naming the line, for anything that is no YOLO network this detector can compute.
    """
    sections = scan(text, where)
    if not sections or sections[0].kind != "net":
        raise InputError("a .cfg starts with [net]", where=where)
    for section in sections[1:]:
        if section.kind == "net":
            raise InputError("a second [net]", where=section.at())
    heads = [s for s in sections if s.kind in ("region", "yolo")]
    if not heads:
        raise InputError("no [region] section and no [yolo]: not a YOLO network", where=where)
    last = heads[-1]
    if last is not sections[-1]:
        raise InputError(f"[{last.kind}] is not the last section", where=last.at())
    if last.kind == "region" and len(heads) > 1:
        raise InputError("another head before [region]", where=heads[0].at())
    for section in sections:
        check_keys(section)
    head = sections[0]
    for key in ("width", "height", "channels"):
        if key not in head.options:
            raise InputError(f"[net] has no {key}", where=head.at())
    head.integer("letter_box", 0, 0, 1)
    width, height = (head.integer(key, 0, 1, 1 << 14) for key in ("width", "height"))
    net = Net(width, height, head.integer("channels", 0, 1, 1024), head.line, head.options)
    layers: list[Layer] = []
    for section in sections[1:-1] if last.kind == "region" else sections[1:]:
        if section.kind == "region":
            raise InputError("[region] beside [yolo]", where=section.at())
        layers.append(_layer(section, len(layers)))
    cfg = Cfg(net, tuple(layers), _region(last) if last.kind == "region" else None, where)
    if cfg.region:
        _check_head(cfg, len(cfg.layers), cfg.region)
    for index, yolo in cfg.yolos.items():
        _check_head(cfg, index, yolo)
    output_shapes(cfg)
    return cfg


def _check_head(cfg: Cfg, index: int, head: Region | Yolo) -> None:
    """Checks the convolution before a head, and that nothing else takes what reaches the head."""
    kind = "region" if isinstance(head, Region) else "yolo"
    last = cfg.layers[index - 1] if index else None
    if not isinstance(last, Convolutional):
        raise InputError(f"[{kind}] does not follow a [convolutional]", where=cfg.at(head.line))
    anchors, num = (len(head.anchors), "num") if isinstance(head, Region) else (len(head.mask), "anchors")
    if last.filters != anchors * (5 + head.classes):
        wanted = anchors * (5 + head.classes)
        raise InputError(
            f"filters={last.filters} before a [{kind}] of {num}={anchors} and classes={head.classes}",
            where=cfg.at(last.line),
            hint=f"filters must be {anchors} * (5 + {head.classes}) = {wanted}",
        )
    if head.classes != cfg.classes:
        raise InputError(
            f"classes={head.classes} in [yolo], {cfg.classes} in the first", where=cfg.at(head.line)
        )
    squashed = isinstance(head, Yolo) and head.new_coords
    activation = "logistic" if squashed else "linear"
    if last.batch_normalize or last.activation != activation or last.groups != 1:
        raise InputError(
            f"the [convolutional] before [{kind}] must be {activation}, without batch_normalize or groups",
            where=cfg.at(last.line),
        )
    taken = [i for layer in cfg.layers if isinstance(layer, Route | Shortcut) for i in layer.layers]
    if index - 1 in taken or index in taken:
        what = "convolutional] before [" if index - 1 in taken else ""
        raise InputError(f"the [{what}{kind}] is routed elsewhere", where=cfg.at(last.line))
    if index + 1 < len(cfg.layers) and not isinstance(cfg.layers[index + 1], Route):
        raise InputError("only a [route] can follow a [yolo]", where=cfg.at(cfg.layers[index + 1].line))


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


def read_cfg(path: str | Path) -> Cfg:
    """Reads and parses a .cfg file.

    Raises:
        InputError: if it cannot be read, is not text, or does not parse.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not a text file (byte {error.start})", where=path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the .cfg: {reason}", where=path) from None
    return parse_cfg(text, str(path))


def builtin_names() -> tuple[str, ...]:
    """Returns the names of the .cfg files that come with the detector."""
    folder = resources.files(__package__) / "cfgs"
    return tuple(
        sorted(entry.name.removesuffix(".cfg") for entry in folder.iterdir() if entry.name.endswith(".cfg"))
    )


def builtin_cfg(name: str) -> Cfg:
    """Parses a .cfg of the detector's own: see `builtin_names`.

    Raises:
        UsageError: if there is none of that name.
    """
    names = builtin_names()
    if name not in names:
        raise UsageError(
            f"no built-in network {name!r}", hint=f"use a .cfg file or one of: {', '.join(names)}"
        )
    text = (resources.files(__package__) / "cfgs" / f"{name}.cfg").read_text(encoding="utf-8")
    return parse_cfg(text, f"{name}.cfg")
