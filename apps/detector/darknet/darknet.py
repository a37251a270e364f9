"""Darknet's .cfg files: text in, `layers.py`'s dataclasses out, every mistake named with its line.

Keys and defaults are those of darknet's parser; `keys.py` has all of them. What darknet accepts
but this detector cannot compute is refused with the line it stands on; keys that matter in training only are
kept in `options`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from paredown.apps.detector.darknet.keys import check_keys
from paredown.apps.detector.darknet.layers import (
    AvgPool,
    Cfg,
    Convolutional,
    Cost,
    Crop,
    Dropout,
    Layer,
    MaxPool,
    Net,
    Region,
    Reorg,
    Route,
    Shortcut,
    Softmax,
    Upsample,
    Yolo,
    output_shapes,
)
from paredown.apps.detector.darknet.text import Section, real, scan, whole
from paredown.targets.errors import InputError, UsageError

ACTIVATIONS = ("leaky", "linear", "relu", "relu6", "mish", "logistic", "swish", "hardswish")


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


def _crop(section: Section) -> Crop:
    height, width = (section.integer(f"crop_{side}", 1, 1, 1 << 14) for side in ("height", "width"))
    adjust = not section.integer("noadjust", 0, 0, 1)
    return Crop(height, width, adjust, section.line, section.options)


def _softmax(section: Section) -> Softmax:
    temperature = section.real("temperature", 1.0)
    if not temperature > 0:
        raise InputError(f"temperature={temperature:g} is not positive", where=section.at("temperature"))
    groups = section.integer("groups", 1, 1, 1 << 16)
    return Softmax(groups, temperature, section.line, section.options)


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
        "crop": lambda: _crop(section),
        "softmax": lambda: _softmax(section),
        "cost": lambda: Cost(line, options),
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


def parse_cfg(text: str, where: str = "<cfg>", detects: bool | None = True) -> Cfg:
    """Parses and checks the text of a darknet .cfg.

    Args:
        text: the file's content.
        where: the file's name, for errors.
        detects: whether it must be a detector, or must be a classifier; None where it may be either.

    Raises:
        InputError: naming the line, for anything that is no network that can be computed here.
    """
    sections = scan(text, where)
    if not sections or sections[0].kind != "net":
        raise InputError("a .cfg starts with [net]", where=where)
    for section in sections[1:]:
        if section.kind == "net":
            raise InputError("a second [net]", where=section.at())
    last = _last(sections, where, detects)
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
    for section in sections[1:-1] if last and last.kind == "region" else sections[1:]:
        if section.kind == "region":
            raise InputError("[region] beside [yolo]", where=section.at())
        layers.append(_layer(section, len(layers)))
    cfg = Cfg(net, tuple(layers), _region(last) if last and last.kind == "region" else None, where)
    if last is None:
        _check_classes(cfg)
    if cfg.region:
        _check_head(cfg, len(cfg.layers), cfg.region)
    for index, yolo in cfg.yolos.items():
        _check_head(cfg, index, yolo)
    output_shapes(cfg)
    return cfg


def _last(sections: Sequence[Section], where: str, detects: bool | None) -> Section | None:
    """The last head of a detector; None of a classifier."""
    heads = [section for section in sections if section.kind in ("region", "yolo")]
    for section in sections[:-1]:
        if section.kind == "cost":
            raise InputError("[cost] is not the last section", where=section.at())
    if not heads:
        if detects:
            raise InputError("no [region] section and no [yolo]: not a YOLO network", where=where,
                             hint='a classifier runs with app = "apps.classifier"')  # fmt: skip
        return None
    last = heads[-1]
    if detects is False:
        raise InputError(f"[{last.kind}] finds boxes: not a classifier", where=last.at(),
                         hint='a detector runs with app = "apps.detector"')  # fmt: skip
    if last is not sections[-1]:
        raise InputError(f"[{last.kind}] is not the last section", where=last.at())
    if last.kind == "region" and len(heads) > 1:
        raise InputError("another head before [region]", where=heads[0].at())
    return last


def _check_classes(cfg: Cfg) -> None:
    """Checks that a classifier ends in a number per class, and in one answer per image."""
    body = [layer for layer in cfg.layers if not isinstance(layer, Cost | Softmax)]
    if not any(isinstance(layer, Convolutional) for layer in body):
        raise InputError("no [convolutional] section: nothing to compute", where=cfg.where)
    channels, height, width = output_shapes(cfg)[-1]
    end = cfg.layers[-1]
    if (height, width) != (1, 1) or channels < 2:
        raise InputError(
            f"the network ends in {channels} channels of {width}x{height}, not in a number per class",
            where=cfg.at(end.line),
            hint="a classifier ends in [avgpool] and [softmax]",
        )
    last = cfg.layers[-2] if isinstance(end, Cost) and len(cfg.layers) > 1 else end
    if isinstance(last, Softmax) and last.groups > 1:
        raise InputError(
            f"groups={last.groups} in the last [softmax] gives several answers per image",
            where=cfg.at(last.line),
            hint="the classifier has one class per image",
        )


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


def read_cfg(path: str | Path, detects: bool | None = True) -> Cfg:
    """Reads and parses a .cfg file.

    Args:
        path: of the file.
        detects: see `parse_cfg`.

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
    return parse_cfg(text, str(path), detects)


def builtin_names() -> tuple[str, ...]:
    """Returns the names of the .cfg files that come with the detector."""
    folder = resources.files(__package__) / "cfgs"
    return tuple(
        sorted(entry.name.removesuffix(".cfg") for entry in folder.iterdir() if entry.name.endswith(".cfg"))
    )


def builtin_cfg(name: str, others: Sequence[str] = ()) -> Cfg:
    """Parses a .cfg of the detector's own: see `builtin_names`.

    Args:
        name: of the file, without suffix.
        others: networks that are no .cfg but could be meant, for the error.

    Raises:
        UsageError: if there is none of that name.
    """
    names = builtin_names()
    if name not in names:
        raise UsageError(
            f"no built-in network {name!r}", hint=f"use a .cfg file or one of: {', '.join((*names, *others))}"
        )
    text = (resources.files(__package__) / "cfgs" / f"{name}.cfg").read_text(encoding="utf-8")
    return parse_cfg(text, f"{name}.cfg")
