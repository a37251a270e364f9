"""Resizing and sampling of ONNX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Node, Value

TORCH_MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


def resize(b: Builder, node: Node, x: Value, *given: Value) -> Any:
    """Nearest, linear and cubic; what torch's own resizes do not compute is a matrix for each axis."""
    shape = b.shape(x)
    scales, sizes, box = _asked(b, node, given)
    axes = [axis % len(shape) for axis in node.attrs.get("axes", range(len(shape)))]
    if sizes is not None:
        if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise node.error("keeps the aspect ratio", "export it with fixed sizes")
        wanted, ratio = list(shape), [1.0] * len(shape)
        for axis, size in zip(axes, sizes, strict=True):
            wanted[axis], ratio[axis] = size, size / shape[axis]
    else:
        wanted, ratio = list(shape), [1.0] * len(shape)
        for axis, scale in zip(axes, scales or (), strict=True):
            wanted[axis], ratio[axis] = int(shape[axis] * scale), scale
    if wanted[:2] != list(shape[:2]) and b.batch and wanted[0] == b.batch:
        wanted[0], ratio[0] = 1, 1.0
    if wanted == list(shape) and all(abs(each - 1) < 1e-6 for each in ratio) and not box:
        return x
    mode = node.attrs.get("mode", "nearest")
    way = node.attrs.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    exact = all(abs(w - n * r) < 1e-4 for w, n, r in zip(wanted, shape, ratio, strict=True))
    if len(shape) == 4 and wanted[:2] == list(shape[:2]) and exact and not box:
        plain = _plain(node, mode, way, shape, wanted)
        if plain is not None:
            return b.module(node, plain, x)
    found = x
    for axis, (size, scale) in enumerate(zip(wanted, ratio, strict=True)):
        if size == shape[axis] and abs(scale - 1) < 1e-6 and not box:
            continue
        ends = (box[axis], box[axis + len(shape)]) if box else (0.0, 1.0)
        matrix = _matrix(node, mode, way, shape[axis], size, scale, ends)
        found = b.call(node, _along, found, axis, matrix)
    return found


def _asked(b: Builder, node: Node, given: tuple[Value, ...]) -> tuple[Any, Any, list[float] | None]:
    """Scales, sizes and the part of the input that is resized, if it is not all of it."""
    if node.kind == "Upsample" and not given:
        return node.attrs["scales"], None, None
    if node.opset < 11:
        return b.known(node, given[0], "scales").tolist(), None, None
    roi, scales, sizes = (*given, None, None, None)[:3]
    box = None
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        box = b.known(node, roi, "roi").tolist()
    if sizes is not None:
        return None, b.ints(node, sizes, "sizes"), box
    return b.known(node, scales, "scales").tolist(), None, box


def _plain(node: Node, mode: str, way: str, shape: tuple[int, ...], wanted: list[int]) -> nn.Module | None:
    """Torch's own module where it computes the same."""
    size = (wanted[2], wanted[3])
    if mode == "nearest":
        rounding = node.attrs.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")
        whole = all(w % n == 0 for w, n in zip(size, shape[2:], strict=True))
        floor = way == "asymmetric" and (rounding == "floor" or (whole and node.opset < 11))
        halves = way == "half_pixel" and whole  # pixels of a whole factor never lie halfway
        if floor or (halves and rounding.startswith("round")):
            return _upsampled(shape, size, "nearest")
        return None
    if mode not in TORCH_MODES or node.attrs.get("antialias"):
        return None
    if mode == "cubic" and (
        node.attrs.get("cubic_coeff_a", -0.75) != -0.75 or node.attrs.get("exclude_outside")
    ):
        return None
    if way in ("half_pixel", "pytorch_half_pixel") and (way == "half_pixel" or min(size) > 1):
        return _upsampled(shape, size, TORCH_MODES[mode], False)
    if way == "align_corners" and min(size) > 1:
        return _upsampled(shape, size, TORCH_MODES[mode], True)
    return None


