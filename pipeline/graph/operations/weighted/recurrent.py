"""Recurrent layers: GRU, LSTM, plain RNN and their cells, unrolled into linear layers and single values.

A projection of the input serves all steps at once: a convolution of one pixel over the sequence. Each step
then has a linear layer of the state before it and what its gates compute. All steps have the same weights,
which graphs and programs hold once (`ALIKE`): so what they read has one scale in all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from paredown.pipeline.graph.alike import ALIKE, BESIDE
from paredown.pipeline.graph.aten import module_path, shape_of, target
from paredown.pipeline.graph.operations.moving.slice import attrs_of
from paredown.pipeline.graph.operations.operation import Shape, Traced
from paredown.pipeline.graph.operations.weighted.conv2d import as_map
from paredown.pipeline.graph.operations.weighted.layer import parameters

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer

#: Steps of all layers and directions of one module: each is some 15 operators of a program.
MOST_STEPS = 512
_GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}


class Recurrent(Traced):
    """No kind of its own. Names of nodes are the module's, and a word."""

    aten = (*_GATES, *(f"{name}_cell" for name in _GATES))
    folds = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node).endswith("_cell"):
            _cell(tracer, node)
        else:
            _sequence(tracer, node)


class _Layer:
    """One layer in one direction: makes the nodes of a step.

    Args:
        tracer: makes nodes.
        node: of the exported program.
        word: the name of the layer in its module: empty, `l0`, `l1_reverse`.
        weights: arguments: of the input, of the state, and their biases.
    """

    def __init__(self, tracer: Tracer, node: Any, word: str, weights: Sequence[Any]) -> None:
        self.tracer, self.node = tracer, node
        self.kind = target(node).removesuffix("_cell")
        self.gates = _GATES[self.kind]
        self.states = ("output", "cell") if self.kind == "lstm" else ("output",)
        path = module_path(node) or node.name
        self.name = f"{path}.{word}" if word else path
        of_input, of_state, *biases = weights
        bias_i, bias_h = biases or (None, None)
        self.input = parameters(tracer, node, of_input, bias_i)
        self.state = parameters(tracer, node, of_state, bias_h)
        self.size = int(self.state["weight"].shape[1])
        self.path, self.place = path, self.name

    def add(
        self, word: str, kind: str, inputs: tuple[str, ...], count: int = 1, shape: Shape = (), **fields: Any
    ) -> str:
        """A node of a step, of so many gates or of another shape."""
        attrs = {ALIKE: f"{self.name}.{word}", **fields.pop("attrs", {})}
        shape = shape or (1, count * self.size)
        return self.tracer.add(
            self.node, kind, inputs, shape=shape, name=f"{self.place}.{word}", attrs=attrs, **fields
        )

    def part(self, word: str, feed: str, first: int, of: int, count: int = 1) -> str:
        """A slice of gates: `count` of them from the first on, of what has so many."""
        taken = {1: range(first * self.size, (first + count) * self.size)}
        attrs = {**attrs_of(taken), "parts": of, **({"run": count} if count > 1 else {})}
        return self.add(word, "slice", (feed,), count, attrs=attrs)

    def projected(self, feed: str) -> str:
        """The projection of a sequence, as a map (1, gates, 1, steps)."""
        steps = self.tracer.nodes[feed].shape[3]
        fields = {**self.input, "weight": as_map(self.input["weight"])}
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        return self.tracer.add(
            self.node, "conv2d", (feed,), shape=(1, self.gates * self.size, 1, steps),
            name=f"{self.name}.input", attrs=attrs, **fields,
        )  # fmt: skip

    def projected_once(self, feed: str) -> str:
        """The projection of one step's input, (1, gates)."""
        return self.add("input", "linear", (feed,), self.gates, **self.input)

    def zeros(self) -> tuple[str, ...]:
        """The states before the first step, in the scales of those after it."""
        value, names, start = torch.zeros(1, 1), {"computed value 0": ""}, next(iter(self.tracer.nodes))
        return tuple(
            self.add(
                f"{word}_before", "constant", (start,), value=value, parameters=names,
                attrs={ALIKE: f"{self.name}.{word}"},
            )
            for word in self.states
        )  # fmt: skip

    def step(self, projected: str, states: Sequence[str]) -> tuple[str, ...]:
        """The states after a step.

        Args:
            projected: (1, gates), of the step's input.
            states: (1, size) each: of an LSTM, h and c.
        """
        attrs = {BESIDE: self.path}
        carried = self.add("state", "linear", (states[0],), self.gates, attrs=attrs, **self.state)
        if self.kind == "gru":
            return (self._gru(projected, carried, states[0]),)
        total = self.add("gates", "add", (projected, carried), self.gates)
        if self.kind == "lstm":
            return self._lstm(total, states[1])
        return (self.add("output", self.kind.removeprefix("rnn_"), (total,)),)

    def _gru(self, projected: str, carried: str, state: str) -> str:
        two = [self.part(f"{word}_rz", x, 0, 3, 2) for word, x in (("input", projected), ("state", carried))]
        gates = self.add("gates_rz", "add", (two[0], two[1]), 2)
        opened = self.add("open_rz", "sigmoid", (gates,), 2)
        reset, update = self.part("reset", opened, 0, 2), self.part("update", opened, 1, 2)
        kept = self.add("kept", "mul", (reset, self.part("state_n", carried, 2, 3)))
        total = self.add("gates_n", "add", (self.part("input_n", projected, 2, 3), kept))
        new = self.add("new", "tanh", (total,))
        # (1 - z) n + z h with one product less.
        older = self.add("older", "sub", (state, new))
        return self.add("output", "add", (new, self.add("stays", "mul", (update, older))))

    def _lstm(self, total: str, cell: str) -> tuple[str, str]:
        opened = self.add("open_if", "sigmoid", (self.part("gates_if", total, 0, 4, 2),), 2)
        new = self.add("new", "tanh", (self.part("gates_g", total, 2, 4),))
        out = self.add("open_o", "sigmoid", (self.part("gates_o", total, 3, 4),))
        taken = self.add("taken", "mul", (self.part("take", opened, 0, 2), new))
        kept = self.add("kept", "mul", (self.part("keep", opened, 1, 2), cell))
        cell = self.add("cell", "add", (kept, taken))
        return self.add("output", "mul", (out, self.add("shown", "tanh", (cell,)))), cell


