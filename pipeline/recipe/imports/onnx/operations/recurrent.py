"""LSTM, GRU and RNN of ONNX as torch's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Node, Value
from paredown.pipeline.recipe.imports.onnx.operations.moves import permuted, shaped

#: Kind -> torch's module, activations that it has, and where torch's gates stand among ONNX's.
LAYERS = {
    "LSTM": (nn.LSTM, ("Sigmoid", "Tanh", "Tanh"), (0, 2, 3, 1)),
    "GRU": (nn.GRU, ("Sigmoid", "Tanh"), (1, 0, 2)),
    "RNN": (nn.RNN, ("Tanh",), (0,)),
}


class Recurrent(nn.Module):
    """A recurrent layer that starts from zeros.

    Args:
        layer: of torch.
        reverse: whether the steps come last to first.
    """

    def __init__(self, layer: nn.RNNBase, reverse: bool) -> None:
        super().__init__()
        self.layer, self.reverse = layer, reverse
        self.steps = 1 if layer.batch_first else 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs as torch has them, then the last states (directions, N, hidden)."""
        found, state = self.layer(x.flip(self.steps) if self.reverse else x)
        found = found.flip(self.steps) if self.reverse else found
        return (found, *(state if isinstance(state, tuple) else (state,)))


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
    asked = list(attrs.get("activations", []))
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
    reverse = attrs.get("direction") == "reverse"
    plain, *last = b.module(node, Recurrent(layer, reverse) if reverse else layer, x)
    split = shaped(b, node, plain, [*b.shape(plain)[:2], directions, hidden])
    if first:  # (N, steps, directions, hidden), and states (N, directions, hidden)
        return (split, *(permuted(b, node, each, (1, 0, 2)) for each in last))[: len(node.outputs)]
    return (permuted(b, node, split, (0, 2, 1, 3)), *last)[: len(node.outputs)]


def _ordered(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """The rows of the gates in torch's order."""
    parts = rows.chunk(len(order))
    return torch.cat([parts[i] for i in order]).contiguous()
