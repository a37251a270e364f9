"""The loss of heads without anchors: which cells answer for which box, and what they miss.

Cells are assigned by how well they do already (task alignment: Feng et al., arXiv 2108.07755): score and IoU
together, among the cells whose centre lies in the box. Boxes have the complete IoU loss (Zheng et al., arXiv
1911.08287), their bins the distribution focal loss (Li et al., arXiv 2006.04388). The sums are over boxes,
the mean over images, as in `region_terms`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.apps.detector.device.boxes.heads import Heads, separated
from paredown.apps.detector.train.loss import Target, checked_targets, covered, parted

TINY = 1e-7


@dataclass(frozen=True)
class V8Weights:
    """The weights of the loss, and how cells are assigned."""

    boxes: float = 4.0
    """Of the complete IoU loss."""
    bins: float = 1.0
    """Of the distances' distributions; there is none with a single bin."""
    classes: float = 1.0
    """Of the classes of all cells."""
    most: int = 10
    """Cells of a box."""
    score_power: float = 0.5
    """Of the class probability in a cell's alignment."""
    iou_power: float = 6.0
    """Of the IoU in it."""


@dataclass(frozen=True)
class V8Terms:
    """The loss in its parts, each a scalar.

    Attributes:
        boxes, bins, classes: the weighted terms.
        iou: mean IoU of assigned cells with their truths, detached; 0 if there are none.
    """

    boxes: Tensor
    bins: Tensor
    classes: Tensor
    iou: Tensor

    @property
    def total(self) -> Tensor:
        """The loss to minimise."""
        return self.boxes + self.bins + self.classes


@dataclass(frozen=True)
class Assigned:
    """Which cell answers for what.

    Attributes:
        truth: (N, P) index of the box in its image; 0 where there is none.
        weight: (N, P) from 0 to 1: the target of the class, and the weight of the box; 0 of background.
        taken: (N, P) whether there is a box.
    """

    truth: Tensor
    weight: Tensor
    taken: Tensor


def corner_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) x1, y1, x2, y2; the other dimensions broadcast; 0 where one is empty."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=TINY)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the centres' distance and the difference of the aspects, of boxes (..., 4) x1, y1, x2, y2."""
    iou = corner_iou(a, b)
    spread = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = apart.square().sum(-1) / spread.square().sum(-1).clamp(min=TINY)
    angles = []
    for box in (a, b):
        width, height = (box[..., 2:] - box[..., :2]).clamp(min=TINY).unbind(-1)
        angles.append(torch.atan(width / height))
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    share = aspect.detach() / (1 - iou.detach() + aspect.detach()).clamp(min=TINY)
    return iou - distance - share * aspect


def assign(
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    truth: Tensor,
    labels: Tensor,
    real: Tensor,
    rule: V8Weights,
) -> Assigned:
    """Gives every box the cells inside that are best aligned with it; a cell wanted twice has the better IoU.

    A box without any cell's centre has the nearest cell.

    Args:
        boxes: predicted (N, P, 4), corners in pixels.
        scores: class probabilities (N, P, C).
        points: centres (P, 2).
        truth: (N, M, 4) corners, with padding.
        labels: (N, M).
        real: (N, M), False of padding.
        rule: how.
    """
    images, most = labels.shape
    if most == 0:
        empty = scores.new_zeros(scores.shape[:2])
        return Assigned(empty.long(), empty, empty.bool())
    low, high = points - truth[:, :, None, :2], truth[:, :, None, 2:] - points
    inside = (torch.minimum(low, high).amin(-1) > 0) & real[..., None]  # (N, M, P)
    nearest = (high - low).square().sum(-1).argmin(-1)
    lonely = real & ~inside.any(-1)
    inside |= F.one_hot(nearest, len(points)).bool() & lonely[..., None]
    iou = corner_iou(truth[:, :, None], boxes[:, None])
    wanted = labels[:, None].expand(images, len(points), most)
    aligned = scores.gather(2, wanted).transpose(1, 2) ** rule.score_power * iou**rule.iou_power
    best = torch.where(inside, aligned, -1.0).topk(min(rule.most, len(points)), -1).indices
    chosen = torch.zeros_like(inside).scatter_(2, best, True) & inside
    owner = torch.where(chosen, iou, -1.0).argmax(1)  # (N, P)
    chosen &= F.one_hot(owner, most).transpose(1, 2).bool()
    aligned, iou = aligned * chosen, iou * chosen
    weight = aligned / aligned.amax(-1, keepdim=True).clamp(min=TINY) * iou.amax(-1, keepdim=True)
    return Assigned(owner, weight.sum(1), chosen.any(1))


