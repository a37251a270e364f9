"""Pools and resizes of Keras."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paredown.pipeline.recipe.imports.keras.layers.convolutions import pads
from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value

MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


def pool(m: Maker, layer: Layer, x: Value) -> Value:
    """Max and average pooling; what SAME pads is never the largest, and does not count in a mean."""
    rank = 1 if layer.node.kind.endswith("1D") else 2
    if x.rank != rank + 2:
        raise layer.error(f"its input is {x.shape}, not of {rank + 2} axes")
    x = m.channels(layer, x)
    kernel = layer.pair("pool_size", rank, 2)
    stride = kernel if layer.config.get("strides") is None else layer.pair("strides", rank)
    around = pads(layer, x, kernel, stride, [1] * rank)
    largest = layer.node.kind.startswith("Max")
    before = tuple(pair[0] for pair in around)
    out = [-(-(int(n) + sum(p) - k + 1) // s) for n, p, k, s in
           zip(x.live.fake.shape[2:], around, kernel, stride, strict=True)]  # fmt: skip
    if all(pair[0] == pair[1] for pair in around):
        made = (
            MAX[rank](kernel, stride, before)
            if largest
            else AVERAGE[rank](kernel, stride, before, False, False)
        )
        return m.module(layer, made, x)
    made = MAX[rank](kernel, stride, before, 1, False, True) if largest else (
        AVERAGE[rank](kernel, stride, before, True, False))  # fmt: skip
    if _reaches(x, kernel, stride, before, out):  # the last window may hang over: torch cuts it off
        return m.module(layer, made, x)
    sides = [side for pair in reversed(around) for side in pair]
    if largest:
        fill = 0.0 if _positive(m, x) else float("-inf")
        x = m.call(layer.named("pad"), F.pad, x, x, sides, "constant", fill)
        return m.module(layer, MAX[rank](kernel, stride), x)
    ones = torch.ones(1, 1, *x.live.fake.shape[2:])
    share = AVERAGE[rank](kernel, stride)(F.pad(ones, sides))
    x = m.module(layer, AVERAGE[rank](kernel, stride), m.call(layer.named("pad"), F.pad, x, x, sides))
    return m.call(layer.named("share"), torch.mul, x, x, 1 / share)


def _reaches(
    x: Value, kernel: tuple[int, ...], stride: tuple[int, ...], before: tuple[int, ...], out: list[int]
) -> bool:
    """Whether torch, rounding up, makes just as many windows."""
    for n, k, s, p, wanted in zip(x.live.fake.shape[2:], kernel, stride, before, out, strict=True):
        count = -(-(int(n) + 2 * p - k) // s) + 1
        if (count - 1) * s >= int(n) + p:
            count -= 1
        if count != wanted or 2 * p > k:
            return False
    return True


def _positive(m: Maker, x: Value) -> bool:
    """Whether no number of a value is negative; then zeros pad as well, and have an int8 code."""
    step = next((step for step in reversed(m.builder.steps) if x.live.name in step.outputs), None)
    return step is not None and isinstance(m.builder.modules[step.path], (nn.ReLU, nn.ReLU6, nn.Sigmoid))


def global_pool(m: Maker, layer: Layer, x: Value) -> Value:
    """Mean or maximum over a map."""
    if x.rank not in (3, 4):
        raise layer.error(f"its input is {x.shape}")
    x = m.channels(layer, x)
    keep = bool(layer.config.get("keepdims", False))
    axes = tuple(range(2, x.rank))
    largest = "Max" in layer.node.kind
    if layer.config.get("data_format") == "channels_first" and keep:
        order: tuple[int, ...] = x.order
    else:
        order = x.order if keep else (0, 1)
    function = torch.amax if largest else torch.mean
    return m.call(layer, function, x, x, axes, keep, order=order)


def upsampling(m: Maker, layer: Layer, x: Value) -> Value:
    """UpSampling1D and 2D: whole factors, nearest or bilinear."""
    rank = 1 if layer.node.kind.endswith("1D") else 2
    if x.rank != rank + 2:
        raise layer.error(f"its input is {x.shape}, not of {rank + 2} axes")
    x = m.channels(layer, x)
    factors = tuple(float(n) for n in layer.pair("size", rank, 2))
    kind = layer.config.get("interpolation", "nearest")
    if kind not in ("nearest", "bilinear"):
        raise layer.error(f"interpolates {kind}", "known are nearest and bilinear")
    align: dict[str, Any] = {"align_corners": False} if kind == "bilinear" else {}
    return m.module(
        layer, nn.Upsample(scale_factor=factors if rank == 2 else factors[0], mode=kind, **align), x
    )


def resizing(m: Maker, layer: Layer, x: Value) -> Value:
    """Resizing to a fixed size."""
    config = layer.config
    if config.get("crop_to_aspect_ratio") or config.get("pad_to_aspect_ratio") or config.get("antialias"):
        raise layer.error("crops, pads or smooths its input", "resize images in [preprocess]")
    kind = str(config.get("interpolation", "bilinear"))
    if x.rank != 4 or kind not in ("nearest", "bilinear"):
        raise layer.error(f"interpolates {kind}", "known are nearest and bilinear")
    x = m.channels(layer, x)
    size = int(config["height"]), int(config["width"])
    if size == tuple(int(n) for n in x.live.fake.shape[2:]):
        return x
    align: dict[str, Any] = {"align_corners": False} if kind == "bilinear" else {}
    mode = "nearest-exact" if kind == "nearest" else kind
    return m.call(layer, F.interpolate, x, x, size=size, mode=mode, **align)
