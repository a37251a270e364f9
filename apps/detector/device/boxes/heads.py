"""What a network's outputs are: heads with anchors, without them, and of prior boxes.

A network that is no darknet's says it in an attribute, `network.decoding = {"kind": "v8", "strides": [8]}`;
`heads_of` reads that. Where a network returns one output per level, `separated` takes it apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paredown.targets.errors import InputError

VERSION = 1  # of how a bundle describes heads
WHERE = "the network's attribute `decoding`"
MOST_BINS = 256

Sizes = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class YoloHead:
    """One [yolo] of a network.

    Attributes:
        anchors: width and height of each box, in pixels of the network's input.
        scale_x_y: how far a centre can leave its cell: s * sigmoid - (s - 1) / 2.
        new_coords: sides are the anchor's times (2 * sigmoid)^2, not times exp.
    """

    anchors: Sizes
    scale_x_y: float = 1.0
    new_coords: bool = False


@dataclass(frozen=True)
class YoloHeads:
    """All [yolo] of a network; the outputs are xy, wh, obj, cls of one after the other.

    Attributes:
        heads: in the outputs' order.
        input: width and height of the network's input, pixels.
        nms_beta: a box is suppressed by IoU - (distance / diagonal of both)^(2 * nms_beta); None: by IoU.
    """

    heads: tuple[YoloHead, ...]
    input: tuple[int, int]
    nms_beta: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a bundle's app.json."""
        return {"version": VERSION, **asdict(self)}

    @property
    def parts(self) -> tuple[str, ...]:
        """The outputs of a level."""
        return Heads.PARTS["v5"]

    @property
    def levels(self) -> int:
        """How many."""
        return len(self.heads)

    def layout(self, level: int) -> tuple[int, tuple[int, ...]]:
        """See `Heads.layout`."""
        return len(self.heads[level].anchors), (2, 2, 1)