def _padded(targets: Sequence[Target], size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Corners in pixels (N, M, 4), labels (N, M), and which of them are real."""
    most = max((len(labels) for labels, _ in targets), default=0)
    truth, labels = size.new_zeros(len(targets), most, 4), size.new_zeros(len(targets), most).long()
    real = torch.zeros_like(labels, dtype=torch.bool)
    for image, (kinds, found) in enumerate(targets):
        centre, half = found.to(size)[:, :2] * size, found.to(size)[:, 2:] * size / 2
        truth[image, : len(kinds)] = torch.cat([centre - half, centre + half], 1)
        labels[image, : len(kinds)], real[image, : len(kinds)] = kinds.to(labels), True
    return truth, labels, real


def v8_terms(
    outputs: Sequence[Tensor], targets: Sequence[Target], heads: Heads, weights: V8Weights | None = None
) -> V8Terms:
    """Computes the loss in its parts.

    A cell in an object that is ignored, and that answers for no other, has no target for that class.

    Args:
        outputs: of each level distances (N, 4 * bins, h, w) and class logits (N, C, h, w), or both in one.
        targets: per image classes (T,) and boxes (T, 4) cx, cy, w, h normalised to the input; T may be 0.
        heads: of kind "v8"; the input's size is that of the outputs.
        weights: the defaults where None.

    Raises:
        InputError: targets that do not fit the outputs, or are not finite.
    """
    weights = weights or V8Weights()
    parts = separated(outputs, heads)
    images, classes, rows, columns = parts[1].shape
    size = parts[0].new_tensor([columns, rows]) * heads.strides[0]
    targets, ignored = parted(checked_targets(targets, images, classes))
    truth, labels, real = _padded(targets, size)
    logits = torch.cat([box.view(images, 4, heads.bins, -1) for box in parts[::2]], 3).permute(0, 3, 1, 2)
    scores = torch.cat([cls.flatten(2) for cls in parts[1::2]], 2).transpose(1, 2)
    points, stride = _points(parts[::2], heads)
    places = torch.arange(heads.bins, device=logits.device, dtype=logits.dtype)
    distances = logits[..., 0] if heads.bins == 1 else logits.softmax(-1) @ places
    far = distances * stride[:, None]
    boxes = torch.cat([points - far[..., :2], points + far[..., 2:]], -1)
    with torch.no_grad():
        given = assign(boxes, scores.sigmoid(), points, truth, labels, real, weights)
        wanted = torch.zeros_like(scores)
    taken, weight = given.taken, given.weight[given.taken]
    bins = mean_iou = box_sum = scores.new_zeros(())
    if taken.any():
        kind = labels.gather(1, given.truth)
        wanted = F.one_hot(kind, classes) * given.weight[..., None]
        own = truth.gather(1, given.truth[..., None].expand(-1, -1, 4))[taken]
        # A mean over a box's cells: early weights are small, and boxes must move before their classes count.
        share = real.sum() / weight.sum().clamp(min=TINY)
        box_sum = ((1 - complete_iou(boxes[taken], own)) * weight).sum() * share
        mean_iou = corner_iou(boxes[taken].detach(), own).mean()
        if heads.bins > 1:
            middle, step = points.expand(images, -1, -1)[taken], stride.expand(images, -1)[taken, None]
            sides = torch.cat([middle - own[:, :2], own[:, 2:] - middle], 1) / step
            bins = (_focal(logits[taken], sides) * weight).sum() * share
    counted = ~(_ignored(ignored, points, size, classes) & ~taken[..., None])
    return V8Terms(
        boxes=weights.boxes * box_sum / images,
        bins=weights.bins * bins / images,
        classes=weights.classes
        * F.binary_cross_entropy_with_logits(scores, wanted, counted.to(scores), reduction="sum")
        / images,
        iou=mean_iou,
    )


def _ignored(ignored: Sequence[Target], points: Tensor, size: Tensor, classes: int) -> Tensor:
    """The classes of each cell (N, P, C) that are to be ignored there."""
    found = torch.zeros(len(ignored), len(points), classes, dtype=torch.bool, device=points.device)
    for image, (kinds, boxes) in enumerate(ignored):
        within = covered(points, boxes.to(size) * size.repeat(2))
        for kind, cells in zip(kinds.tolist(), within, strict=True):
            found[image, :, kind] |= cells
    return found


def _points(boxes: Sequence[Tensor], heads: Heads) -> tuple[Tensor, Tensor]:
    """The cells' centres in pixels (P, 2) and their strides (P,)."""
    points, strides = [], []
    for box, stride in zip(boxes, heads.strides, strict=True):
        rows, columns = (torch.arange(n, device=box.device) + 0.5 for n in box.shape[-2:])
        grid = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)
        points.append(grid.reshape(-1, 2).to(box.dtype) * stride)
        strides.append(box.new_full((len(points[-1]),), float(stride)))
    return torch.cat(points), torch.cat(strides)


def _focal(logits: Tensor, sides: Tensor) -> Tensor:
    """Cross entropy (T,) of bins (T, 4, R) with the two around the distances (T, 4), the mean over sides."""
    bins = logits.shape[-1]
    sides = sides.clamp(0, bins - 1 - 0.01)
    left = sides.long()
    share = sides - left
    likely = logits.log_softmax(-1)
    near, next_ = (likely.gather(2, (left + step)[..., None])[..., 0] for step in (0, 1))
    return -(near * (1 - share) + next_ * share).mean(1)


def v8_loss(
    outputs: Sequence[Tensor], targets: Sequence[Target], heads: Heads, weights: V8Weights | None = None
) -> Tensor:
    """Computes the loss, a scalar: the sum of `v8_terms`."""
    return v8_terms(outputs, targets, heads, weights).total
