"""Masked networks computed from what they share with the original (our design).

A masked network differs from the original only behind the masked channels. A `Variant` computes

- nothing that no removed channel reaches: the original's tensors are taken;
- nothing that is the original's tensor with some channels zero: it is sliced;
- the rest, without the channels that are zero, with thinner weights.

The outputs are those of the whole masked network in `pipeline.compress.sensitivity.forward`, bit for bit.
Taking and slicing are exact. Leaving out zeros is exact if the kernel adds the other terms in the same order:
each convolution is tried out both ways on random numbers, and computed with its zeros where a single bit
differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.reshapes import unit_axes
from paredown.pipeline.compress.sensitivity.forward import Conv, Engine, Op, Values, compute, last
from paredown.pipeline.graph.graph import Node
from paredown.pipeline.graph.operations.kinds import operation

Live = tuple[int, ...]  # the channels of a tensor that may be other than zero, rising


@dataclass(frozen=True)
class State:
    """What is known of a tensor of the masked network.

    Attributes:
        made: it is computed; else it is the original's but for the zeros.
        live: the channels that may be other than zero; only these are in memory. None for all.
    """

    made: bool
    live: Live | None


SAME = State(False, None)


@dataclass(frozen=True)
class Step:
    """Computes one tensor from others; all by key."""

    key: str
    reads: tuple[str, ...]
    compute: Callable[..., Tensor]


class Variant:
    """A masked network as steps behind the original's tensors.

    Attributes:
        reads: the original's tensors that it needs.
        removed: of these, those that it slices, with the channels that are left out. Where all of them are
            zero in the original too, so are the outputs the original's; None if that does not follow.
        bytes: of the weights that it packed for itself.
    """

    def __init__(self, engine: Engine, group: Group, units: Sequence[int]) -> None:
        """Plans the steps and packs thinner weights.

        Args:
            engine: of the original network.
            group: one of its groups.
            units: those that stay, rising.
        """
        self._engine = engine
        gone = set(range(group.units)) - set(units)
        changed = (*group.makers, *group.carriers)
        self._gone = {m.node: {c for u in gone for c in m.channels[u]} for m in changed}
        self._axes = unit_axes(engine.graph)
        self.bytes = 0
        removed: dict[str, Live] = {}
        self._sliced = removed
        self._steps: list[Step] = []
        self._states: dict[str, State] = {}
        self._forms: set[str] = set()
        needed: set[str] = set()
        self._needed = needed
        for op in engine.ops:
            self._states[op.name] = self._plan(op)
        made = {op.node.name for op in engine.ops if self._states[op.name].made}
        self._outputs = tuple(self._use(name, whole=True) for name in engine.graph.outputs)
        self.reads = frozenset(needed)
        self.removed = None if made & set(self._gone) else removed
        self._drop = self._last_reads()

    def _last_reads(self) -> tuple[tuple[str, ...], ...]:
        """Per step, what nothing reads after it."""
        final = {key: i for i, step in enumerate(self._steps) for key in step.reads}
        free = {key for key in final if key not in self._outputs}
        return tuple(tuple(k for k in free if final[k] == i) for i in range(len(self._steps)))

    @torch.inference_mode()
    def run(self, base: Values) -> tuple[NDArray[np.float32], ...]:
        """The outputs for a chunk.

        Args:
            base: the original's tensors, at least those of `reads`.
        """
        values = {key: base[key] for key in self.reads}
        for step, drop in zip(self._steps, self._drop, strict=True):
            values[step.key] = step.compute(*[values[key] for key in step.reads])
            for key in drop:
                del values[key]
        return tuple(values[key].contiguous().numpy() for key in self._outputs)

    # -- planning ------------------------------------------------------------------------------------------

    def _plan(self, op: Op) -> State:
        states = [self._states[name] for name in op.reads]
        node = op.node
        if node.name not in self._gone and all(state == SAME for state in states):
            return SAME
        sliced = not any(state.made for state in states)
        match node.kind:
            case "conv2d":
                return self._plan_conv(op, states)
            case kind if operation(kind).weighted:
                return self._plan_layer(op, states[0])
            case "add" if states[0].live == states[1].live:
                return State(False, states[0].live) if sliced else self._plan_alike(op, states[0].live)
            case "concat" if node.attrs["dim"] == 1:
                return self._plan_concat(op, states)
            case "mean" if sliced:
                return states[0]
            case kind if operation(kind).channelwise or self._flattens(node):
                return states[0] if sliced else self._plan_alike(op, states[0].live)
        return self._plan_whole(op)

    def _plan_alike(self, op: Op, live: Live | None) -> State:
        node, flat = op.node, op.node.kind == "reshape"
        reads = [self._use(name) for name in op.reads]
        self._step(op.name, reads, lambda *x: x[0].flatten(1) if flat else compute(node, *x))
        return State(True, live)

    def _flattens(self, node: Node) -> bool:
        """Whether it makes (N, C) of (N, C, 1, 1)."""
        before = self._engine.shapes[node.inputs[0]] if node.kind == "reshape" else ()
        return before[2:] == (1, 1) and node.shape == before[:2]

    def _plan_concat(self, op: Op, states: Sequence[State]) -> State:
        live: list[int] = []
        start = 0
        for name, state in zip(op.inputs, states, strict=True):
            channels = self._engine.shapes[name][1]
            live += [start + c for c in (range(channels) if state.live is None else state.live)]
            start += channels
        found = tuple(live) if len(live) < start else None
        if any(state.made for state in states):
            reads = [self._use(name) for name in op.inputs]
            self._step(op.name, reads, lambda *x: torch.cat([last(t) for t in x], 1))
            return State(True, found)
        return State(False, found)

    def _plan_whole(self, op: Op) -> State:
        """With its zeros: what moves values between channels, or may add in another order with fewer."""
        node = op.node
        if gone := sorted(self._gone.get(node.name, ())):
            node = operation(node.kind).masked(node, gone, self._axes[node.name])
        reads = [self._use(name, whole=True) for name in op.reads]
        self._step(op.name, reads, lambda *x: compute(node, *x))
        return State(True, None)

    def _plan_layer(self, op: Op, state: State) -> State:
        """Sliced or with its zeros: matrix products are chosen by size, and are the smallest part."""
        if state == SAME:
            return State(False, self._rows(op))
        weight, bias = self._masked(op)
        node = replace(op.node, weight=weight, bias=bias)
        self._step(op.name, [self._use(op.inputs[0], whole=True)], lambda x: compute(node, x))
        return State(True, None)

    def _plan_conv(self, op: Op, states: Sequence[State]) -> State:
        """Sliced, thinner, or with its zeros."""
        engine, rows, read = self._engine, self._rows(op), states[0].live
        weight, bias = self._masked(op)
        groups, per = int(op.node.attrs["groups"]), weight.shape[1]
        some = tuple(range(len(weight))) if rows is None else rows
        inside = tuple(range(per * groups)) if read is None else read
        fits = not op.other or states[1].live == rows  # the two sides of a fused addition
        if fits and not any(state.made for state in states):
            first = [row // (len(weight) // groups) * per for row in some]  # of the channels that a row reads
            if {c + i for c in set(first) for i in range(per)} <= set(inside):
                return State(False, rows)
        depthwise = per == 1 and len(weight) == groups > 1
        if fits and (read, rows) != (None, None) and (groups == 1 or (depthwise and read == rows)):
            part = weight[list(some)] if depthwise else weight[list(some)][:, list(inside)]
            shape = (engine.chunk, len(inside), *engine.shapes[op.inputs[0]][2:])
            thinner = Conv(op, part, bias[list(some)], len(some) if depthwise else 1, shape)
            if same_bits(engine, op, thinner, some, inside):
                self.bytes += part.numel() * part.element_size()
                self._step(op.name, [self._use(name) for name in op.reads], thinner)
                return State(True, rows)
        whole = engine.convs[op.name]
        if rows is not None:
            whole = Conv(op, weight, bias, groups, engine.chunk_shape(op.inputs[0]))
            self.bytes += weight.numel() * weight.element_size()
        self._step(op.name, [self._use(name, whole=True) for name in op.reads], whole)
        return State(True, None)

    def _rows(self, op: Op) -> Live | None:
        """The output channels of a layer that are not removed; None for all."""
        gone = self._gone.get(op.node.name)
        return tuple(c for c in range(op.shape[1]) if c not in gone) if gone else None

    def _masked(self, op: Op) -> tuple[Tensor, Tensor]:
        weight, bias = op.node.weight, op.node.bias
        assert weight is not None and bias is not None
        if gone := sorted(self._gone.get(op.node.name, ())):
            weight, bias = weight.clone(), bias.clone()
            weight[gone] = 0
            bias[gone] = 0
        return weight, bias

    # -- steps ---------------------------------------------------------------------------------------------

    def _step(self, key: str, reads: Sequence[str], run: Callable[..., Tensor]) -> None:
        self._steps.append(Step(key, tuple(reads), run))

    def _use(self, name: str, *, whole: bool = False) -> str:
        """The key of a tensor in the form that is wanted, with the step that brings it there.

        Args:
            name: of the tensor.
            whole: with its zeros, else the live channels alone.
        """
        state = self._states[name]
        if not state.made:
            self._needed.add(name)
        if state.live is None or (state.made and not whole):
            return name
        key = f"{name}:{'whole' if whole else 'live'}"
        if key in self._forms:
            return key
        self._forms.add(key)
        channels = self._engine.shapes[name][1]
        gone = tuple(sorted(set(range(channels)) - set(state.live)))
        live, none = torch.tensor(state.live), torch.tensor(gone)
        if not state.made:
            self._sliced[name] = gone
        if not whole:
            self._step(key, [name], lambda x: take(x, live))
        elif state.made:
            self._step(key, [name], lambda x: _spread(x, live, channels))
        else:
            self._step(key, [name], lambda x: x.index_fill(1, none, 0.0))
        return key


def take(x: Tensor, channels: Tensor) -> Tensor:
    """Some channels of a tensor, channels last."""
    if x.dim() != 4:
        return x.index_select(1, channels)
    return last(x).permute(0, 2, 3, 1).index_select(3, channels).permute(0, 3, 1, 2)


def _spread(x: Tensor, channels: Tensor, count: int) -> Tensor:
    """The inverse of `take`, zeros between."""
    whole = last(x.new_zeros((x.shape[0], count, *x.shape[2:])))
    return whole.index_copy_(1, channels, x)


def same_bits(engine: Engine, op: Op, thinner: Conv, rows: Live, columns: Live) -> bool:
    """Tries out whether a thinner convolution gives the very bits of the whole one with zeros.

    Random numbers tell: added in another order, many of thousands of sums round differently.

    Args:
        engine: of the original network.
        op: the convolution there.
        thinner: with fewer rows or columns.
        rows: the output channels that it has.
        columns: the input channels that it has.
    """
    shape = engine.chunk_shape(op.inputs[0])
    assert op.node.weight is not None
    sizes = (shape, tuple(op.node.weight.shape), thinner.place, bool(op.other))
    key = f"{sizes} {rows} {columns}"
    if key not in engine.tried:
        random = torch.Generator().manual_seed(0)
        inside, outside = torch.tensor(columns), torch.tensor(rows)
        x = torch.randn((shape[0], len(columns), *shape[2:]), generator=random)
        other = last(torch.randn(engine.chunk_shape(op.name), generator=random)) if op.other else None
        small = take(other, outside) if other is not None else None
        whole = engine.convs[op.name](_spread(x, inside, shape[1]), other)
        engine.tried[key] = torch.equal(take(whole, outside), thinner(x, small))
    return engine.tried[key]