def _sequence(tracer: Tracer, node: Any) -> None:
    """`nn.GRU`, `nn.LSTM` or `nn.RNN`."""
    if node.target._overloadname != "input":
        raise tracer.unknown(node, "reads a packed sequence; give it one of full length")
    _, given, weights, biased, layers, dropout, training, both, batch_first = node.args
    directions, lstm = 1 + both, target(node) == "lstm"
    each = 4 if biased else 2
    if len(weights) != each * layers * directions:
        raise tracer.unknown(node, "projects its state; proj_size=0")
    if training and dropout:
        raise tracer.unknown(node, "drops values at random; network.eval()")
    if len(shape_of(node.args[0])) != 3:
        raise tracer.unknown(node, "must read (batch, steps, features)")
    axes = (0, 3, 1) if batch_first else (3, 0, 1)
    feed = tracer.formed(node, node.args[0], axes)
    steps = tracer.nodes[feed].shape[3]
    if steps * layers * directions > MOST_STEPS:
        raise tracer.unknown(
            node,
            f"takes {steps * layers * directions} steps in all layers and directions, and each is unrolled: "
            f"at most {MOST_STEPS}; shorten the sequence (a stride before it), or use convolutions over time",
        )
    for state in given if lstm else [given]:
        _check_zero(tracer, node, state)
    ends: list[tuple[str, ...]] = []
    for layer in range(layers):
        made: list[list[str]] = []
        for direction in range(directions):
            index = layer * directions + direction
            word = f"l{layer}" + "_reverse" * direction
            part = _Layer(tracer, node, word, weights[each * index : each * (index + 1)])
            states, one = part.zeros(), part.projected(feed)
            found: dict[int, str] = {}
            for step in range(steps)[:: -1 if direction else 1]:
                part.place = f"{part.name}.{step}"
                states = part.step(_picked(part, one, step), states)
                found[step] = states[0]
            ends.append(states)
            made.append([found[step] for step in range(steps)])
        feed = _joined(tracer, node, made, f"l{layer}")
    tracer.alias[node.name] = feed
    axes_of_states = (3, 0, 1)
    for user in node.users:
        if target(user) != "getitem":
            raise tracer.unknown(user, "takes all results of a recurrent layer at once")
        if index := int(user.args[1]):
            last = [states[index - 1] for states in ends]
            tracer.hold(user, _joined(tracer, node, [last], f"{'hc'[index - 1]}_n"), axes_of_states)
        else:
            tracer.hold(user, feed, axes)


