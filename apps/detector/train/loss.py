"""YOLO-v2's loss: darknet's region layer (arXiv 1612.08242), for raw logits, vectorised over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.targets.errors import InputError

Target = tuple[Tensor, Tensor]
"""One image's truth: classes (T,), integers, and boxes (T, 4), cx, cy, w, h normalised to the input.

An object that is to be ignored, neither found nor background, has ~class, which is negative."""

WARM_IMAGES = 12_800
"""While fewer images than this have been seen, every box is pulled to its anchor."""


@dataclass(frozen=True)
class RegionWeights:
    """The weights of the loss; the defaults are darknet's."""

    coordinates: float = 1.0
    """Of a responsible box's coordinates, times 2 - w * h of its truth."""
    objectness: float = 5.0
    """Of a responsible box's objectness, whose target is its IoU with the truth."""
    background: float = 1.0
    """Of every other box's objectness, whose target is 0."""
    classes: float = 1.0
    """Of a responsible box's classes."""
    pull: float = 0.01
    """Of the pull to the anchor at the beginning."""
    ignore: float = 0.6
    """A box with a better IoU than this with any truth is not background."""
    class_term: Literal["softmax", "squared"] = "softmax"
    """"softmax": cross-entropy, whose gradient (target - softmax) is the one darknet applies; "squared": the
    square of that difference, which is what darknet prints as its cost."""


@dataclass(frozen=True)
class RegionTerms:
    """The loss in its parts, each a scalar: summed over the boxes, averaged over the images.

    Attributes:
        coordinates, objectness, background, classes, pull: the weighted terms.
        iou: mean IoU of the responsible boxes with their truths, detached; 0 if there are none.
    """

    coordinates: Tensor
    objectness: Tensor
    background: Tensor
    classes: Tensor
    pull: Tensor
    iou: Tensor

    @property
    def total(self) -> Tensor:
        """The loss to minimise."""
        return self.coordinates + self.objectness + self.background + self.classes + self.pull


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes given as (..., 4) cx, cy, w, h; the other dimensions broadcast. 0 where both are empty."""
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    return shared / union.clamp(min=1e-12)


@dataclass(frozen=True)
class _Matches:
    """Which box answers for which truth; T rows.

    Attributes:
        box: (T,) index into the flat (N, A, h, w) grid, no index twice.
        classes: (T,) int64.
        truth: (T, 4) cx, cy, w, h in cells.
    """

    box: Tensor
    classes: Tensor
    truth: Tensor


def _match(
    targets: Sequence[Target], anchors: Tensor, height: int, width: int, device: torch.device
) -> _Matches:
    """Gives each truth the box of its centre cell whose anchor has the best IoU by width and height alone.

    Where two truths want the same box the later one has it, as in darknet.
    """
    images = torch.cat([torch.full((len(classes),), image) for image, (classes, _) in enumerate(targets)])
    classes = torch.cat([classes.reshape(-1).to("cpu", torch.int64) for classes, _ in targets])
    truth = torch.cat([boxes.reshape(-1, 4).to("cpu", torch.float32) for _, boxes in targets])
    truth = truth * torch.tensor([width, height, width, height], dtype=torch.float32)
    shared = torch.minimum(truth[:, None, 2:], anchors).prod(-1)
    best = (shared / (truth[:, None, 2:].prod(-1) + anchors.prod(-1) - shared)).argmax(1)
    column = truth[:, 0].long().clamp(0, width - 1)
    row = truth[:, 1].long().clamp(0, height - 1)
    box = ((images * len(anchors) + best) * height + row) * width + column
    last = {int(where): index for index, where in enumerate(box)}
    keep = torch.tensor(list(last.values()), dtype=torch.int64)
    return _Matches(box[keep].to(device), classes[keep].to(device), truth[keep].to(device))


def checked_targets(targets: Sequence[Target], images: int, classes: int) -> list[Target]:
    """The targets without empty boxes.

    Raises:
        InputError: they do not fit the images or the classes, or are not finite.
    """
    if len(targets) != images:
        raise InputError(f"{len(targets)} targets for {images} images", where="detector loss")
    kept = []
    for number, (labels, boxes) in enumerate(targets):
        if len(labels) != len(boxes) or (boxes.numel() and boxes.shape[-1] != 4):
            raise InputError(
                f"classes of shape {tuple(labels.shape)} with boxes of shape {tuple(boxes.shape)}",
                where=f"image {number} of the batch",
                hint="give (T,) and (T, 4)",
            )
        kinds = kinds_of(labels)
        if len(labels) and not (0 <= int(kinds.min()) and int(kinds.max()) < classes):
            raise InputError(f"a class outside 0..{classes - 1}", where=f"image {number} of the batch")
        if not torch.isfinite(boxes).all():
            raise InputError("a box that is not finite", where=f"image {number} of the batch")
        solid = (boxes.reshape(-1, 4)[:, 2:] > 0).all(-1)  # an empty box has no logarithm
        kept.append((labels[solid], boxes.reshape(-1, 4)[solid]))
    return kept


def kinds_of(labels: Tensor) -> Tensor:
    """The classes of objects, whether they are ignored or not."""
    return torch.where(labels < 0, ~labels, labels)


def parted(targets: Sequence[Target]) -> tuple[list[Target], list[Target]]:
    """The objects to be found, and those to be ignored with their classes."""
    wanted = [(labels[labels >= 0], boxes[labels >= 0]) for labels, boxes in targets]
    return wanted, [(~labels[labels < 0], boxes[labels < 0]) for labels, boxes in targets]


def covered(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points (P, 2) lie in boxes (T, 4) cx, cy, w, h, or next to the middle of one: (T, P) bool.

    A box smaller than a cell may hold no cell's middle: the nearest answers for it.
    """
    away = (points - boxes[:, None, :2]).abs()
    inside = (away < boxes[:, None, 2:] / 2).all(-1)
    nearest = away.square().sum(-1).argmin(-1, keepdim=True)
    return inside.scatter(1, nearest, True) if len(boxes) else inside