@dataclass(frozen=True)
class Heads:
    """The heads of a network that is no darknet's, one a level; the outputs are `parts` of one after another.

    - "v5": boxes as of a [yolo] with scale_x_y = 2 and new_coords; see `decoder`.
    - "v8": distances of a cell's centre to the box's sides, in cells, each the mean of a softmax over bins,
      or the output itself where there is one bin; a sigmoid per class, no objectness.
    - "yolox": a corner of the cell is moved in cells, sides are exp in cells; objectness times class.
    - "ssd": prior boxes are moved and scaled; a softmax over the background (0) and the classes.

    Attributes:
        kind: one of the above.
        input: width and height of the network's input, pixels.
        strides: pixels per cell of each level; of "ssd" there may be none: then cells share the input evenly.
        bins: of a distance ("v8").
        priors: of each level width and height of anchors or prior boxes, in pixels ("v5", "ssd").
        variances: what the offsets and logarithms of "ssd" are multiplied by.
    """

    kind: str
    input: tuple[int, int]
    strides: tuple[int, ...]
    bins: int = 1
    priors: tuple[Sizes, ...] = ()
    variances: tuple[float, float] = (0.1, 0.2)

    PARTS = {"v5": ("xy", "wh", "obj", "cls"), "v8": ("box", "cls"), "yolox": ("box", "obj", "cls"),
             "ssd": ("box", "cls")}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For a bundle's app.json."""
        return {"version": VERSION, **asdict(self)}

    @property
    def decoder(self) -> YoloHeads | Heads:
        """What decodes: of "v5" it is that of [yolo]."""
        if self.kind != "v5":
            return self
        return YoloHeads(tuple(YoloHead(sizes, 2.0, new_coords=True) for sizes in self.priors), self.input)

    @property
    def parts(self) -> tuple[str, ...]:
        """The outputs of a level."""
        return self.PARTS[self.kind]

    @property
    def levels(self) -> int:
        """How many."""
        return len(self.priors or self.strides)

    def layout(self, level: int) -> tuple[int, tuple[int, ...]]:
        """How many boxes a cell has, and the channels of each in all parts but the last, the classes."""
        sizes = {"v5": (2, 2, 1), "v8": (4 * self.bins,), "yolox": (4, 1), "ssd": (4,)}
        return len(self.priors[level]) if self.priors else 1, sizes[self.kind]

    def check(self, shapes: Sequence[tuple[int, ...]], classes: int) -> None:
        """Checks what a network returns for one image.

        Raises:
            InputError: another number of outputs, or one of another shape; it is named with what is expected.
        """
        whole, apart = self.levels, self.levels * len(self.parts)
        counts = [apart] if self.kind == "ssd" else [whole, apart]
        if len(shapes) not in counts:
            each = "" if len(counts) == 1 else f" or {whole} (all in one, by level)"
            raise InputError(
                f"{len(shapes)} outputs; {self.kind} heads of {whole} levels have {apart} "
                f"({', '.join(self.parts)} of each level){each}",
                where=WHERE,
            )
        for index, shape in enumerate(shapes):
            level, part = (index, None) if len(shapes) == whole else divmod(index, len(self.parts))
            channels = self._channels(level, part, classes)
            wanted = (1, channels, *self._cells(level, shapes, index))
            if tuple(shape) != wanted:
                name = "output" if part is None else self.parts[part]
                raise InputError(
                    f"output {index + 1} ({name} of level {level + 1}) is {tuple(shape)}, "
                    f"{self.kind} heads of {classes} classes expect {wanted}",
                    where=WHERE, hint="data.names must list the network's classes",
                )  # fmt: skip

    def expected(self, classes: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The shapes of the outputs, for one image: with a level's parts apart, and in one; needs strides."""
        cells = [tuple(side // stride for side in reversed(self.input)) for stride in self.strides]
        return tuple(
            tuple(
                (1, self._channels(level, part, classes), *cells[level])
                for level in range(len(cells))
                for part in parts
            )
            for parts in (range(len(self.parts)), (None,))
        )

    def _channels(self, level: int, part: int | None, classes: int) -> int:
        boxes, sizes = self.layout(level)
        each = [*sizes, classes + (self.kind == "ssd")]
        return boxes * (sum(each) if part is None else each[part])

    def _cells(self, level: int, shapes: Sequence[tuple[int, ...]], index: int) -> tuple[int, ...]:
        if self.strides:
            width, height = (-(-side // self.strides[level]) for side in self.input)
            return height, width
        first = shapes[index - index % len(self.parts)]
        return first[2:] if len(first) == 4 else (0, 0)

    def names(self, outputs: int) -> tuple[str, ...]:
        """What that many outputs are called."""
        if outputs == self.levels:
            return tuple(f"level{level}" for level in range(1, outputs + 1))
        return tuple(f"{part}{level}" for level in range(1, self.levels + 1) for part in self.parts)


def separated(outputs: Sequence[Any], heads: YoloHeads | Heads) -> list[Any]:
    """The parts of all levels, where a network may return one output per level.

    Args:
        outputs: arrays or tensors (..., channels, h, w), with or without a batch.
        heads: whose they are.

    Raises:
        ValueError: their number or their channels do not fit.
    """
    if len(outputs) == heads.levels * len(heads.parts):
        return list(outputs)
    if len(outputs) != heads.levels or (isinstance(heads, Heads) and heads.kind == "ssd"):
        raise ValueError(
            f"{len(outputs)} outputs do not fit {heads.levels} heads, each of {len(heads.parts)}"
        )
    found: list[Any] = []
    for level, output in enumerate(outputs):
        boxes, sizes = heads.layout(level)
        *lead, channels, rows, columns = output.shape
        each, rest = divmod(channels, boxes)
        if rest or each <= sum(sizes):
            raise ValueError(f"{channels} channels do not fit {boxes} boxes of {sum(sizes)} and the classes")
        apart = output.reshape(*lead, boxes, each, rows, columns)
        edges = [*itertools.accumulate(sizes, initial=0), each]
        for low, high in zip(edges, edges[1:], strict=False):
            found.append(apart[..., low:high, :, :].reshape(*lead, boxes * (high - low), rows, columns))
    return found


def from_dict(facts: Mapping[str, Any]) -> Heads:
    """What `Heads.to_dict` made.

    Raises:
        InputError: a later version of paredown did.
    """
    check_version(facts, "heads")
    width, height = facts["input"]
    first, second = facts["variances"]
    priors = tuple(tuple((w, h) for w, h in level) for level in facts["priors"])
    return Heads(
        facts["kind"], (width, height), tuple(facts["strides"]), facts["bins"], priors, (first, second)
    )


def check_version(facts: Mapping[str, Any], what: str) -> None:
    """Refuses what a later version of paredown wrote.

    Raises:
        InputError: it did.
    """
    if facts["version"] != VERSION:
        raise InputError(
            f"describes {what} in version {facts['version']}, known is {VERSION}", where="app.json",
            hint="update paredown",
        )  # fmt: skip


# -- what a network says -------------------------------------------------------------------------------------

#: Keys that each kind needs, and those that it may have.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "v5": (("strides", "anchors"), ()),
    "v8": (("strides",), ("bins",)),
    "yolox": (("strides",), ()),
    "ssd": (("sizes", "ratios"), ("strides", "variances", "clip")),
}


def heads_of(said: object, size: tuple[int, int]) -> Heads:
    """Reads what a network says of its outputs.

    Args:
        said: a mapping with "kind". "v5" has "strides" and "anchors" ([[w, h], ...] in pixels per level),
            "v8" "strides" and "bins" (16), "yolox" "strides", "ssd" "sizes" ([least] or [least, most] in
            pixels per level), "ratios" (per level), and perhaps "strides", "variances" and "clip" (sides of
            prior boxes are no longer than the input's).
        size: width and height of the input.

    Raises:
        InputError: it cannot be read, or does not fit the input.
    """
    if not isinstance(said, Mapping) or said.get("kind") not in _KEYS:
        kind = f"kind {said.get('kind')!r}" if isinstance(said, Mapping) else f"a {type(said).__name__}"
        raise InputError(f"{kind} is not known", where=WHERE, hint=f"known kinds: {', '.join(sorted(_KEYS))}")
    kind = said["kind"]
    needed, others = map(set, _KEYS[kind])
    keys = set(said) - {"kind"}
    if lacking := sorted(needed - keys):
        raise InputError(f"kind {kind!r} needs {', '.join(map(repr, lacking))}", where=WHERE)
    if unknown := sorted(map(repr, keys - needed - others)):
        known = ", ".join(map(repr, sorted(needed | others)))
        raise InputError(f"kind {kind!r} has no {', '.join(unknown)}", where=WHERE, hint=f"it has {known}")
    strides = tuple(_whole("strides", each) for each in _list("strides", said.get("strides", ())))
    if not strides and "strides" in needed:
        raise InputError("strides are empty", where=WHERE, hint="give pixels per cell, one for each level")
    for stride in strides:
        if kind != "ssd" and any(side % stride for side in size):
            raise InputError(
                f"an input of {size[0]}x{size[1]} is no multiple of the stride {stride}",
                where=WHERE,
                hint="change preprocess.width and preprocess.height",
            )
    bins = _whole("bins", said.get("bins", 16 if kind == "v8" else 1))
    if bins > MOST_BINS:
        raise InputError(f"bins = {bins} are more than {MOST_BINS}", where=WHERE)
    priors: tuple[Sizes, ...] = ()
    if kind == "v5":
        priors = tuple(_pairs("anchors", level) for level in _list("anchors", said["anchors"]))
    elif kind == "ssd":
        priors = _priors(said, size)
    for name, values in (("strides", strides), ("anchors" if kind == "v5" else "sizes", priors)):
        levels = len(priors) or len(strides)
        if values and len(values) != levels:
            raise InputError(f"{len(values)} {name} for {levels} levels", where=WHERE)
    if kind in ("v5", "ssd") and (not priors or not all(priors)):
        raise InputError("a level without boxes", where=WHERE)
    variances = tuple(_real("variances", v) for v in _list("variances", said.get("variances", (0.1, 0.2))))
    if len(variances) != 2:
        raise InputError(f"{len(variances)} variances", where=WHERE, hint="give two: of centres and of sides")
    return Heads(kind, size, strides, bins, priors, (variances[0], variances[1]))


def _priors(said: Mapping[str, Any], size: tuple[int, int]) -> tuple[Sizes, ...]:
    """The least size, the geometric mean with the most one, and for each ratio the least size both ways."""
    sizes, ratios = _list("sizes", said["sizes"]), _list("ratios", said["ratios"])
    if len(sizes) != len(ratios):
        raise InputError(
            f"{len(sizes)} sizes and {len(ratios)} ratios", where=WHERE, hint="give one per level"
        )
    made = []
    for pair, level in zip(sizes, ratios, strict=True):
        found = [_real("sizes", value) for value in _list("sizes", pair)]
        if len(found) not in (1, 2):
            raise InputError(f"sizes of {len(found)} values", where=WHERE, hint="give least and most")
        least, *most = found
        boxes = [(least, least), *((math.sqrt(least * each),) * 2 for each in most)]
        for ratio in (math.sqrt(_real("ratios", value)) for value in _list("ratios", level)):
            boxes += [(least * ratio, least / ratio), (least / ratio, least * ratio)]
        if said.get("clip"):
            boxes = [(min(w, float(size[0])), min(h, float(size[1]))) for w, h in boxes]
        made.append(tuple(boxes))
    return tuple(made)


def _list(name: str, value: object) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise InputError(f"{name} = {value!r} is no list", where=WHERE)
    return list(value)


def _pairs(name: str, value: object) -> Sizes:
    pairs = [[_real(name, each) for each in _list(name, pair)] for pair in _list(name, value)]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{name} are no pairs of width and height, by level", where=WHERE)
    return tuple((pair[0], pair[1]) for pair in pairs)


def _real(name: str, value: object) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{name} have {value!r}, which is no number above 0", where=WHERE)
    return number


def _whole(name: str, value: object) -> int:
    number = _real(name, value)
    if number != int(number):
        raise InputError(f"{name} have {value!r}, which is no whole number", where=WHERE)
    return int(number)
