"""Distillation for YOLO heads: a distance between the raw logits of two networks.

Along the lines of Mehta & Ozturk, "Object Detection at 200 Frames per Second" (arXiv 1805.06361): most boxes
of a region head are background, about which a teacher's coordinates and classes say nothing, so those terms
are scaled by the teacher's objectness. The terms themselves are our design: they are divergences and squares
that are 0 where the networks agree, and sums over boxes, averaged over images, as in `region_terms`, so that
both losses can be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from paredown.apps.detector.device.boxes.heads import Heads, separated
from paredown.targets.errors import InputError

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DistilWeights:
    """The weights of the terms."""

    objectness: float = 1.0
    """Of every box's objectness."""
    coordinates: float = 1.0
    """Of a box's coordinates, times the teacher's objectness."""
    classes: float = 1.0
    """Of a box's classes, times the teacher's objectness."""
    temperature: float = 1.0
    """Of the softmax of a [region]'s classes; the term is scaled by its square (Hinton, arXiv 1503.02531)."""


def region_distillation(student: Outputs, teacher: Outputs, weights: DistilWeights | None = None) -> Tensor:
    """Computes how far a student's boxes are from its teacher's, a scalar that is 0 where they agree.

    Objectness: Kullback-Leibler divergence of the two Bernoulli distributions. Its gradient, the difference
    of the sigmoids, does not fade where both are small, and the order of faint boxes is much of mAP.
    Coordinates: half the squared difference of sigmoid(xy) and of wh, as in the region loss. Classes:
    Kullback-Leibler divergence of the softmaxes.

    Args:
        student: raw logits xy (N, 2A, h, w), wh (N, 2A, h, w), obj (N, A, h, w), cls (N, A * C, h, w).
        teacher: of the same shapes; no gradient reaches it.
        weights: of the terms; the defaults where None.

    Raises:
        InputError: the shapes differ.
    """
    weights = weights or DistilWeights()
    _check_shapes(student, teacher)
    xy, wh, obj, cls = student
    xy_t, wh_t, obj_t, cls_t = (part.detach() for part in teacher)
    images, boxes, height, width = obj.shape
    grid = (images, boxes, -1, height, width)
    certain = obj_t.sigmoid()

    objectness = _divergence(obj, obj_t).sum()
    miss = (xy.sigmoid() - xy_t.sigmoid()).square() + (wh - wh_t).square()
    coordinates = (miss.view(grid).sum(2) * certain).sum() / 2
    warm = weights.temperature
    mine = (cls.view(grid) / warm).log_softmax(2)
    theirs = (cls_t.view(grid) / warm).log_softmax(2)
    classes = ((theirs.exp() * (theirs - mine)).sum(2) * certain).sum() * warm**2
    total = weights.objectness * objectness + weights.coordinates * coordinates + weights.classes * classes
    return total / images


