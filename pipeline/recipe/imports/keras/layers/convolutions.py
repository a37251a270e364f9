"""Convolutions and dense layers of Keras; SAME padding as TensorFlow has it, the odd number behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.keras.layers.activations import activated
from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """What SAME pads before and behind an axis."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def pads(
    layer: Layer, x: Value, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """What is padded before and behind each axis of a map."""
    kind, sizes = layer.config.get("padding", "valid"), [int(n) for n in x.live.fake.shape[2:]]
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "same":
        return [same(*each) for each in zip(sizes, kernel, stride, dilation, strict=True)]
    if kind == "causal" and len(kernel) == 1:
        return [((kernel[0] - 1) * dilation[0], 0)]
    raise layer.error(f"its padding is {kind}", "known are valid, same and causal")


def conv(m: Maker, layer: Layer, x: Value) -> Value:
    """Conv1D and Conv2D, with groups."""
    rank = 1 if layer.node.kind.startswith("Conv1D") else 2
    roles = ("kernel", "bias") if layer.config.get("use_bias", True) else ("kernel",)
    read = m.read(layer, roles)
    x = _map(m, layer, x, rank)
    kernel = _axes(layer, read["kernel"], rank + 2)
    weight = kernel.permute(rank + 1, rank, *range(rank))
    groups = int(layer.config.get("groups", 1))
    if groups * weight.shape[1] != x.live.fake.shape[1]:
        raise layer.error(f"its kernel {tuple(kernel.shape)} does not fit its input {x.shape}")
    return activated(m, layer, _conv(m, layer, x, rank, weight, read.get("bias"), groups))


def depthwise(m: Maker, layer: Layer, x: Value) -> Value:
    """DepthwiseConv1D and DepthwiseConv2D."""
    rank = 1 if layer.node.kind.endswith("1D") else 2
    read = m.read(layer, ("depthwise_kernel", *_bias(layer)), depthwise_kernel="kernel")
    x = _map(m, layer, x, rank)
    weight = _depthwise(layer, x, _axes(layer, read["depthwise_kernel"], rank + 2), rank)
    groups = int(x.live.fake.shape[1])
    return activated(m, layer, _conv(m, layer, x, rank, weight, read.get("bias"), groups))


def separable(m: Maker, layer: Layer, x: Value) -> Value:
    """SeparableConv1D and SeparableConv2D: depthwise, then pointwise."""
    rank = 1 if layer.node.kind.endswith("1D") else 2
    read = m.read(layer, ("depthwise_kernel", "pointwise_kernel", *_bias(layer)))
    x = _map(m, layer, x, rank)
    weight = _depthwise(layer, x, _axes(layer, read["depthwise_kernel"], rank + 2), rank)
    x = _conv(
        m, layer.named("depthwise"), x, rank, weight, None, int(x.live.fake.shape[1]), "depthwise_kernel"
    )
    pointwise = _axes(layer, read["pointwise_kernel"], rank + 2).permute(rank + 1, rank, *range(rank))
    made = CONVS[rank](pointwise.shape[1], pointwise.shape[0], 1, bias="bias" in read)
    shape = (pointwise.shape[0], int(x.live.fake.shape[1]), *[1] * rank)
    made.weight = m.parameter(layer, "pointwise_kernel", pointwise, shape)
    if "bias" in read:
        made.bias = m.parameter(layer, "bias", read["bias"], shape[:1])
    return activated(m, layer, m.module(layer, made, x))


def _bias(layer: Layer) -> tuple[str, ...]:
    return ("bias",) if layer.config.get("use_bias", True) else ()


def _axes(layer: Layer, kernel: Tensor, axes: int) -> Tensor:
    if kernel.dim() != axes:
        raise layer.error(f"its kernel is {tuple(kernel.shape)}, not of {axes} axes")
    return kernel


def _map(m: Maker, layer: Layer, x: Value, rank: int) -> Value:
    if x.rank != rank + 2:
        raise layer.error(f"its input is {x.shape}, not of {rank + 2} axes")
    return m.channels(layer, x)


def _depthwise(layer: Layer, x: Value, kernel: Tensor, rank: int) -> Tensor:
    """A kernel (..., in, multiplier) as torch's (in x multiplier, 1, ...)."""
    if kernel.shape[rank] != x.live.fake.shape[1]:
        raise layer.error(f"its kernel {tuple(kernel.shape)} does not fit its input {x.shape}")
    return kernel.permute(rank, rank + 1, *range(rank)).reshape(-1, 1, *kernel.shape[:rank])


