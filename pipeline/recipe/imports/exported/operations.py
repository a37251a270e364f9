"""Operations of ATen as torch's layers; every other one stays a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
#: A call's arguments by the names of the operation's schema, defaults included.
Given = Mapping[str, Any]


def _sizes(value: Any, axes: int) -> Any:
    found = [value] * axes if isinstance(value, int) else list(value)
    return tuple(found * axes if len(found) == 1 else found)


def convolution(b: Builder, node: Node, given: Given) -> Any:
    """conv1d, conv2d, conv_transpose1d, conv_transpose2d, convolution."""
    weight, bias = given["weight"], given.get("bias")
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return NotImplemented
    x, axes, groups = given["input"], weight.dim() - 2, given["groups"]
    if len(b.shape(x)) != axes + 2 or axes not in CONVS:
        return NotImplemented
    stride, padding, dilation = (given[key] if isinstance(given[key], str) else _sizes(given[key], axes)
                                 for key in ("stride", "padding", "dilation"))  # fmt: skip
    if given.get("transposed") or "transpose" in node.kind:
        extra = _sizes(given["output_padding"], axes)
        made = TRANSPOSED[axes](
            weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride, padding, extra,
            groups, bias is not None, dilation,
        )  # fmt: skip
    else:
        made = CONVS[axes](
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation,
            groups, bias is not None,
        )  # fmt: skip
    made.weight = b.parameter(weight)
    if bias is not None:
        made.bias = b.parameter(bias)
    return b.layer(node, made, x, weight=weight)


def linear(b: Builder, node: Node, given: Given) -> Any:
    """The operation of that name."""
    weight, bias = given["weight"], given.get("bias")
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not (bias is None or isinstance(bias, Tensor)):
        return NotImplemented
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight = b.parameter(weight)
    if bias is not None:
        made.bias = b.parameter(bias)
    return b.layer(node, made, given["input"], weight=weight)


def product(b: Builder, node: Node, given: Given) -> Any:
    """addmm, mm and matmul with a constant matrix on the right."""
    x, matrix = given.get("mat1", given.get("self")), given.get("mat2", given.get("other"))
    bias = given.get("self") if node.kind == "addmm" else None
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1
    if not isinstance(x, Live) or not isinstance(matrix, Tensor) or matrix.dim() != 2 or not plain:
        return NotImplemented
    if node.kind == "addmm" and not (isinstance(bias, Tensor) and bias.numel() == matrix.shape[1]):
        return NotImplemented
    return linear(
        b, node, {"input": x, "weight": matrix.t(), "bias": None if bias is None else bias.reshape(-1)}
    )


def batch_norm(b: Builder, node: Node, given: Given) -> Any:
    """Batch norm with its running statistics, whatever mode it was exported in."""
    x, mean, variance = given["input"], given.get("running_mean"), given.get("running_var")
    rank = len(b.shape(x))
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or rank not in NORMS:
        return NotImplemented
    scale, bias = given.get("weight"), given.get("bias")
    if any(not (each is None or isinstance(each, Tensor)) for each in (scale, bias)):
        return NotImplemented
    if given.get("training"):
        b.note("it was exported in training mode: batch norm and dropout are as in evaluation here")
    made = NORMS[rank](mean.numel(), given.get("eps", 1e-5), given.get("momentum", 0.1))
    made.weight = b.parameter(torch.ones_like(mean) if scale is None else scale)
    made.bias = b.parameter(torch.zeros_like(mean) if bias is None else bias)
    made.running_mean, made.running_var = mean.detach().clone(), variance.detach().clone()
    found = b.layer(node, made, x, weight=mean if scale is None else scale)
    return found if node.kind == "batch_norm" else (found, None, None, mean, variance)


def layer_norm(b: Builder, node: Node, given: Given) -> Any:
    """layer_norm and native_layer_norm."""
    scale, bias = given.get("weight"), given.get("bias")
    if not isinstance(scale, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return NotImplemented
    made = nn.LayerNorm(tuple(given["normalized_shape"]), given["eps"], True, bias is not None)
    made.weight = b.parameter(scale)
    if bias is not None:
        made.bias = b.parameter(bias)
    found = b.layer(node, made, given["input"], weight=scale)
    return found if node.kind == "layer_norm" else (found, None, None)


def group_norm(b: Builder, node: Node, given: Given) -> Any:
    """group_norm."""
    scale, bias = given.get("weight"), given.get("bias")
    if not isinstance(scale, Tensor) or not isinstance(bias, Tensor):
        return NotImplemented
    made = nn.GroupNorm(given["num_groups"], scale.numel(), given["eps"])
    made.weight, made.bias = b.parameter(scale), b.parameter(bias)
    return b.layer(node, made, given["input"], weight=scale)


def prelu(b: Builder, node: Node, given: Given) -> Any:
    """The operation of that name."""
    weight = given["weight"]
    if not isinstance(weight, Tensor):
        return NotImplemented
    made = nn.PReLU(weight.numel())
    made.weight = b.parameter(weight)
    return b.layer(node, made, given["self"], weight=weight)


def flattened(b: Builder, node: Node, given: Given) -> Any:
    """Reshapes: where all axes behind the batch become one, whatever the channels are."""
    x, sizes = given["self"], list(given.get("size", given.get("shape")))
    shape = b.shape(x)
    if len(sizes) == 2 and len(shape) > 2 and sizes[0] in (1, -1) and shape[0] == 1 and sizes[1] != 1:
        return b.module(node, nn.Flatten(1), x)
    return NotImplemented


def recurrent(b: Builder, node: Node, given: Given) -> Any:
    """LSTM and GRU from a state of zeros."""
    states = given["hx"] if isinstance(given["hx"], list) else [given["hx"]]
    if any(not isinstance(state, Tensor) or bool(state.any()) for state in states):
        return NotImplemented
    weights = given["params"]
    if any(not isinstance(weight, Tensor) for weight in weights) or "data" in given:
        return NotImplemented
    make: Any = nn.LSTM if node.kind == "lstm" else nn.GRU
    features, hidden = weights[0].shape[1], weights[1].shape[1]
    made = make(features, hidden, given["num_layers"], given["has_biases"], given["batch_first"], 0.0,
                given["bidirectional"])  # fmt: skip
    names = [name for name, _ in made.named_parameters()]
    if len(names) != len(weights):
        return NotImplemented  # as with projections
    for name, weight in zip(names, weights, strict=True):
        setattr(made, name, b.parameter(weight))
    made.flatten_parameters = lambda: None  # a parameter may be shared
    found = b.module(node, Outputs(made), given["input"])
    return (found, None, None)


class Outputs(nn.Module):
    """The outputs of a recurrent layer, without its states.

    Args:
        layer: of torch.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What every step says."""
        found: Tensor = self.layer(x)[0]
        return found


def plain(b: Builder, node: Node, given: Given) -> Any:
    """A layer without weights."""
    x = given.get("self", given.get("input"))
    return b.module(node, PLAIN[node.kind](given), x) if isinstance(x, Live) else NotImplemented


def _max_pool(given: Given) -> nn.Module:
    axes = len(given["kernel_size"])
    made: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
    stride = given["stride"] or given["kernel_size"]
    window = (given["kernel_size"], stride, given["padding"], given["dilation"])
    pool: nn.Module = made[axes](*(_sizes(each, axes) for each in window), False, given["ceil_mode"])
    return pool


def _average_pool(given: Given) -> nn.Module:
    axes = len(given["kernel_size"])
    made: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
    window = (given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"])
    more = {"divisor_override": given["divisor_override"]} if given.get("divisor_override") else {}
    pool: nn.Module = made[axes](*(_sizes(each, axes) for each in window), given["ceil_mode"],
                                 given["count_include_pad"], **more)  # fmt: skip
    return pool


def _softmax(given: Given) -> nn.Module:
    return nn.Softmax(given["dim"])


LAYERS: Mapping[str, Callable[..., Any]] = {
    **{name: convolution for name in ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d",
                                      "conv_transpose2d", "conv_transpose3d")},
    **{name: batch_norm for name in ("batch_norm", "_native_batch_norm_legit_no_training",
                                     "_native_batch_norm_legit", "native_batch_norm",
                                     "_native_batch_norm_legit_functional")},
    **{name: product for name in ("addmm", "mm", "matmul")},
    **{name: flattened for name in ("view", "reshape", "_unsafe_view")},
    "linear": linear, "layer_norm": layer_norm, "native_layer_norm": layer_norm, "group_norm": group_norm,
    "prelu": prelu, "_prelu_kernel": prelu, "lstm": recurrent, "gru": recurrent,
}  # fmt: skip
#: Operation -> the layer without weights that it is.
PLAIN: Mapping[str, Callable[[Given], nn.Module]] = {
    "relu": lambda given: nn.ReLU(), "relu6": lambda given: nn.ReLU6(),
    "hardtanh": lambda given: nn.ReLU6() if (given["min_val"], given["max_val"]) == (0, 6)
                       else nn.Hardtanh(given["min_val"], given["max_val"]),
    "leaky_relu": lambda given: nn.LeakyReLU(given["negative_slope"]),
    "silu": lambda given: nn.SiLU(), "gelu": lambda given: nn.GELU(given["approximate"]),
    "sigmoid": lambda given: nn.Sigmoid(), "tanh": lambda given: nn.Tanh(),
    "hardswish": lambda given: nn.Hardswish(), "hardsigmoid": lambda given: nn.Hardsigmoid(),
    "mish": lambda given: nn.Mish(), "softmax": _softmax, "_softmax": _softmax,
    "max_pool1d": _max_pool, "max_pool2d": _max_pool, "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": lambda given: nn.AdaptiveAvgPool2d(tuple(given["output_size"])),
    "_adaptive_avg_pool2d": lambda given: nn.AdaptiveAvgPool2d(tuple(given["output_size"])),
    "flatten": lambda given: nn.Flatten(given["start_dim"], given["end_dim"]),
}  # fmt: skip
#: What gives its input back, in evaluation mode and in float32.
IDENTITIES = frozenset({
    "dropout", "dropout_", "feature_dropout", "alpha_dropout", "native_dropout", "alias", "detach", "detach_",
    "clone", "contiguous", "lift_fresh_copy", "lift_fresh", "_to_copy", "to",
})  # fmt: skip
