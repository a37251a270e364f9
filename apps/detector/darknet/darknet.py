"""Darknet's .cfg files: text in, frozen dataclasses out, every mistake named with its line.

Keys and defaults are those of darknet's parser. What darknet accepts
but this detector cannot compute is refused with the line it stands on; keys that change nothing here are kept
in `options`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from paredown.apps.detector.darknet.text import Options, Section, real, scan, whole
from paredown.targets.errors import InputError, UsageError

ACTIVATIONS = ("leaky", "linear", "relu")
# Keys that change what a layer computes and that we do not implement: only this value ("": none) is taken.
_REFUSED = {
    "convolutional": {
        "binary": "0",
        "xnor": "0",
        "dilation": "1",
        "stride_x": "",
        "stride_y": "",
        "flipped": "0",
    },
    "maxpool": {"stride_x": "", "stride_y": "", "antialiasing": "0"},
    "route": {"groups": "1"},
    "reorg": {"reverse": "0", "flatten": "0", "extra": "0"},
    "region": {
        "coords": "4",
        "softmax": "1",
        "background": "0",
        "tree": "",
        "map": "",
        "log": "0",
        "sqrt": "0",
    },
}
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
    """[route]: concatenates the outputs of earlier layers, given here as absolute layer numbers."""

    layers: tuple[int, ...]
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


Layer = Convolutional | MaxPool | Route | Reorg
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Cfg:
    """A parsed .cfg. `layers` are numbered as darknet numbers them; the last one feeds `region`."""

    net: Net
    layers: tuple[Layer, ...]
    region: Region
    where: str

    def at(self, line: int) -> str:
        """Returns "file:line", for errors."""
        return f"{self.where}:{line}"


def _refuse(section: Section) -> None:
    for key, allowed in _REFUSED.get(section.kind, {}).items():
        value = section.options.get(key)
        if value is not None and value != allowed:
            raise InputError(
                f"{key}={value[:40]} in [{section.kind}] is not supported",
                where=section.at(key),
                hint=f"only {key}={allowed}" if allowed else f"remove {key}",
            )


def _convolutional(section: Section) -> Convolutional:
    size = section.integer("size", 1, 1, 63)
    padding = section.integer("padding", 0, 0, 63)
    if section.integer("pad", 0, 0, 1):
        padding = size // 2
    activation = section.text("activation", "logistic")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation={activation[:40]} is not supported",
            where=section.at("activation"),
            hint=f"supported: {', '.join(ACTIVATIONS)}",
        )
    return Convolutional(
        filters=section.integer("filters", 1, 1, 1 << 16),
        size=size,
        stride=section.integer("stride", 1, 1, 63),
        padding=padding,
        groups=section.integer("groups", 1, 1, 1 << 16),
        batch_normalize=bool(section.integer("batch_normalize", 0, 0, 1)),
        activation=activation,
        line=section.line,
        options=section.options,
    )


def _maxpool(section: Section) -> MaxPool:
    stride = section.integer("stride", 1, 1, 63)
    size = section.integer("size", stride, 1, 63)
    padding = section.integer("padding", size - 1, 0, size - 1)
    return MaxPool(size, stride, padding, section.line, section.options)


def _route(section: Section, index: int) -> Route:
    layers = []
    for raw in section.text("layers", "").rstrip(",").split(","):
        value = whole(raw)
        layer = index if value is None else index + value if value < 0 else value
        if not 0 <= layer < index:
            raise InputError(
                f"layers={section.text('layers', '')[:40]} in [route] does not name earlier layers",
                where=section.at("layers"),
                hint=f"this is layer {index}, the first is 0",
            )
        layers.append(layer)
    return Route(tuple(layers), section.line, section.options)


def _region(section: Section) -> Region:
    num = section.integer("num", 1, 1, 1000)
    classes = section.integer("classes", 20, 1, 100_000)
    if "softmax" not in section.options:
        raise InputError(
            "[region] without softmax=1 is not supported", where=section.at(), hint="add softmax=1"
        )
    values = [real(v, "anchors", section) for v in section.text("anchors", "").rstrip(",").split(",") if v]
    if len(values) != 2 * num:
        raise InputError(
            f"anchors holds {len(values)} values, num={num} needs {2 * num}", where=section.at("anchors")
        )
    if min(values) <= 0:
        raise InputError(f"anchor {min(values)} is not positive", where=section.at("anchors"))
    return Region(
        anchors=tuple(zip(values[::2], values[1::2], strict=True)),
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
        InputError: naming the line, for anything that is not a YOLO-v2 network this detector can compute.
    """
    sections = scan(text, where)
    if not sections or sections[0].kind != "net":
        raise InputError("a .cfg starts with [net]", where=where)
    for section in sections[1:]:
        if section.kind == "net":
            raise InputError("a second [net]", where=section.at())
    regions = [s for s in sections if s.kind == "region"]
    if not regions:
        raise InputError("no [region] section: not a YOLO-v2 network", where=where)
    if regions[0] is not sections[-1]:
        raise InputError("[region] is not the last section", where=regions[0].at())
    for section in sections:
        _refuse(section)
    head = sections[0]
    for key in ("width", "height", "channels"):
        if key not in head.options:
            raise InputError(f"[net] has no {key}", where=head.at())
    width, height = (head.integer(key, 0, 1, 1 << 14) for key in ("width", "height"))
    net = Net(width, height, head.integer("channels", 0, 1, 1024), head.line, head.options)
    layers: list[Layer] = []
    for section in sections[1:-1]:
        if section.kind == "convolutional":
            layers.append(_convolutional(section))
        elif section.kind == "maxpool":
            layers.append(_maxpool(section))
        elif section.kind == "reorg":
            layers.append(Reorg(section.integer("stride", 1, 1, 63), section.line, section.options))
        else:
            layers.append(_route(section, len(layers)))
    cfg = Cfg(net, tuple(layers), _region(sections[-1]), where)
    _check_head(cfg)
    output_shapes(cfg)
    return cfg