def region_terms(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    targets: Sequence[Target],
    anchors: Sequence[tuple[float, float]],
    seen: int = WARM_IMAGES,
    weights: RegionWeights | None = None,
) -> RegionTerms:
    """Computes darknet's region loss in its parts.

    The squares carry a factor 1/2, so the gradient with respect to the logits is exactly darknet's `delta`
    divided by the number of images. The best IoU and the objectness target are constants to the gradient.

    Of an object that is ignored, the boxes of the cells in it are not background, nor are boxes elsewhere
    that overlap it well.

    Args:
        outputs: raw logits xy (N, 2A, h, w), wh (N, 2A, h, w), obj (N, A, h, w), cls (N, A * C, h, w).
        targets: per image classes (T,) and boxes (T, 4) cx, cy, w, h normalised to the input; T may be 0.
        anchors: A pairs (width, height) in cells.
        seen: images trained on before this batch; by default enough for boxes not to be pulled to anchors.
        weights: darknet's where None.

    Raises:
        InputError: targets that do not fit the outputs, or are not finite.
    """
    weights = weights or RegionWeights()
    xy, wh, obj, cls = outputs
    images, boxes, height, width = obj.shape
    classes = cls.shape[1] // boxes
    all_targets = checked_targets(targets, images, classes)
    targets, ignored = parted(all_targets)
    prior = torch.tensor(anchors, dtype=torch.float32)

    # (N, A, h, w, 2) offsets and log-scales; everything below is in cells.
    offset = xy.view(images, boxes, 2, height, width).permute(0, 1, 3, 4, 2).sigmoid()
    scale = wh.view(images, boxes, 2, height, width).permute(0, 1, 3, 4, 2)
    confidence = obj.sigmoid()
    logits = cls.view(images, boxes, classes, height, width).permute(0, 1, 3, 4, 2)

    match = _match(targets, prior, height, width, obj.device)
    prior = prior.to(obj.device)
    with torch.no_grad():
        rows, columns = torch.arange(height, device=obj.device), torch.arange(width, device=obj.device)
        corner = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)
        size = prior[None, :, None, None] * scale.clamp(max=20).exp()
        predicted = torch.cat([offset + corner, size], -1)
        best = _best_iou(predicted, all_targets)
        responsible = torch.zeros(obj.numel(), dtype=torch.bool, device=obj.device)
        responsible[match.box] = True
        free = ~responsible.view_as(obj)
        background = free & (best <= weights.ignore) & ~_ignored(ignored, height, width, obj.device)
        iou = box_iou(predicted.reshape(-1, 4)[match.box], match.truth)

    anchor = match.box // (height * width) % boxes
    wanted_offset = match.truth[:, :2] - torch.stack([match.box % width, match.box // width % height], -1)
    wanted_scale = (match.truth[:, 2:] / prior[anchor]).log()
    importance = 2 - match.truth[:, 2:].prod(-1) / (width * height)
    miss = (offset.reshape(-1, 2)[match.box] - wanted_offset).square().sum(-1)
    miss = miss + (scale.reshape(-1, 2)[match.box] - wanted_scale).square().sum(-1)
    scores = logits.reshape(-1, classes)[match.box]
    if weights.class_term == "softmax":
        class_sum = F.cross_entropy(scores, match.classes, reduction="sum")
    else:
        class_sum = (scores.softmax(-1) - F.one_hot(match.classes, classes)).square().sum() / 2
    pull = obj.new_zeros(())
    if seen < WARM_IMAGES:
        drift = (offset - 0.5).square().sum(-1) + scale.square().sum(-1)
        pull = weights.pull * (drift * free).sum() / 2
    return RegionTerms(
        coordinates=weights.coordinates * (importance * miss).sum() / 2 / images,
        objectness=weights.objectness * (confidence.reshape(-1)[match.box] - iou).square().sum() / 2 / images,
        background=weights.background * (confidence.square() * background).sum() / 2 / images,
        classes=weights.classes * class_sum / images,
        pull=pull / images,
        iou=iou.mean() if len(iou) else obj.new_zeros(()),
    )


def _best_iou(predicted: Tensor, targets: Sequence[Target]) -> Tensor:
    """The best IoU (N, A, h, w) of each box (N, A, h, w, 4), in cells, with any truth of its image."""
    images, boxes, height, width, _ = predicted.shape
    most = max(len(classes) for classes, _ in targets)
    if most == 0:
        return predicted.new_zeros(predicted.shape[:-1])
    padded = predicted.new_zeros(images, most, 4)  # an empty box at the origin: its IoU is 0 with everything
    grid = predicted.new_tensor([width, height, width, height])
    for image, (_, truth) in enumerate(targets):
        padded[image, : len(truth)] = truth.to(predicted) * grid
    flat = predicted.view(images, boxes * height * width, 1, 4)
    return box_iou(flat, padded[:, None]).amax(-1).view(images, boxes, height, width)


def _ignored(ignored: Sequence[Target], height: int, width: int, device: torch.device) -> Tensor:
    """The cells (N, 1, h, w) in which something is ignored."""
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    middles = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1).reshape(-1, 2)
    grid = torch.tensor([width, height, width, height], dtype=torch.float32)
    found = [covered(middles, boxes.to("cpu", torch.float32) * grid).any(0) for _, boxes in ignored]
    return torch.stack(found).view(-1, 1, height, width).to(device)


def region_loss(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    targets: Sequence[Target],
    anchors: Sequence[tuple[float, float]],
    seen: int = WARM_IMAGES,
    weights: RegionWeights | None = None,
) -> Tensor:
    """Computes darknet's region loss, a scalar: the sum of `region_terms`."""
    return region_terms(outputs, targets, anchors, seen, weights).total
