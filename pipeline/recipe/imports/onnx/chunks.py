"""Slices that share a whole axis out in equal parts: exporters write torch's `chunk` so (our design)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paredown.pipeline.recipe.imports.onnx.network import Call, Slot, Step


@dataclass(frozen=True)
class Part:
    """What a slice with a step of one takes.

    Attributes:
        source: name of the value that is sliced.
        axis: along which.
        size: of that axis.
        low: first place.
        high: place behind the last.
    """

    source: str
    axis: int
    size: int
    low: int
    high: int


def chunked(
    steps: Sequence[Step], parts: Mapping[str, Part], modules: dict[str, nn.Module]
) -> tuple[list[Step], dict[str, str]]:
    """The steps with one `chunk` where slices take every part of an axis.

    A slice has fixed places. A chunk has a share of the channels, so they can be pruned.

    Args:
        steps: in running order.
        parts: of the slices, by the name of the value that each makes.
        modules: by path; the chunks are added, in the place of the first slice.

    Returns:
        The steps, and the new names of the values that slices made.
    """
    alike: dict[tuple[str, int, int], list[Step]] = {}
    for step in steps:
        part = parts.get(step.outputs[0])
        if part is not None:
            alike.setdefault((part.source, part.axis, part.size), []).append(step)
    gone: dict[str, Step | None] = {}
    renamed: dict[str, str] = {}
    for (source, axis, size), slices in alike.items():
        ranges = sorted({(parts[step.outputs[0]].low, parts[step.outputs[0]].high) for step in slices})
        count = len(ranges)
        if count < 2 or size % count or ranges != _equal(size, count):
            continue
        first = slices[0].path
        modules[first] = Call(torch.chunk, [Slot(0), count, axis], {}, {})
        made = {place: f"{first}:{index}" for index, place in enumerate(ranges)}
        for step in slices:
            part = parts[step.outputs[0]]
            renamed[step.outputs[0]] = made[part.low, part.high]
            gone[step.path] = None
        gone[first] = Step(first, (source,), tuple(made.values()))
    kept = (gone.get(step.path, step) for step in steps)
    return [_renamed(step, renamed) for step in kept if step is not None], renamed


def _equal(size: int, count: int) -> list[tuple[int, int]]:
    part = size // count
    return [(start, start + part) for start in range(0, size, part)]


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    return Step(step.path, tuple(names.get(name, name) for name in step.inputs), step.outputs)
