"""What a choice of widths costs: allowed widths, channel counts, multiply-accumulates and bytes (our design).

A cost is a sum of parts, one per layer, and a part depends on the widths of the few groups that touch its
layer. `Cost.tables` turns the parts into small tables over groups, from which an allocation can be solved
exactly. Latency, measured, is in `pipeline.device.latency.latency`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.graph.alike import distinct
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.targets.cards.card import ChannelMultiple
from paredown.targets.errors import UsageError

#: Group name -> how many of its units stay; a group that is not named keeps all of them.
Widths = Mapping[str, int]

MOST_GROUPS = 3  # of one exact table; a part that more groups touch is split into pairs


# -- allowed widths ------------------------------------------------------------------------------------------


def widths(
    units: int, channels_per_unit: int, multiple: int, count: int | None = None, step: int = 1
) -> tuple[int, ...]:
    """The allowed widths of a group, in units, widest first.

    Args:
        units: how many the group has.
        channels_per_unit: how many channels of a layer go with one unit.
        multiple: what the channels of every width but the full one are a multiple of.
        count: at most so many widths, evenly thinned; the full and the narrowest stay.
        step: a width must also be a multiple of this many units (`Group.step`).

    Returns:
        The full width, even where it is no multiple, and the narrower ones; never 0.

    Raises:
        UsageError: a number below 1, or a count below 2.
    """
    if min(units, channels_per_unit, multiple, step) < 1 or (count is not None and count < 2):
        raise UsageError(
            f"no widths for {units} units of {channels_per_unit} channels in multiples of {multiple}",
            hint="all must be at least 1, and the number of widths at least 2",
        )
    step = math.lcm(step, multiple // math.gcd(multiple, channels_per_unit))
    allowed = [units, *range((units - 1) // step * step, 0, -step)]
    if count is None or len(allowed) <= count:
        return tuple(allowed)
    return tuple(allowed[i] for i in np.linspace(0, len(allowed) - 1, count).round().astype(int))


def group_multiple(graph: Graph, group: Group, multiple: ChannelMultiple) -> int:
    """What a group's channels should be a multiple of: the least common one of the layers that make it."""
    nodes = [graph[maker.node] for maker in group.makers]
    return math.lcm(*(getattr(multiple, operation(node.kind).multiple(node)) for node in nodes))


