"""Operations of ONNX with weights, and norms."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node, Value
from paredown.pipeline.recipe.imports.onnx.operations.moves import permuted, shaped

CONVS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONV_FUNCTIONS: Mapping[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def window(node: Node, size: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], ...]:
    """Strides, dilations, and padding before and after, of an operation with a window.

    Args:
        node: of the graph.
        size: of the input, without batch and channels.
        kernel: of the window.
    """
    axes = len(size)
    strides = list(node.attrs.get("strides", [1] * axes))
    dilations = list(node.attrs.get("dilations", [1] * axes))
    pads = list(node.attrs.get("pads", [0] * (2 * axes)))
    auto = node.attrs.get("auto_pad", "NOTSET")
    before, after = pads[:axes], pads[axes:]
    if auto == "VALID":
        before, after = [0] * axes, [0] * axes
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        wanted = [-(-n // s) for n, s in zip(size, strides, strict=True)]
        total = [max((w - 1) * s + k - n, 0) for w, s, k, n in zip(wanted, strides, spans, size, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
    for each in (strides, dilations, before, after):
        if len(each) != axes or min(each, default=0) < 0:
            raise node.error(f"its strides, dilations or pads do not fit {axes} axes, or are negative")
    return strides, dilations, before, after


def padded(
    b: Builder, node: Node, x: Value, before: Sequence[int], after: Sequence[int], value: float
) -> Any:
    """A value with a border around its last axes."""
    sides = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return b.call(node, F.pad, x, sides, "constant", value) if any(sides) else x


def conv(b: Builder, node: Node, x: Value, weight: Value, bias: Value = None) -> Any:
    """A convolution over one, two or three axes; unequal padding is a step before it."""
    shape, kernel = b.shape(x), b.shape(weight)
    axes = len(shape) - 2
    if axes not in CONVS or len(kernel) != len(shape):
        raise node.error(f"reads {len(shape)} axes with a kernel of {len(kernel)}")
    strides, dilations, before, after = window(node, shape[2:], kernel[2:])
    groups = node.attrs.get("group", 1)
    if shape[1] != kernel[1] * groups:
        raise node.error(f"reads {shape[1]} channels with a kernel for {kernel[1] * groups}")
    if before != after:
        x, before = padded(b, node, x, before, after, 0.0), [0] * axes
    if isinstance(x, Live) and isinstance(weight, Tensor) and not isinstance(bias, Live):
        made = CONVS[axes](
            shape[1], kernel[0], kernel[2:], strides, before, dilations, groups, bias is not None
        )
        made.weight = b.parameter(weight)
        if bias is not None:
            made.bias = b.parameter(bias)
        return b.layer(node, made, x, weight=weight)
    return b.call(node, CONV_FUNCTIONS[axes], x, weight, bias, strides, before, dilations, groups)


def conv_transpose(b: Builder, node: Node, x: Value, weight: Value, bias: Value = None) -> Any:
    """A transposed convolution; what torch cannot pad is cut off, or added, behind it."""
    weight = b.known(node, weight, "weight")
    shape, kernel = b.shape(x), tuple(weight.shape)
    axes = len(shape) - 2
    if axes not in TRANSPOSED or len(kernel) != len(shape) or shape[1] != kernel[0]:
        raise node.error(f"reads {shape} with a kernel of {kernel}")
    attrs = dict(node.attrs)
    strides, dilations = attrs.get("strides", [1] * axes), attrs.get("dilations", [1] * axes)
    extra = attrs.get("output_padding", [0] * axes)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel[2:], dilations, strict=True)]
    full = [(n - 1) * s + k for n, s, k in zip(shape[2:], strides, spans, strict=True)]
    pads = list(attrs.get("pads", [0] * (2 * axes)))
    before, after = pads[:axes], pads[axes:]
    auto = attrs.get("auto_pad", "NOTSET")
    wanted = attrs.get("output_shape")
    if wanted is not None or auto.startswith("SAME"):
        sizes = list(wanted)[-axes:] if wanted else [n * s for n, s in zip(shape[2:], strides, strict=True)]
        total = [f + e - w for f, e, w in zip(full, extra, sizes, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        before = after = [0] * axes
    least = [min(p, q) for p, q in zip(before, after, strict=True)]
    behind = [p - q + e for p, q, e in zip(before, after, extra, strict=True)]  # over the equal padding
    torch_extra = [n if n < max(s, d) else 0 for n, s, d in zip(behind, strides, dilations, strict=True)]
    plain = min(least) >= 0 and all(n >= 0 for n in behind) and torch_extra == behind
    groups = attrs.get("group", 1)
    arguments: tuple[Any, ...] = (before, extra) if before == after else (before, behind)
    made = TRANSPOSED[axes](
        shape[1], kernel[1] * groups, kernel[2:], strides,
        *(arguments if plain else ([0] * axes, [0] * axes)),
        groups, bias is not None, dilations,
    )  # fmt: skip
    made.weight = b.parameter(weight)
    if bias is not None:
        made.bias = b.parameter(b.known(node, bias, "bias"))
    found = b.layer(node, made, x, weight=weight)
    if plain:
        return found
    before, after = [-p for p in before], [e - q for e, q in zip(extra, after, strict=True)]
    return padded(b, node, found, before, after, 0.0)


def gemm(b: Builder, node: Node, x: Value, weight: Value, bias: Value = None) -> Any:
    """Alpha x W + beta c; a linear layer, where W and c are constants."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if node.attrs.get("transA"):
        x = b.call(node, torch.t, x)
    if isinstance(weight, Live) or not isinstance(x, Live) or isinstance(bias, Live):
        if node.attrs.get("transB"):
            weight = b.call(node, torch.t, weight)
        found = b.call(node, torch.matmul, x, weight)
        found = found if alpha == 1 else b.call(node, operator.mul, found, alpha)
        if bias is None:
            return found
        scaled = bias if beta == 1 else b.call(node, operator.mul, bias, beta)
        return b.call(node, operator.add, found, scaled)
    weight = b.known(node, weight, "weight")
    if not node.attrs.get("transB"):
        weight = b.derived(weight, "t", lambda value: value.t().contiguous())
    if alpha != 1:
        weight = b.derived(weight, f"times {alpha}", lambda value: value * alpha)
    if bias is not None and beta != 1:
        bias = b.derived(b.known(node, bias, "bias"), f"times {beta}", lambda value: value * beta)
    return linear(b, node, x, weight, bias)