def _check_shapes(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    shapes = [[tuple(part.shape) for part in outputs] for outputs in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the student's outputs are {shapes[0]}, the teacher's {shapes[1]}", where="distil")


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli distributions, given by their logits."""
    # softplus(s) - p s is the cross-entropy of logits, less the teacher's own entropy.
    return F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)


def yolo_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    new_coords: Sequence[bool],
    weights: DistilWeights | None = None,
) -> Tensor:
    """Computes `region_distillation` for [yolo] heads, the sum over them.

    Their classes are independent, so each has a divergence like the objectness. With new_coords sides are
    squares of sigmoids, so these are compared.

    Args:
        student: raw logits xy, wh, obj, cls of one head after the other.
        teacher: of the same shapes; no gradient reaches it.
        new_coords: of each head.
        weights: of the terms; the defaults where None. There is no temperature.

    Raises:
        InputError: the shapes differ.
    """
    weights = weights or DistilWeights()
    _check_shapes(student, teacher)
    total = student[0].new_zeros(())
    for head, squared in enumerate(new_coords):
        xy, wh, obj, cls = student[4 * head : 4 * head + 4]
        xy_t, wh_t, obj_t, cls_t = (part.detach() for part in teacher[4 * head : 4 * head + 4])
        images, boxes, height, width = obj.shape
        grid = (images, boxes, -1, height, width)
        certain = obj_t.sigmoid()
        sides = (2 * (wh.sigmoid() - wh_t.sigmoid())) if squared else wh - wh_t
        miss = (xy.sigmoid() - xy_t.sigmoid()).square() + sides.square()
        coordinates = (miss.view(grid).sum(2) * certain).sum() / 2
        classes = (_divergence(cls, cls_t).view(grid).sum(2) * certain).sum()
        total = total + weights.objectness * _divergence(obj, obj_t).sum()
        total = total + weights.coordinates * coordinates + weights.classes * classes
    return total / student[0].shape[0]


def heads_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    heads: Heads,
    weights: DistilWeights | None = None,
) -> Tensor:
    """Computes the distance for heads of a network that is no darknet's, the sum over levels.

    As in `region_distillation`, what a teacher takes for background says nothing of its place: coordinates
    count as much as the teacher is sure of an object: its objectness, or its likeliest class where there is
    none. Distances that are bins are compared as distributions, other coordinates as squares of what the
    network returns.

    Args:
        student: the outputs, by level, each in parts or in one.
        teacher: of the same shapes; no gradient reaches it.
        heads: whose they are.
        weights: of the terms; the defaults where None. There is no temperature.

    Raises:
        InputError: the shapes differ.
    """
    weights = weights or DistilWeights()
    _check_shapes(student, teacher)
    mine = separated(student, heads)
    theirs = separated([part.detach() for part in teacher], heads)
    if heads.kind == "v5":
        return yolo_distillation(mine, theirs, [True] * heads.levels, weights)
    total, count = mine[0].new_zeros(()), len(heads.parts)
    for level in range(heads.levels):
        ours, others = (parts[count * level : count * level + count] for parts in (mine, theirs))
        total = total + _LEVELS[heads.kind](ours, others, heads, level, weights)
    return total / student[0].shape[0]


def _v8_level(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Heads, level: int, weights: DistilWeights
) -> Tensor:
    (box, cls), (box_t, cls_t) = ours, theirs
    sure = cls_t.sigmoid().amax(1, keepdim=True)
    total = weights.classes * _divergence(cls, cls_t).sum()
    if heads.bins == 1:
        return total + weights.coordinates * ((box - box_t).square() * sure).sum() / 2
    grid = (len(box), 4, heads.bins, *box.shape[2:])
    likely, likely_t = (part.view(grid).log_softmax(2) for part in (box, box_t))
    miss = (likely_t.exp() * (likely_t - likely)).sum(2)
    return total + weights.coordinates * (miss * sure).sum()


def _yolox_level(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Heads, level: int, weights: DistilWeights
) -> Tensor:
    (box, obj, cls), (box_t, obj_t, cls_t) = ours, theirs
    sure = obj_t.sigmoid()
    total = weights.objectness * _divergence(obj, obj_t).sum()
    total = total + weights.coordinates * ((box - box_t).square() * sure).sum() / 2
    return total + weights.classes * (_divergence(cls, cls_t) * sure).sum()


def _ssd_level(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Heads, level: int, weights: DistilWeights
) -> Tensor:
    (box, cls), (box_t, cls_t) = ours, theirs
    grid = (len(box), len(heads.priors[level]), -1, *box.shape[2:])
    likely, likely_t = (part.view(grid).log_softmax(2) for part in (cls, cls_t))
    sure = 1 - likely_t[:, :, 0].exp()
    miss = (box - box_t).view(grid).square().sum(2)
    total = weights.classes * (likely_t.exp() * (likely_t - likely)).sum()
    return total + weights.coordinates * (miss * sure).sum() / 2


_LEVELS = {"v8": _v8_level, "yolox": _yolox_level, "ssd": _ssd_level}
