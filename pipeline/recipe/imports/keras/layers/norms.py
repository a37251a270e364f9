"""Norms of Keras, and layers that rescale their input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value

NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
NORMALIZE_EPSILON = 1e-7


def batch_norm(m: Maker, layer: Layer, x: Value) -> Value:
    """Batch norm with its running statistics; one scale for each channel."""
    config = layer.config
    roles = tuple(role for role, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True))
    read = m.read(layer, (*roles, "moving_mean", "moving_variance"))
    axis = _one_axis(layer, config.get("axis", -1))
    if x.rank not in NORMS:
        raise layer.error(f"its input has {x.rank} axes")
    place = m.axis(layer, x, axis)
    if x.rank > 2 and place != 1:
        channel = axis % x.rank
        x = m.ordered(layer, x, (0, channel, *(a for a in range(1, x.rank) if a != channel)))
    count = int(x.live.fake.shape[1])
    made = NORMS[x.rank](count, float(config.get("epsilon", 1e-3)), 1 - float(config.get("momentum", 0.99)))
    named = {"gamma": "weight", "beta": "bias"}
    for role in roles:
        setattr(made, named[role], m.parameter(layer, role, _placed(x, read[role]), (count,)))
    for role, name in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
        if tuple(read[role].shape) != (count,):
            raise layer.error(f"its {role} is {tuple(read[role].shape)}, not {(count,)}")
        setattr(made, name, _placed(x, read[role]).clone())
    if (made.running_var < 0).any():
        raise layer.error("its moving_variance holds negative values")
    return m.module(layer, made, x)


def layer_norm(m: Maker, layer: Layer, x: Value) -> Value:
    """Layer norm over the last axis."""
    config = layer.config
    if _one_axis(layer, config.get("axis", -1)) % x.rank != x.rank - 1:
        raise layer.error(f"is over the axis {config['axis']}", "known is the last")
    if config.get("rms_scaling"):
        raise layer.error("is scaled by its root mean square", "known is the plain one")
    roles = tuple(role for role, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True))
    read = m.read(layer, roles)
    x = m.ordered(layer, m.plain(layer, x), tuple(range(x.rank)))
    size = (x.shape[-1],)
    made = nn.LayerNorm(size, float(config.get("epsilon", 1e-3)), bool(roles), "beta" in roles)
    if roles:
        gamma = read.get("gamma", torch.ones(size))
        made.weight = m.parameter(layer, "gamma", gamma, size)
        if "beta" in roles:
            made.bias = m.parameter(layer, "beta", read["beta"], size)
    return m.module(layer, made, x)


def group_norm(m: Maker, layer: Layer, x: Value) -> Value:
    """Group norm of maps; -1 groups are as many as channels."""
    config = layer.config
    if _one_axis(layer, config.get("axis", -1)) % x.rank != x.rank - 1 or x.rank < 3:
        raise layer.error("is not over the channels of a map")
    x = m.first(layer, x)
    count, groups = int(x.live.fake.shape[1]), int(config.get("groups", 32))
    roles = tuple(role for role, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True))
    read = m.read(layer, roles)
    made = nn.GroupNorm(count if groups == -1 else groups, count, float(config.get("epsilon", 1e-3)))
    for role, name in (("gamma", "weight"), ("beta", "bias")):
        if role in roles:
            setattr(made, name, m.parameter(layer, role, read[role], (count,)))
    return m.module(layer, made, x)


def rescaling(m: Maker, layer: Layer, x: Value) -> Value:
    """Times a number, plus a number; or one of each for every channel."""
    scale, offset = (_per_channel(m, layer, x, layer.config.get(key, default))
                     for key, default in (("scale", 1.0), ("offset", 0.0)))  # fmt: skip
    m.builder.note(
        f"the network scales its input itself (layer {layer.node.name}): do not do it again in [preprocess]"
    )
    if not _is(scale, 1):
        x = m.call(layer, torch.mul, x, x, scale)
    return x if _is(offset, 0) else m.call(layer.named("offset"), torch.add, x, x, offset)


def normalization(m: Maker, layer: Layer, x: Value) -> Value:
    """Less the mean, by the standard deviation; from the data that it was adapted to, or as it was given."""
    config = layer.config
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None or variance is None:
        read = m.read(layer, ("mean", "variance", "count"), count="mean")  # not all files name the count
        mean, variance = read["mean"], read["variance"]
    axes = config.get("axis", -1)
    axes = [] if axes is None else [axes] if isinstance(axes, int) else list(axes)
    if axes and [axis % x.rank for axis in axes] != [x.rank - 1]:
        raise layer.error(f"is along the axes {axes}", "known is the last, or none")
    center = np.asarray(mean, np.float64).reshape(-1)
    deviation = np.maximum(np.sqrt(np.asarray(variance, np.float64).reshape(-1)), NORMALIZE_EPSILON)
    m.builder.note(
        f"the network scales its input itself (layer {layer.node.name}): do not do it again in [preprocess]"
    )
    if config.get("invert"):
        x = m.call(layer, torch.mul, x, x, _per_channel(m, layer, x, deviation))
        return m.call(layer.named("mean"), torch.add, x, x, _per_channel(m, layer, x, center))
    x = m.call(layer.named("mean"), torch.sub, x, x, _per_channel(m, layer, x, center))
    return m.call(layer, torch.mul, x, x, _per_channel(m, layer, x, 1 / deviation))


def layer_scale(m: Maker, layer: Layer, x: Value) -> Value:
    """A trained factor for each channel."""
    gamma = m.read(layer, ("gamma",))["gamma"]
    if tuple(gamma.shape) != x.shape[-1:]:
        raise layer.error(f"its gamma is {tuple(gamma.shape)}, and its input {x.shape}")
    shape = [1] * x.rank
    shape[x.order.index(x.rank - 1)] = len(gamma)
    return m.call(layer, torch.mul, x, x, m.parameter(layer, "gamma", _placed(x, gamma).reshape(shape)))


def activity(m: Maker, layer: Layer, x: Value) -> Value:
    """A layer that does nothing once it is trained."""
    return x


def _one_axis(layer: Layer, axis: Any) -> int:
    found = axis if isinstance(axis, list) else [axis]
    if len(found) != 1 or not isinstance(found[0], int):
        raise layer.error(f"is over the axes {axis}", "known is one axis")
    return int(found[0])


def _placed(x: Value, values: Tensor) -> Tensor:
    """One number for each channel, in the order that a flattened map has."""
    return values if x.flat is None or len(values) != len(x.flat) else values[x.flat]


def _per_channel(m: Maker, layer: Layer, x: Value, given: Any) -> float | Tensor:
    """A number, or one for each channel, spread over a value as it is in torch."""
    values = np.asarray(given, np.float64).reshape(-1)
    if values.size == 1:
        return float(values[0])
    if values.size != x.shape[-1]:
        raise layer.error(f"has {values.size} numbers for {x.shape[-1]} channels")
    found = _placed(x, torch.from_numpy(values.astype(np.float32)))
    shape = [1] * x.rank
    shape[x.order.index(x.rank - 1)] = values.size
    return found.reshape(shape)


def _is(value: float | Tensor, number: float) -> bool:
    return isinstance(value, float) and value == number