def linear(b: Builder, node: Node, x: Value, weight: Tensor, bias: Value = None) -> Any:
    """A linear layer with a weight (out, in)."""
    if weight.dim() != 2 or b.shape(x)[-1] != weight.shape[1]:
        raise node.error(f"reads {b.shape(x)} with a weight of {tuple(weight.shape)}")
    out = weight.shape[0]
    if bias is not None and b.known(node, bias, "bias").numel() not in (1, out):
        return b.call(node, operator.add, linear(b, node, x, weight), bias)
    before = b.reshaped.get(x.name) if isinstance(x, Live) else None
    if (
        before is not None
        and b.shape(before)[-1:] == b.shape(x)[-1:]
        and len(b.shape(before)) > len(b.shape(x))
    ):
        # the layer works along the last axis alone, and the batch stays an axis of its own
        found = linear(b, node, before, weight, bias)
        return shaped(b, node, found, [*b.shape(x)[:-1], out])
    if isinstance(x, Live) and len(b.shape(x)) == 3 and b.shape(x)[0] > 1 == b.shape(x)[1]:
        # steps first, as recurrent layers have them: the batch comes first in the pipeline
        found = linear(b, node, permuted(b, node, x, (1, 0, 2)), weight, bias)
        return permuted(b, node, found, (1, 0, 2))
    made = nn.Linear(weight.shape[1], out, bias is not None)
    made.weight = b.parameter(weight)
    if bias is not None:
        flat = b.derived(b.known(node, bias, "bias"), f"row {out}",
                         lambda value: value.reshape(-1).expand(out).contiguous())  # fmt: skip
        made.bias = b.parameter(flat)
    return b.layer(node, made, x, weight=weight)


def fused_linear(b: Builder, node: Node, x: Value, weight: Value, bias: Value = None) -> Any:
    """MatMul with a constant matrix, and the sum behind it."""
    matrix = b.known(node, weight, "weight")
    if (
        not isinstance(x, Live)
        or b.dtype(matrix) != torch.float32
        or matrix.dim() != 2
        or len(b.shape(x)) < 2
    ):
        found = b.call(node, torch.matmul, x, weight)
        return found if bias is None else b.call(node, operator.add, found, bias)
    return linear(b, node, x, b.derived(matrix, "t", lambda value: value.t().contiguous()), bias)


