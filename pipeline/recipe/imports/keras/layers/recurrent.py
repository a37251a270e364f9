"""Recurrent layers of Keras as torch's: steps before features, gates in torch's order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value

#: Kind -> torch's module, torch's gates among Keras's, activation, activation of the gates.
KINDS: Mapping[str, tuple[Any, tuple[int, ...], str, str | None]] = {
    "LSTM": (nn.LSTM, (0, 1, 2, 3), "tanh", "sigmoid"),
    "GRU": (nn.GRU, (1, 0, 2), "tanh", "sigmoid"),
    "SimpleRNN": (nn.RNN, (0,), "tanh", None),
}
STEPS = (0, 1, 2)


class Steps(nn.Module):
    """A recurrent layer that starts from zeros and returns what each step says, or the last.

    Args:
        layer: of torch, batch first.
        every: whether every step is returned.
        backwards: whether the steps come last to first.
    """

    def __init__(self, layer: nn.RNNBase, every: bool, backwards: bool = False) -> None:
        super().__init__()
        self.layer, self.every, self.backwards = layer, every, backwards

    def forward(self, x: Tensor) -> Tensor:
        """(N, steps, features) to (N, steps, units), or (N, units) of the last step."""
        found = self.layer(x.flip(1) if self.backwards else x)[0]
        if self.every:
            return found
        if not self.layer.bidirectional:
            return found[:, -1]
        units = self.layer.hidden_size
        return torch.cat((found[:, -1, :units], found[:, 0, units:]), 1)  # each direction's own last step


def recurrent(m: Maker, layer: Layer, x: Value) -> Value:
    """LSTM, GRU and SimpleRNN."""
    config = layer.config
    made, units = _made(m, layer, x, layer.node.kind, config, ("cell",))
    every = bool(config.get("return_sequences", False))
    return _run(m, layer, x, Steps(made, every, bool(config.get("go_backwards", False))), every)


def bidirectional(m: Maker, layer: Layer, x: Value) -> Value:
    """Both directions of one of them, side by side."""
    inner, back = layer.config.get("layer"), layer.config.get("backward_layer")
    if not isinstance(inner, Mapping) or inner.get("class_name") not in KINDS:
        name = inner.get("class_name") if isinstance(inner, Mapping) else inner
        raise layer.error(f"wraps {name}", f"known are {', '.join(KINDS)}")
    if layer.config.get("merge_mode", "concat") != "concat":
        raise layer.error(f"merges by {layer.config.get('merge_mode')}", "known is concat")
    kind, config = str(inner["class_name"]), inner["config"]
    if isinstance(back, Mapping):
        pair = back.get("class_name") == kind, back.get("config", {}).get("units") == config.get("units")
        if not all(pair):
            raise layer.error("has directions that differ", "known are two of one kind and size")
    made, _ = _made(m, layer, x, kind, config, ("forward_layer/cell", "backward_layer/cell"))
    every = bool(config.get("return_sequences", False))
    return _run(m, layer, x, Steps(made, every), every)


def _run(m: Maker, layer: Layer, x: Value, steps: Steps, every: bool) -> Value:
    x = m.ordered(layer, x, STEPS)
    return m.module(layer, steps, x, STEPS if every else (0, 1))


def _made(
    m: Maker, layer: Layer, x: Value, kind: str, config: Mapping[str, Any], cells: tuple[str, ...]
) -> tuple[nn.RNNBase, int]:
    """Torch's layer with the weights of one direction or two."""
    if x.rank != 3:
        raise layer.error(f"its input is {x.shape}, not (1, steps, features)")
    make, order, act, gate = KINDS[kind]
    for key in ("stateful", "return_state"):
        if config.get(key):
            raise layer.error(f"has {key}", "a program on a device starts from zeros every time")
    asked = config.get("activation", act), config.get("recurrent_activation", gate)
    if asked != (act, gate) and not (kind == "SimpleRNN" and asked[0] in ("tanh", "relu")):
        raise layer.error(f"its activations are {asked[0]} and {asked[1]}", f"known are {act} and {gate}")
    if kind == "GRU" and not config.get("reset_after", layer.major == 3):
        raise layer.error(
            "resets before its product (reset_after is false)", "train it with reset_after=True"
        )
    units, features, bias = int(config["units"]), x.shape[2], bool(config.get("use_bias", True))
    extra = {"nonlinearity": asked[0]} if kind == "SimpleRNN" else {}
    made: nn.RNNBase = make(
        features, units, bias=bias, batch_first=True, bidirectional=len(cells) == 2, **extra
    )
    roles = ("kernel", "recurrent_kernel", *(("bias",) if bias else ()))
    for number, cell in enumerate(cells):
        end = "_l0_reverse" if number else "_l0"
        read = m.read(layer, roles, cell)
        sizes = len(order) * units
        for role, name in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
            value = _gates(read[role].t(), order, units, layer)
            rows = features if role == "kernel" else units
            setattr(made, name + end, m.parameter(layer, f"{cell} {role}", value, (sizes, rows)))
        if bias:
            given = read["bias"]
            both = given if given.dim() == 2 else torch.stack((given, torch.zeros_like(given)))
            for name, value in zip(("bias_ih", "bias_hh"), both, strict=True):
                gates = _gates(value, order, units, layer)
                setattr(made, name + end, m.parameter(layer, f"{cell} {name}", gates, (sizes,)))
    return made, units


def _gates(value: Tensor, order: tuple[int, ...], units: int, layer: Layer) -> Tensor:
    """The rows of each gate in torch's order."""
    if len(value) != len(order) * units:
        raise layer.error(f"has weights for {len(value)} rows, not {len(order) * units}")
    return torch.cat([value[gate * units : (gate + 1) * units] for gate in order])