def group_widths(
    graph: Graph, group: Group, multiple: ChannelMultiple, count: int | None = None
) -> tuple[int, ...]:
    """The allowed widths of a group on a target, in units, widest first; of a locked one only the full."""
    if group.locked:
        return (group.units,)
    wanted = group_multiple(graph, group, multiple)
    # makers may have different numbers of channels per unit: the step must suit all of them
    steps = [wanted // math.gcd(wanted, len(maker.channels[0])) for maker in group.makers]
    return widths(group.units, 1, math.lcm(*steps), count, group.step)


def nearest(share: float, allowed: Sequence[int]) -> int:
    """The allowed width nearest to a share of the full one, the wider of two equally near; never 0.

    Raises:
        UsageError: the share is not within 0..1.
    """
    check_share("the share of channels to keep", share)
    wanted = share * max(allowed)
    return min(allowed, key=lambda width: (abs(width - wanted), -width))


def check_share(what: str, value: float) -> None:
    """Checks a share that a user asked for.

    Raises:
        UsageError: it is NaN, negative or over 1.
    """
    if not 0 <= value <= 1:  # NaN is neither
        raise UsageError(f"{what} is {value}, it must be within 0 and 1", hint="0.5 is one half")


# -- channel counts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """A number of things as a function of widths: constant + sum of per_unit[group] * width."""

    constant: float
    per_unit: Mapping[str, float] = field(default_factory=dict)

    def at(self, chosen: Widths) -> float:
        """The number at these widths, every group of it named."""
        return self.constant + sum(each * chosen[name] for name, each in self.per_unit.items())

    def scaled(self, factor: float) -> Count:
        """This count times a factor."""
        return Count(self.constant * factor, {name: each * factor for name, each in self.per_unit.items()})

    def __add__(self, other: Count) -> Count:
        names = {**self.per_unit, **other.per_unit}
        total = {n: self.per_unit.get(n, 0.0) + other.per_unit.get(n, 0.0) for n in names}
        return Count(self.constant + other.constant, total)


def channel_counts(graph: Graph, groups: Sequence[Group]) -> dict[str, Count]:
    """Channels of every tensor as a function of widths; values per position where it has no channel axis.

    Returns:
        Node name -> number of values of its output divided by the size of the axes after the second one.
    """
    makers: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        for maker in group.makers:
            makers.setdefault(maker.node, []).append((group, len(maker.channels[0])))
    values: dict[str, Count] = {}
    for node in graph:
        size = float(math.prod(node.shape))
        if node.weight is not None:
            pixels = float(math.prod(node.shape[2:]))
            found = makers.get(node.name, [])
            fixed = node.weight.shape[0] - sum(group.units * each for group, each in found)
            values[node.name] = Count(fixed, {group.name: each for group, each in found}).scaled(pixels)
        elif operation(node.kind).joins:
            total = Count(0.0)
            for name in node.inputs:
                total = total + values[name]
            values[node.name] = total
        elif node.kind in {"input", "opaque"}:
            values[node.name] = Count(size)
        else:  # the channels of its input, perhaps at other positions
            source = graph[node.inputs[0]]
            values[node.name] = values[source.name].scaled(size / math.prod(source.shape))
    return {n.name: values[n.name].scaled(1 / math.prod(n.shape[2:])) for n in graph}


# -- costs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostTerm:
    """What one layer costs.

    Attributes:
        node: the layer.
        groups: whose widths decide.
        value: all of these groups' widths -> cost.
        bilinear: its value is a polynomial of the widths in which no term has three groups; it can then be
            split into pairs without an error.
    """

    node: str
    groups: tuple[str, ...]
    value: Callable[[Widths], float]
    bilinear: bool


@dataclass(frozen=True)
class Table:
    """A summand of a cost: an entry per combination of the choices of its groups, axes in their order."""

    groups: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What a budget counts.

    Attributes:
        name: "macs", "bytes" or "latency".
        unit: of its values.
        full: group -> its full width.
        parts: the summands.
    """

    name: Literal["macs", "bytes", "latency"]
    unit: str
    full: Widths
    parts: tuple[CostTerm, ...]

    def total(self, chosen: Widths) -> float:
        """The cost at these widths."""
        whole = {**self.full, **chosen}
        return sum(part.value(whole) for part in self.parts)

    @property
    def unpruned(self) -> float:
        """The cost of the whole network."""
        return self.total({})

    def share(self, chosen: Widths) -> float:
        """The cost at these widths as a share of the whole network's."""
        return self.total(chosen) / self.unpruned

    def tables(self, choices: Mapping[str, Sequence[int]]) -> tuple[list[Table], float, bool]:
        """The cost as small tables over the groups that have a choice.

        Args:
            choices: group -> its widths, the widest first; groups left out are full.

        Returns:
            The tables, at most one per set of groups; the constant rest; whether their sum is exact. It is
            not where more than three groups touch one layer whose cost is no polynomial: such a part is split
            into pairs about the widest choices.
        """
        free = {name: tuple(found) for name, found in choices.items() if len(found) > 1}
        whole = {**self.full, **{name: found[0] for name, found in choices.items()}}
        sums: dict[tuple[str, ...], NDArray[np.float64]] = {}
        constant, exact = 0.0, True
        for part in self.parts:
            touched = tuple(sorted(name for name in part.groups if name in free))
            if len(touched) > 2 and (part.bilinear or len(touched) > MOST_GROUPS):
                pieces = _pairs(part, touched, free, whole)
                exact &= part.bilinear
            else:
                pieces = {touched: _grid(part, touched, free, whole)}
            for names, values in pieces.items():
                if names:
                    sums[names] = sums[names] + values if names in sums else values
                else:
                    constant += float(values)
        return [Table(names, values) for names, values in sorted(sums.items())], constant, exact


def counted(graph: Graph, groups: Sequence[Group], name: Literal["macs", "bytes"]) -> Cost:
    """Multiply-accumulates of one inference, or bytes of the int8 program's weights and int32 biases.

    Args:
        graph: the whole network.
        groups: those of `couple(graph)`.
        name: what is counted.
    """
    channels = channel_counts(graph, groups)
    parts = []
    for node in distinct(graph) if name == "bytes" else graph:
        if node.weight is None:
            continue
        rows, columns = channels[node.name], layer_columns(node, channels[node.inputs[0]])
        if name == "bytes":
            per_weight, per_row = float(math.prod(node.weight.shape[2:])), 4.0
        else:
            per_weight, per_row = node.macs / math.prod(node.weight.shape[:2]), 0.0
        value = _Product(rows, columns, per_weight, per_row)
        parts.append(CostTerm(node.name, tuple({**rows.per_unit, **columns.per_unit}), value, True))
    unit = {"macs": "multiply-accumulates", "bytes": "bytes"}[name]
    return Cost(name, unit, {group.name: group.units for group in groups}, tuple(parts))


def layer_columns(node: Node, read: Count) -> Count:
    """Columns of a layer's weight (its second axis) as a function of widths, as surgery leaves them.

    A grouped convolution loses whole groups where it has at least as many as channels in each, and the
    columns stay; else it loses the same places of every group.
    """
    assert node.weight is not None
    groups = int(node.attrs.get("groups", 1))
    if groups > 1 and groups >= node.weight.shape[1]:
        return Count(float(node.weight.shape[1]))
    return read.scaled(1 / groups)


@dataclass(frozen=True)
class _Product:
    """rows * (columns * per_weight + per_row), a whole number."""

    rows: Count
    columns: Count
    per_weight: float
    per_row: float

    def __call__(self, chosen: Widths) -> float:
        return float(round(self.rows.at(chosen) * (self.columns.at(chosen) * self.per_weight + self.per_row)))


def _grid(
    part: CostTerm, names: tuple[str, ...], free: Mapping[str, tuple[int, ...]], whole: Widths
) -> NDArray[np.float64]:
    """The value at every combination of these groups' choices, all others as in `whole`."""
    found = [
        part.value({**whole, **dict(zip(names, combination, strict=True))})
        for combination in itertools.product(*(free[name] for name in names))
    ]
    return np.array(found, np.float64).reshape([len(free[name]) for name in names])


def _pairs(
    part: CostTerm, names: tuple[str, ...], free: Mapping[str, tuple[int, ...]], whole: Widths
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """A value as a sum over single groups and pairs of them: its expansion about the widest choices."""
    base = _grid(part, (), free, whole)
    single = {name: _grid(part, (name,), free, whole) - base for name in names}
    pieces: dict[tuple[str, ...], NDArray[np.float64]] = {(): base}
    pieces |= {(name,): values for name, values in single.items()}
    for a, b in itertools.combinations(names, 2):
        joint = _grid(part, (a, b), free, whole) - base - single[a][:, None] - single[b][None, :]
        pieces[a, b] = joint
    return pieces
