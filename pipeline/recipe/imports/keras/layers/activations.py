"""Activations of Keras, by name and as layers; where Keras 2 and 3 differ, the file's version decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value


def hard_sigmoid_2(x: Tensor) -> Tensor:
    """Keras 2's: a fifth of the value, and a half."""
    return torch.clamp(x * 0.2 + 0.5, 0.0, 1.0)


#: Name -> torch's module, of what needs no arguments.
PLAIN: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU,
    "swish": nn.SiLU,
    "selu": nn.SELU, "softplus": nn.Softplus, "softsign": nn.Softsign, "mish": nn.Mish, "elu": nn.ELU,
    "hard_swish": nn.Hardswish, "hard_silu": nn.Hardswish, "log_sigmoid": nn.LogSigmoid, "celu": nn.CELU,
    "tanh_shrink": nn.Tanhshrink, "leaky_relu": lambda: nn.LeakyReLU(0.2),
}  # fmt: skip
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"exponential": torch.exp, "square": torch.square}


def activation(m: Maker, layer: Layer, x: Value) -> Value:
    """The layer Activation."""
    return activated(m, layer, x)


def activated(m: Maker, layer: Layer, x: Value, key: str = "activation") -> Value:
    """What a layer's configuration names as its activation."""
    kind, config = _named(layer, layer.config.get(key))
    if kind in ("", "linear"):
        return x
    inner = layer if layer.node.kind == "Activation" else layer.named(kind)
    if kind in ("softmax", "log_softmax"):
        axis = m.axis(layer, x, int(config.get("axis", -1)))
        made = nn.Softmax if kind == "softmax" else nn.LogSoftmax
        return m.module(inner, made(axis if axis < x.rank - 1 else -1), x)
    if kind == "gelu":
        return m.module(inner, nn.GELU("tanh" if config.get("approximate") else "none"), x)
    if kind == "hard_sigmoid":
        return (
            m.module(inner, nn.Hardsigmoid(), x) if layer.major == 3 else m.call(inner, hard_sigmoid_2, x, x)
        )
    if kind in FUNCTIONS:
        return m.call(inner, FUNCTIONS[kind], x, x)
    if kind not in PLAIN or config:
        if kind == "relu":
            return _relu(m, inner, x, config)
        raise layer.error(f"its activation {kind} is not known", f"known are {', '.join(sorted(PLAIN))}")
    return m.module(inner, PLAIN[kind](), x)


def _named(layer: Layer, found: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of an activation: a name, or an object of Keras's."""
    if found is None:
        return "", {}
    if isinstance(found, str):
        return found, {}
    if isinstance(found, Mapping):
        name, config = found.get("class_name"), found.get("config")
        if name == "function" and isinstance(config, str):
            if found.get("registered_name") not in (None, config, "function"):
                raise layer.error(f"its activation {found['registered_name']} is the user's own code")
            return config, {}
        if isinstance(name, str) and isinstance(config, Mapping):
            return AS_LAYERS.get(name, name), {k: v for k, v in config.items() if k in ARGUMENTS}
    raise layer.error("its activation has no name")


#: Activations that are written as layers.
AS_LAYERS = {"ReLU": "relu", "Softmax": "softmax"}
ARGUMENTS = ("max_value", "negative_slope", "threshold", "axis", "approximate")


def relu(m: Maker, layer: Layer, x: Value) -> Value:
    """ReLU with a largest value or a slope below zero."""
    return _relu(m, layer, x, layer.config)


def _relu(m: Maker, layer: Layer, x: Value, config: Mapping[str, Any]) -> Value:
    most, slope, threshold = (
        config.get("max_value"),
        config.get("negative_slope") or 0,
        config.get("threshold") or 0,
    )
    if threshold:
        raise layer.error(f"its threshold is {threshold}", "known is 0")
    slope = _number(layer, slope)
    if most is None:
        return m.module(layer, nn.LeakyReLU(slope) if slope else nn.ReLU(), x)
    most = float(most)
    if slope:
        return m.call(layer.named("most"), torch.clamp, x, m.module(layer, nn.LeakyReLU(slope), x), max=most)
    return m.module(layer, nn.ReLU6() if most == 6 else nn.Hardtanh(0.0, most), x)


def leaky_relu(m: Maker, layer: Layer, x: Value) -> Value:
    """LeakyReLU, whose slope Keras 2 calls alpha."""
    return m.module(
        layer,
        nn.LeakyReLU(_number(layer, layer.config.get("negative_slope", layer.config.get("alpha", 0.3)))),
        x,
    )


def elu(m: Maker, layer: Layer, x: Value) -> Value:
    """ELU."""
    return m.module(layer, nn.ELU(_number(layer, layer.config.get("alpha", 1.0))), x)


def softmax(m: Maker, layer: Layer, x: Value) -> Value:
    """Softmax along one axis."""
    axis = layer.config.get("axis", -1)
    if isinstance(axis, list):
        if len(axis) != 1:
            raise layer.error(f"is along the axes {axis}", "known is one axis")
        axis = axis[0]
    place = m.axis(layer, x, int(axis))
    return m.module(layer, nn.Softmax(place if place < x.rank - 1 else -1), x)


def prelu(m: Maker, layer: Layer, x: Value) -> Value:
    """PReLU: a slope for each channel, or for each number."""
    x = m.plain(layer, x)
    alpha = m.read(layer, ("alpha",))["alpha"]
    full = (1, *alpha.shape)
    if len(full) != x.rank:
        raise layer.error(f"its alpha is {tuple(alpha.shape)}, and its input {x.shape}")
    slopes = alpha.reshape(full).permute(x.order)
    if x.order[1] == x.rank - 1 and slopes.numel() == slopes.shape[1]:
        made = nn.PReLU(slopes.numel())
        made.weight = m.parameter(layer, "alpha", slopes.reshape(-1))
        return m.module(layer, made, x)
    return m.call(layer, parametric, x, x, m.parameter(layer, "alpha", slopes))


def parametric(x: Tensor, slopes: Tensor) -> Tensor:
    """A slope below zero for each number."""
    return torch.relu(x) - slopes * torch.relu(-x)


def _number(layer: Layer, value: Any) -> float:
    """A number; Keras writes some of them as arrays."""
    if isinstance(value, Mapping):
        value = value.get("config", {}).get("value", value.get("value"))
    return float(value)