def matmul(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """A linear layer where the right side is a constant matrix."""
    if isinstance(x, Live) and isinstance(y, Tensor) and y.dim() == 2 and len(b.shape(x)) >= 2:
        return fused_linear(b, node, x, y)
    return b.call(node, torch.matmul, x, y)


def batch_norm(
    b: Builder, node: Node, x: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Any:
    """Batch norm with its running statistics."""
    shape = b.shape(x)
    if node.attrs.get("training_mode"):
        raise node.error("is in training mode", "export the model in evaluation mode: model.eval()")
    if node.attrs.get("spatial", 1) != 1 or len(shape) - 2 not in NORMS:
        raise node.error(
            f"normalizes {len(shape)} axes, or not by channels", "known is one scale per channel"
        )
    known = [b.known(node, each, what) for each, what in
             ((scale, "scale"), (bias, "bias"), (mean, "mean"), (variance, "variance"))]  # fmt: skip
    if any(each.numel() != shape[1] for each in known):
        raise node.error(f"has not one scale for each of {shape[1]} channels")
    made = NORMS[len(shape) - 2](
        shape[1], node.attrs.get("epsilon", 1e-5), 1 - node.attrs.get("momentum", 0.9)
    )
    made.weight, made.bias = b.parameter(known[0]), b.parameter(known[1])
    if not bool(torch.isfinite(known[2]).all()) or not bool((known[3] >= 0).all()):
        raise node.error("its statistics are NaN, infinite or negative")
    made.running_mean, made.running_var = known[2].clone(), known[3].clone()
    return b.layer(node, made, x, weight=known[0])


def instance_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value) -> Any:
    """Instance norm with a scale for each channel."""
    shape = b.shape(x)
    if len(shape) - 2 not in INSTANCE_NORMS:
        raise node.error(f"reads {len(shape)} axes")
    made = INSTANCE_NORMS[len(shape) - 2](shape[1], node.attrs.get("epsilon", 1e-5), affine=True)
    scale, bias = b.known(node, scale, "scale"), b.known(node, bias, "bias")
    if scale.numel() != shape[1] or bias.numel() != shape[1]:
        raise node.error(f"has not one scale for each of {shape[1]} channels")
    made.weight, made.bias = b.parameter(scale), b.parameter(bias)
    return b.layer(node, made, x, weight=scale)


def layer_norm(b: Builder, node: Node, x: Value, scale: Value = None, bias: Value = None) -> Any:
    """Layer norm over the last axes."""
    shape = b.shape(x)
    axis = node.attrs.get("axis", -1) % len(shape)
    over = shape[axis:]
    epsilon = node.attrs.get("epsilon", 1e-5)
    fits = all(value is None or (isinstance(value, Tensor) and value.numel() in (1, _product(over)))
               for value in (scale, bias))  # fmt: skip
    if not fits or len(node.outputs) > 1:
        raise node.error("its scale is computed by the network, or its statistics are read")
    made = nn.LayerNorm(over, epsilon, elementwise_affine=scale is not None, bias=bias is not None)
    for name, value in (("weight", scale), ("bias", bias)):
        if value is not None:
            known = b.known(node, value, name)
            full = b.derived(
                known, f"over {over}", lambda v: v.reshape(-1).expand(_product(over)).reshape(over).clone()
            )
            setattr(made, name, b.parameter(full))
    return b.layer(node, made, x, weight=scale) if isinstance(scale, Tensor) else b.module(node, made, x)


def _product(sizes: Sequence[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


def group_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value) -> Any:
    """Group norm; opset 18 has a scale for each group, 21 one for each channel."""
    shape, groups = b.shape(x), node.attrs["num_groups"]
    made = nn.GroupNorm(groups, shape[1], node.attrs.get("epsilon", 1e-5))
    for name, value in (("weight", scale), ("bias", bias)):
        known = b.known(node, value, name)
        if known.numel() == groups != shape[1]:
            repeat = shape[1] // groups
            known = b.derived(known, f"each {repeat}", lambda v, n=repeat: v.repeat_interleave(n))  # type: ignore[misc]
        setattr(made, name, b.parameter(known))
    return b.layer(node, made, x, weight=b.known(node, scale, "scale"))


def lrn(b: Builder, node: Node, x: Value) -> Any:
    """Local response norm over neighbouring channels."""
    attrs = node.attrs
    size = attrs["size"]
    if size % 2 == 0:
        raise node.error(f"is over {size} channels", "an odd number is known")
    made = nn.LocalResponseNorm(
        size, attrs.get("alpha", 1e-4), attrs.get("beta", 0.75), attrs.get("bias", 1.0)
    )
    return b.module(node, made, x)


def lp_normalize(b: Builder, node: Node, x: Value) -> Any:
    """Divided by the norm along an axis."""
    return b.call(node, F.normalize, x, float(node.attrs.get("p", 2)), node.attrs.get("axis", -1))