def _check_head(cfg: Cfg) -> None:
    last = cfg.layers[-1] if cfg.layers else None
    if not isinstance(last, Convolutional):
        raise InputError("[region] does not follow a [convolutional]", where=cfg.at(cfg.region.line))
    anchors, classes = len(cfg.region.anchors), cfg.region.classes
    if last.filters != anchors * (5 + classes):
        raise InputError(
            f"filters={last.filters} before a [region] of num={anchors} and classes={classes}",
            where=cfg.at(last.line),
            hint=f"filters must be {anchors} * (5 + {classes}) = {anchors * (5 + classes)}",
        )
    if last.batch_normalize or last.activation != "linear" or last.groups != 1:
        raise InputError(
            "the [convolutional] before [region] must be linear, without batch_normalize or groups",
            where=cfg.at(last.line),
        )
    if any(isinstance(layer, Route) and len(cfg.layers) - 1 in layer.layers for layer in cfg.layers):
        raise InputError("the [convolutional] before [region] is routed elsewhere", where=cfg.at(last.line))


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
        else:
            parts = [shapes[i] for i in layer.layers]
            if len({p[1:] for p in parts}) != 1:
                sizes = ", ".join(f"{p[2]}x{p[1]}" for p in parts)
                raise InputError(f"[route] joins maps of different sizes: {sizes}", where=cfg.at(layer.line))
            shape = (sum(p[0] for p in parts), *parts[0][1:])
        if min(shape) < 1:
            raise InputError(f"nothing is left of a {w}x{h} feature map", where=cfg.at(layer.line))
        if parameters > MAX_PARAMETERS or math.prod(shape) > MAX_ACTIVATION:
            raise InputError("the network grows beyond any that fits in memory", where=cfg.at(layer.line))
        shapes.append(shape)
    return tuple(shapes)


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
    """Parses a .cfg of the detector's own: yolov2-voc, yolov2-tiny-voc (darknet's), our yolov2-nano.

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
