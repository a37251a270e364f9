"""What a model file is for, by the shapes of its outputs, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Anchors, in pixels of the input, that YOLO v5 begins with; by stride.
V5_ANCHORS = {
    8: [[10, 13], [16, 30], [33, 23]],
    16: [[30, 61], [62, 45], [59, 119]],
    32: [[116, 90], [156, 198], [373, 326]],
}
V8_BINS = 16
MOST_STRIDE = 64

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recognised:
    """What the outputs look like.

    Attributes:
        task: "classify", "segment" or "detect".
        classes: how many.
        why: what shows it, for a sentence.
        decoding: of a detector's heads, as a recipe has it.
    """

    task: str
    classes: int
    why: str
    decoding: dict[str, Any] = field(default_factory=dict)


def recognise(
    outputs: Sequence[Shape], shape: Shape, classes: int | None, maps: Sequence[Shape] = ()
) -> Recognised | None:
    """The task that a network's outputs are for.

    Args:
        outputs: their shapes for one image.
        shape: of its input.
        classes: how many names there are, where they are known; others are not recognised then.
        maps: shapes of what the last convolutions make, from which the outputs may be computed.

    Returns:
        None where the outputs are of no kind, or of more than one.
    """
    found = [*_heads(outputs, shape), *_single(outputs, shape)]
    if not any(each.task == "detect" for each in found) and _boxes(outputs):
        found += _heads(maps, shape)
    if classes is not None:
        found = [each for each in found if each.classes == classes]
    return found[0] if len(found) == 1 else None


def _said(shapes: Sequence[Shape]) -> str:
    return " and ".join("x".join(map(str, each)) for each in shapes[:3]) + (" ..." if len(shapes) > 3 else "")


def _single(outputs: Sequence[Shape], shape: Shape) -> list[Recognised]:
    """A classifier's or a segmenter's one output."""
    if len(outputs) != 1:
        return []
    (only,) = outputs
    if len(only) == 2 and only[1] >= 2:
        return [Recognised("classify", only[1], f"its output is 1 x {only[1]}")]
    if len(only) == 4 and len(shape) == 4 and only[1] >= 2 and _stride(only, shape) in (1, 2, 4, 8):
        return [Recognised("segment", only[1], f"its output is {_said(outputs)}, of {_said([shape])}")]
    return []


def _stride(output: Shape, shape: Shape) -> int:
    """Pixels for each cell; 0 where that is no whole number, or not the same both ways."""
    down, right = (divmod(whole, part) for whole, part in zip(shape[2:], output[2:], strict=True))
    return down[0] if down == right and not down[1] else 0


def _boxes(outputs: Sequence[Shape]) -> bool:
    """Whether an output may be boxes that were computed: (1, numbers, boxes) or (1, boxes, numbers)."""
    return any(len(each) == 3 and min(each[1:]) > 4 for each in outputs)


def _heads(outputs: Sequence[Shape], shape: Shape) -> list[Recognised]:
    """A detector's heads: maps of two strides or more, with the same channels each."""
    if len(shape) != 4 or not outputs or any(len(each) != 4 for each in outputs):
        return []
    levels: dict[int, list[int]] = {}
    for each in outputs:
        levels.setdefault(_stride(each, shape), []).append(each[1])
    strides = sorted(levels)
    channels = [sorted(levels[stride]) for stride in strides]
    if (
        len(strides) < 2
        or strides[0] < 4
        or strides[-1] > MOST_STRIDE
        or channels != channels[:1] * len(channels)
    ):
        return []
    return _kinds(
        strides, channels[0], f"its maps of {len(strides)} sizes have {_listed(channels[0])} channels"
    )


def _listed(channels: Sequence[int]) -> str:
    return " and ".join(map(str, channels))


def _kinds(strides: list[int], channels: list[int], why: str) -> list[Recognised]:
    """The heads that have these channels in each level."""
    found = []
    sides = 4 * V8_BINS

    def add(kind: str, classes: int, **keys: Any) -> None:
        if classes > 0:
            found.append(Recognised("detect", classes, why, {"kind": kind, "strides": strides, **keys}))

    if len(channels) == 1:
        (whole,) = channels
        add("v8", whole - sides, bins=V8_BINS)
        add("yolox", whole - 5)
        if whole % 3 == 0 and all(stride in V5_ANCHORS for stride in strides):
            add("v5", whole // 3 - 5, anchors=[V5_ANCHORS[stride] for stride in strides])
    elif len(channels) == 2 and sides in channels:
        channels = [*channels]
        channels.remove(sides)
        add("v8", channels[0], bins=V8_BINS)
    elif len(channels) == 3 and channels[0] == 1 and 4 in channels:
        channels = channels[1:]
        channels.remove(4)
        add("yolox", channels[0])
    return found