def _picked(part: _Layer, projected: str, step: int) -> str:
    """One step of a projection, (1, gates)."""
    rows, steps = part.gates * part.size, part.tracer.nodes[projected].shape[3]
    if steps > 1:
        attrs, shape = attrs_of({3: range(step, step + 1)}), (1, rows, 1, 1)
        projected = part.add("step", "slice", (projected,), shape=shape, attrs=attrs)
    return part.add("step_flat", "reshape", (projected,), part.gates, attrs={"shape": (1, rows)})


def _joined(tracer: Tracer, node: Any, made: Sequence[Sequence[str]], word: str) -> str:
    """States of all steps as a map (1, channels, 1, steps), one list for each direction."""
    name, maps = module_path(node) or node.name, []
    for direction, names in enumerate(made):
        label = f"{name}.{word}" + "_reverse" * direction
        pixels: list[str] = []
        for each in names:
            shape = (*tracer.nodes[each].shape, 1, 1)
            attrs = {"shape": shape, ALIKE: f"{label}.pixel"}
            place = f"{label}.{len(pixels)}.pixel"
            pixels.append(tracer.add(node, "reshape", (each,), shape=shape, name=place, attrs=attrs))
        maps.append(_concat(tracer, node, pixels, 3, f"{label}.all"))
    joined = _concat(tracer, node, maps, 1, f"{name}.{word}.both")
    tracer.stepped[joined] = tuple(zip(*made, strict=True))
    return joined


def _concat(tracer: Tracer, node: Any, names: Sequence[str], dim: int, name: str) -> str:
    """Several tensors side by side; one as it is."""
    if len(names) == 1:
        return names[0]
    shape = list(tracer.nodes[names[0]].shape)
    shape[dim] = sum(tracer.nodes[each].shape[dim] for each in names)
    return tracer.add(node, "concat", tuple(names), shape=tuple(shape), name=name, attrs={"dim": dim})


def _check_zero(tracer: Tracer, node: Any, given: Any) -> None:
    """Checks that a state before the first step is nothing but zeros.

    Raises:
        InputError: it is not.
    """
    value = tracer.constants.get(getattr(given, "name", ""))
    if value is None or bool(value.any()):
        what = "the network computes" if value is None else "is not zero"
        raise tracer.unknown(node, f"starts from a state that {what}; leave it out, and it starts from zeros")


def _cell(tracer: Tracer, node: Any) -> None:
    """`nn.GRUCell`, `nn.LSTMCell` or `nn.RNNCell`: one step."""
    given, weights = node.args[1], [w for w in node.args[2:] if w is not None]
    lstm = target(node) == "lstm_cell"
    part = _Layer(tracer, node, "", weights)
    x = tracer.tensor(node, node.args[0])
    if len(tracer.nodes[x].shape) != 2:
        raise tracer.unknown(node, "must read (batch, features)")
    states = list(part.zeros())
    for index, state in enumerate(given if lstm else [given]):
        if getattr(state, "name", "") in tracer.alias:
            states[index] = tracer.tensor(node, state)
        else:
            _check_zero(tracer, node, state)
    made = part.step(part.projected_once(x), states)
    tracer.alias[node.name] = made[0]
    if lstm:
        for user in node.users:
            tracer.alias[user.name] = made[int(user.args[1])]
