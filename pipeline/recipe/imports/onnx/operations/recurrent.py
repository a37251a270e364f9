"""LSTM, GRU and RNN of ONNX as torch's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Node, Value

#: Kind -> torch's module, activations that it has, and where torch's gates stand among ONNX's.
LAYERS = {
    "LSTM": (nn.LSTM, ("Sigmoid", "Tanh", "Tanh"), (0, 2, 3, 1)),
    "GRU": (nn.GRU, ("Sigmoid", "Tanh"), (1, 0, 2)),
    "RNN": (nn.RNN, ("Tanh",), (0,)),
}


class Recurrent(nn.Module):
    """A recurrent layer with ONNX's shapes.

    Args:
        layer: of torch, which starts from zeros.
        hidden: numbers of its state.
        directions: 1, or 2 for both.
        reverse: whether the steps come last to first.
        batch_first: whether the input is (N, steps, features), else (steps, N, features).
    """

    def __init__(
        self, layer: nn.RNNBase, hidden: int, directions: int, reverse: bool, batch_first: bool
    ) -> None:
        super().__init__()
        self.layer, self.hidden, self.directions = layer, hidden, directions
        self.reverse, self.batch_first = reverse, batch_first

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs (steps, directions, N, hidden), then the last states (directions, N, hidden)."""
        steps = 1 if self.batch_first else 0
        x = x.flip(steps) if self.reverse else x
        found, state = self.layer(x)
        found = found.flip(steps) if self.reverse else found
        one, other = found.shape[:2]
        if self.directions == 1:
            found = found.unsqueeze(2 if self.batch_first else 1)
        else:
            found = found.reshape(one, other, self.directions, self.hidden)
            found = found if self.batch_first else found.transpose(1, 2)
        states = state if isinstance(state, tuple) else (state,)
        return (found, *(each.transpose(0, 1) if self.batch_first else each for each in states))


def recurrent(
    b: Builder,
    node: Node,
    x: Value,
    weight: Value,
    recurrence: Value,
    bias: Value = None,
    lengths: Value = None,
    *states: Value,
) -> Any:
    """A recurrent layer that starts from zeros, in one or both directions."""
    made, activations, order = LAYERS[node.kind]
    attrs = node.attrs
    w, r = b.known(node, weight, "weight"), b.known(node, recurrence, "recurrence weight")
    directions, hidden, gates = len(w), attrs.get("hidden_size", r.shape[-1]), len(order)
    asked = [name.decode() if isinstance(name, bytes) else name for name in attrs.get("activations", [])]
    if asked and [name.lower() for name in asked] != [name.lower() for name in activations * directions]:
        raise node.error(f"has the activations {', '.join(asked)}", f"known are {', '.join(activations)}")
    if attrs.get("clip") or attrs.get("input_forget"):
        raise node.error("clips its cells, or couples its gates")
    if node.kind == "GRU" and not attrs.get("linear_before_reset"):
        raise node.error("resets before its matrix (linear_before_reset = 0)",
                         "torch's and Keras's default have it behind: reset_after=True")  # fmt: skip
    for state in states:
        if state is not None and bool(b.known(node, state, "first state").any()):
            raise node.error("starts from a state that is not zero")
    first = bool(attrs.get("layout"))
    shape = b.shape(x)
    steps = shape[1] if first else shape[0]
    if lengths is not None and bool((b.known(node, lengths, "lengths") != steps).any()):
        raise node.error("has sequences of unequal lengths")
    if tuple(w.shape) != (directions, gates * hidden, shape[-1]):
        raise node.error(f"reads {shape} with a weight of {tuple(w.shape)}")
    layer = made(shape[-1], hidden, batch_first=first, bidirectional=directions == 2, bias=bias is not None)
    for index in range(directions):
        end = "_reverse" if index else ""
        for name, matrix in (("weight_ih", w), ("weight_hh", r)):
            setattr(layer, f"{name}_l0{end}", nn.Parameter(_ordered(matrix[index], order)))
        if bias is not None:
            both = b.known(node, bias, "bias")[index].reshape(2, -1)
            for name, row in (("bias_ih", both[0]), ("bias_hh", both[1])):
                setattr(layer, f"{name}_l0{end}", nn.Parameter(_ordered(row, order)))
    reverse = attrs.get("direction") in ("reverse", b"reverse")
    module = Recurrent(layer, hidden, directions, reverse, first)
    found = b.module(node, module, x)
    return found[: len(node.outputs)]


def _ordered(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """The rows of the gates in torch's order."""
    parts = rows.chunk(len(order))
    return torch.cat([parts[i] for i in order]).contiguous()