def _conv(
    m: Maker, layer: Layer, x: Value, rank: int, weight: Tensor, bias: Tensor | None, groups: int,
    role: str = "kernel",
) -> Value:  # fmt: skip
    """A convolution of maps with channels first."""
    stride, dilation, kernel = (
        layer.pair("strides", rank),
        layer.pair("dilation_rate", rank),
        weight.shape[2:],
    )
    if weight.shape[0] % groups:
        raise layer.error(f"makes {weight.shape[0]} channels in {groups} groups")
    around = pads(layer, x, kernel, stride, dilation)
    even = all(before == after for before, after in around)
    if not even:
        x = m.module(layer.named("pad"), zeros(around), x)
    made = CONVS[rank](
        weight.shape[1] * groups, weight.shape[0], tuple(kernel), stride,
        tuple(before for before, _ in around) if even else 0, dilation, groups, bias is not None,
    )  # fmt: skip
    made.weight = m.parameter(layer, role, weight)
    if bias is not None:
        made.bias = m.parameter(layer, "bias", bias, (weight.shape[0],))
    return m.module(layer, made, x)


def zeros(around: Sequence[tuple[int, int]]) -> nn.Module:
    """Zeros around a map."""
    sides: Any = tuple(side for pair in reversed(around) for side in pair)
    if len(around) == 1:
        return nn.ConstantPad1d(sides, 0.0)
    return nn.ZeroPad2d(sides)


def transposed(m: Maker, layer: Layer, x: Value) -> Value:
    """Conv1DTranspose and Conv2DTranspose: the gradient of a convolution, so is torch's."""
    rank = 1 if layer.node.kind.startswith("Conv1D") else 2
    read = m.read(layer, ("kernel", *_bias(layer)))
    x = _map(m, layer, x, rank)
    kernel = _axes(layer, read["kernel"], rank + 2)
    if kernel.shape[-1] != x.live.fake.shape[1]:
        raise layer.error(f"its kernel {tuple(kernel.shape)} does not fit its input {x.shape}")
    weight = kernel.permute(rank + 1, rank, *range(rank))
    stride, dilation = layer.pair("strides", rank), layer.pair("dilation_rate", rank)
    asked = layer.config.get("output_padding")
    extra = (
        [None] * rank if asked is None else list(layer.pair("output_padding", rank)) if asked else [0] * rank
    )
    padding, behind = [], []
    for axis in range(rank):
        size, step = int(x.live.fake.shape[2 + axis]), stride[axis]
        span = (int(weight.shape[2 + axis]) - 1) * dilation[axis] + 1
        out = _length(layer, size, span, step, extra[axis])
        full = (size - 1) * step + span
        before = max(full - out, 0) // 2 if layer.config.get("padding", "valid") == "same" else 0
        padding.append(before)
        behind.append(out - (full - 2 * before))  # above 0: added behind, below: cut off
    more = tuple(max(n, 0) for n in behind)
    if any(n >= max(s, d) for n, s, d in zip(more, stride, dilation, strict=True)):
        raise layer.error("adds more behind than a stride")
    made = TRANSPOSED[rank](
        weight.shape[0], weight.shape[1], tuple(weight.shape[2:]), stride, tuple(padding), more, 1,
        "bias" in read, dilation,
    )  # fmt: skip
    made.weight = m.parameter(layer, "kernel", weight)
    if "bias" in read:
        made.bias = m.parameter(layer, "bias", read["bias"], (int(weight.shape[1]),))
    x = m.module(layer, made, x)
    for axis, cut in enumerate(behind):
        if cut < 0:
            size = int(x.live.fake.shape[2 + axis])
            x = m.call(layer.named("cut"), torch.narrow, x, x, 2 + axis, 0, size + cut)
    return activated(m, layer, x)


def _length(layer: Layer, size: int, span: int, stride: int, extra: int | None) -> int:
    """How long Keras makes an axis."""
    kind = layer.config.get("padding", "valid")
    if kind not in ("valid", "same"):
        raise layer.error(f"its padding is {kind}", "known are valid and same")
    if extra is None:
        return size * stride if kind == "same" else size * stride + max(span - stride, 0)
    return (size - 1) * stride + span - (2 * (span // 2) if kind == "same" else 0) + extra


def dense(m: Maker, layer: Layer, x: Value) -> Value:
    """Dense: of maps a 1x1 convolution; of a flattened map the weights follow its order of numbers."""
    read = m.read(layer, ("kernel", *_bias(layer)))
    kernel = _axes(layer, read["kernel"], 2)
    weight = kernel.t()
    if weight.shape[1] != x.shape[-1]:
        raise layer.error(f"its kernel {tuple(kernel.shape)} does not fit its input {x.shape}")
    made: nn.Module
    if x.rank > 2 and x.order == tuple((0, x.rank - 1, *range(1, x.rank - 1))):
        made = CONVS[x.rank - 2](weight.shape[1], weight.shape[0], 1, bias="bias" in read)
        weight = weight.reshape(*weight.shape, *[1] * (x.rank - 2))
    else:
        if x.order[-1] != x.rank - 1:
            x = m.ordered(layer, x, tuple(range(x.rank)))
        made = nn.Linear(weight.shape[1], weight.shape[0], "bias" in read)
        weight = weight if x.flat is None else weight[:, x.flat]
    made.weight = m.parameter(layer, "kernel", weight)
    if "bias" in read:
        made.bias = m.parameter(layer, "bias", read["bias"], (int(weight.shape[0]),))
    return activated(m, layer, m.module(layer, made, x, x.order))