def _upsampled(
    shape: tuple[int, ...], size: tuple[int, int], mode: str, corners: bool | None = None
) -> nn.Module:
    """Of whole factors by them, so that it fits other sizes too."""
    factors = [w / n for w, n in zip(size, shape[2:], strict=True)]
    if all(factor.is_integer() for factor in factors):
        return nn.Upsample(scale_factor=(factors[0], factors[1]), mode=mode, align_corners=corners)
    return nn.Upsample(size=size, mode=mode, align_corners=corners)


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """A matrix (new, old) along one axis."""
    if axis == x.dim() - 1:
        return x @ matrix.t()
    return (x.transpose(axis, -1) @ matrix.t()).transpose(axis, -1)


def _matrix(
    node: Node, mode: str, way: str, old: int, new: int, scale: float, ends: tuple[float, float]
) -> Tensor:
    """(new, old): the share of each old value in each new one; the formulas of ONNX's own text."""
    if node.attrs.get("antialias") and scale < 1:
        raise node.error("resizes with antialias", "export it without")
    place = torch.arange(new, dtype=torch.float64)
    if way == "align_corners":
        spot = place * (old - 1) / (new - 1) if new > 1 else place * 0
    elif way == "asymmetric":
        spot = place / scale
    elif way == "tf_crop_and_resize":
        first, last = ends
        spot = (
            first * (old - 1) + place * (last - first) * (old - 1) / (new - 1)
            if new > 1
            else (0.5 * (first + last) * (old - 1) + place * 0)
        )
    elif way == "half_pixel_symmetric":
        adjust = new / (scale * old)
        spot = old / 2 * (1 - adjust) + (place + 0.5) / scale - 0.5
    elif way in ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"):
        spot = (place + 0.5) / scale - (0.0 if way == "tf_half_pixel_for_nn" else 0.5)
        if way == "pytorch_half_pixel" and new == 1:
            spot = place * 0
    else:
        raise node.error(f"resizes with {way}")
    matrix = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    if mode == "nearest":
        matrix[rows, _rounded(node, spot).clamp(0, old - 1)] = 1
    elif mode == "linear":
        low = spot.floor()
        share = spot - low
        for step, part in ((0, 1 - share), (1, share)):
            matrix.index_put_((rows, (low.long() + step).clamp(0, old - 1)), part, accumulate=True)
    else:
        a, low = node.attrs.get("cubic_coeff_a", -0.75), spot.floor()
        far = spot - low
        parts = [_cubic(far + 1, a), _cubic(far, a), _cubic(1 - far, a), _cubic(2 - far, a)]
        if node.attrs.get("exclude_outside"):
            inside = [(low + s >= 0) & (low + s < old) for s in (-1, 0, 1, 2)]
            parts = [torch.where(i, p, 0.0) for i, p in zip(inside, parts, strict=True)]
            total = torch.stack(parts).sum(0)
            parts = [part / total for part in parts]
        for step, part in zip((-1, 0, 1, 2), parts, strict=True):
            matrix.index_put_((rows, (low.long() + step).clamp(0, old - 1)), part, accumulate=True)
    if way == "tf_crop_and_resize" and bool(((spot < 0) | (spot > old - 1)).any()):
        raise node.error("resizes a part that lies outside the image")
    return matrix.float()


def _rounded(node: Node, spot: Tensor) -> Tensor:
    mode = node.attrs.get("nearest_mode", "round_prefer_floor")
    if node.opset < 11:
        mode = "floor"
    ways = {
        "floor": spot.floor(),
        "ceil": spot.ceil(),
        "round_prefer_floor": (spot - 0.5).ceil(),
        "round_prefer_ceil": (spot + 0.5).floor(),
    }
    if mode not in ways:
        raise node.error(f"rounds with {mode}")
    return ways[mode].long()


def _cubic(far: Tensor, a: float) -> Tensor:
    """Keys' kernel at a distance."""
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    return torch.where(far <= 1, near, a * (((far - 5) * far + 8) * far - 4))


def grid_sample(b: Builder, node: Node, x: Value, grid: Value) -> Any:
    """Samples at the places of a grid."""
    modes = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic",
             "bicubic": "bicubic"}  # fmt: skip
    mode = modes[node.attrs.get("mode", "bilinear")]
    corners = bool(node.attrs.get("align_corners", 0))
    return b.call(node, F.grid_sample, x, grid, mode, node.attrs.get("padding_mode", "zeros"), corners)
