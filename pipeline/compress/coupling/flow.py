"""The flow of channels through a traced graph, and the groups that it makes (our design).

Every channel that a convolution or linear layer makes is an atom. Atoms are followed through the graph as
labels: reshapes and permutes move an array of labels exactly as they move the values, so whatever they do to
channels (flatten, pixel shuffle, YOLO's reorg) is computed, not guessed. Where one thing needs several atoms,
they are tied: the two sides of an addition, the rows of a depthwise convolution, a layer that is used twice,
the channels that a shuffle can only lose together.
A class of tied atoms is a unit: it stays or goes as a whole. Units that touch the same tensors in the same
way form a group, and a pruning chooses one width per group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.coupling.reshapes import Chain, Shape, chains, legal_step, unit_axes
from paredown.pipeline.graph.alike import ALIKE, BESIDE
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

#: Group name -> the units that stay, in rising order; a group that is not named keeps all of them.
Kept = Mapping[str, Sequence[int]]

Labels = NDArray[np.int64]
Side = Literal["out", "in"]
MAX_WAYS = 64  # in which a chain's slices are tied on trial
#: Roles of parameters that hold a number per channel of a layer, or serve all of its channels alike.
OWN = frozenset({"weight", "bn_mean", "slope", "shared slope", "factor", "shift", "row 0"})
NOT_OWN = "has a weight or bias that is no parameter of its own at"
Role = tuple[str, Side, int]  # a node, its side, and how many channels of a unit are there
Spots = dict[tuple[str, Side], list[int]]  # node and side -> channels of a unit there


@dataclass(frozen=True)
class Member:
    """One side of one layer that a group runs through.

    Attributes:
        node: a conv2d or linear node of the graph.
        side: channels of its output, or of the tensor that it reads.
        channels: unit -> the channels of that side that belong to it.
        carried: the node has no weights: see `Group.carriers`.
    """

    node: str
    side: Side
    channels: tuple[tuple[int, ...], ...]
    carried: bool = False


@dataclass(frozen=True)
class Group:
    """Channels that are pruned together.

    Attributes:
        name: the first node that makes them.
        members: every layer side that they are on, in running order.
        chain: why they belong together, a line per operation.
        locked: empty, or why nothing of it can be removed.
        step: a width must be a multiple of this many units, since the network reshapes by it.
    """

    name: str
    members: tuple[Member, ...]
    chain: tuple[str, ...]
    locked: str = ""
    step: int = 1

    @property
    def units(self) -> int:
        """How many things can be removed, each as a whole."""
        return len(self.members[0].channels)

    @property
    def makers(self) -> tuple[Member, ...]:
        """The layers that make these channels."""
        return tuple(member for member in self.members if member.side == "out")

    @property
    def carriers(self) -> tuple[Member, ...]:
        """What has no weights and yet must know which of its channels are gone: norms, constants."""
        return tuple(member for member in self.members if member.carried)

    @property
    def channels(self) -> int:
        """Channels of the first layer that makes them."""
        return sum(len(unit) for unit in self.makers[0].channels)

    def describe(self) -> str:
        """The group for people: what it is, and a line per operation that ties it."""
        each = len(self.makers[0].channels[0])
        size = f"{self.channels} channels" + (f" in {self.units} units of {each}" if each > 1 else "")
        size += f", widths by {self.step} units" if self.step > 1 else ""
        head = f"{self.name}: {size}" + (f", locked: it {self.locked}" if self.locked else "")
        return "\n".join([head, *(f"    {line}" for line in self.chain)])

    def kept(self, side: Side, node: str, units: Sequence[int]) -> list[int]:
        """The channels of one layer side that these units are."""
        found = [m for m in self.members if (m.node, m.side) == (node, side)]
        return sorted(channel for m in found for unit in units for channel in m.channels[unit])


class Flow:
    """The labels of every tensor, and which of them are tied.

    Attributes:
        labels: node -> labels of its channels (C,), or of all its values where channels were taken apart.
        axes: node -> the dim of its output along which its units are: see `unit_axes`.
        chains: the reshapes and permutes.
        sides: (layer, side) -> the labels of its channels there.
        shares: layer -> the layer before it whose parameters it reads.
        carried: those of `sides` that have no weights.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.labels: dict[str, Labels] = {}
        self.axes = unit_axes(graph)
        self.chains = chains(graph, self.axes)
        self.sides: dict[tuple[str, Side], Labels] = {}
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}
        self._users: dict[str, Node] = {}  # parameter -> the first node that reads it
        self._beside: dict[str, Labels] = {}  # see `BESIDE`
        self.shares: dict[str, str] = {}
        self.carried: set[tuple[str, Side]] = set()
        self._never_zero: set[str] = set()
        for node in graph:
            self.labels[node.name] = operation(node.kind).follow(self, node)
            self._watch_zero(node)
        for name in graph.outputs:
            self.lock(self.labels[name].ravel(), f"is the network's output {name}")
        for chain in self.chains:
            self._settle(chain)

    def _watch_zero(self, node: Node) -> None:
        """Locks channels that are not zero where a layer reads them though their maker's are.

        A channel may go if what is behind it computes the same as with the channel made zero. Behind a
        sigmoid it is 0.5, until something that is zero is multiplied by it.
        """
        kind, never = operation(node.kind), [name in self._never_zero for name in node.inputs]
        if kind.weighted:
            if any(never) and int(node.attrs.get("groups", 1)) < node.shape[1]:
                reason = f"is read by {_place(node)} behind an operation that makes no zero of zero"
                self.lock(self.sides[node.name, "in"], reason)
        elif node.kind == "constant":
            if (node.name, "in") not in self.sides and not kind.from_zero(node):
                self._never_zero.add(node.name)
        elif (all(never) if kind.multiplies else any(never)) and never:
            self._never_zero.add(node.name)
        elif node.inputs and not kind.from_zero(node):
            self._never_zero.add(node.name)

    # -- tied atoms ----------------------------------------------------------------------------------------

    def new(self, count: int) -> Labels:
        """Labels of so many new atoms."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """The class of an atom."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self, labels: Labels) -> Labels:
        """The class of each label; the same shape."""
        found, where = np.unique(labels, return_inverse=True)
        return np.array([self.root(int(a)) for a in found], np.int64)[where].reshape(labels.shape)

    def tie(self, first: Iterable[int], second: Iterable[int]) -> None:
        """Ties the atoms of two lists, one by one: both stay or both go."""
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self.root(int(a)), self.root(int(b))))
            if low != high:
                self._parent[high] = low
                if high in self._reason:
                    self._reason.setdefault(low, self._reason[high])

    def _tie_all(self, labels: Labels) -> None:
        found = np.unique(labels)
        self.tie(found[1:], np.repeat(found[:1], len(found) - 1))

    def lock(self, labels: Labels, reason: str) -> None:
        """Keeps atoms from going; the reason completes "it ..."."""
        for atom in np.unique(labels):
            self._reason.setdefault(self.root(int(atom)), reason)

    def channels(self, name: str) -> Labels:
        """The labels of a tensor's channels (C,), or of its heads; what shares one is tied."""
        labels = self.labels[name]
        if labels.ndim == 1:
            return labels
        rows = np.moveaxis(labels, self.axes[name], 0).reshape(labels.shape[self.axes[name]], -1)
        if not (rows == rows[:, :1]).all():
            for row in rows:
                self._tie_all(row)
        return rows[:, 0]

    def full(self, name: str) -> Labels:
        """The labels of every value of a tensor, in its shape."""
        labels, shape = self.labels[name], self.graph[name].shape
        if labels.ndim > 1:
            return labels
        spread = [1] * len(shape)
        if len(shape) > 1:
            spread[self.axes[name]] = -1
        return np.broadcast_to(labels.reshape(spread), shape)

    # -- operations ----------------------------------------------------------------------------------------

    def layer(self, node: Node) -> Labels:
        """The labels that a layer makes; ties its groups, and the layers that share its parameters."""
        assert node.weight is not None
        read, made = self.channels(node.inputs[0]), self.new(node.weight.shape[0])
        groups = int(node.attrs.get("groups", 1))
        self.sides[node.name, "in"], self.sides[node.name, "out"] = read, made
        if groups > 1:
            self._grouped(read.reshape(groups, -1), made.reshape(groups, -1))
        own = OWN & node.parameters.keys()
        if not own or any(role.startswith("computed") for role in node.parameters):
            self.lock(read, f"{NOT_OWN} {_place(node)}")
            self.lock(made, f"{NOT_OWN} {_place(node)}")
        if BESIDE in node.attrs:
            self.tie(self._beside.setdefault(node.attrs[BESIDE], made), made)
        for role, parameter in node.parameters.items():
            first = self._users.setdefault(parameter, node) if parameter else node
            if first is not node:
                self._share(first, node, role)
        return made

    def carry(self, node: Node, labels: Labels, parameter: str = "") -> None:
        """Says that a node without weights has these channels, and loses them with the group.

        Args:
            node: a norm, or a constant.
            labels: of its channels.
            parameter: that it is a view of, which has these channels too.
        """
        self.sides[node.name, "in"] = labels
        self.carried.add((node.name, "in"))
        first = self._users.setdefault(parameter, node) if parameter else node
        if first is node:
            return
        other = self.sides.get((first.name, "in"))
        alike = first.kind == node.kind and other is not None and len(other) == len(labels)
        if alike and first.attrs["axes"][self.axes[first.name]] == node.attrs["axes"][self.axes[node.name]]:
            assert other is not None
            self.tie(other, labels)
            return
        for each in (other, self.sides.get((first.name, "out")), labels):
            if each is not None:
                self.lock(each, f"shares a parameter with {_place(first)}")

    def positions(self, labels: Labels, groups: int) -> None:
        """Ties the channels at the same position of each of some groups of channels."""
        first, *others = labels.reshape(groups, -1)
        for other in others:
            self.tie(first, other)

    def _share(self, first: Node, node: Node, role: str) -> None:
        """Ties two layers that read one parameter."""
        self.shares.setdefault(node.name, first.name)
        for side in ("out", "in") if role == "weight" else ("out",):
            one, other = self.sides.get((first.name, side)), self.sides[node.name, side]
            known = role in first.parameters or (role.startswith("row ") and "row 0" in first.parameters)
            if one is not None and len(one) == len(other) and known:
                self.tie(one, other)
                continue
            for labels in (one, other):
                if labels is not None:
                    self.lock(labels, f"shares a parameter with {_place(first)}")

    def _grouped(self, read: Labels, made: Labels) -> None:
        """Ties the channels (groups, per group) of a grouped convolution, in the finer of the legal ways."""
        if len(read) >= read.shape[1]:  # whole groups go, as in a depthwise convolution
            for inside, outside in zip(read, made, strict=True):
                self.tie(inside, np.repeat(inside[:1], len(inside)))
                self.tie(outside, np.repeat(inside[:1], len(outside)))
        else:  # one position of every group goes
            for labels in (read, made):
                for row in labels[1:]:
                    self.tie(labels[0], row)

    def unknown(self, node: Node, why: str = "is not known") -> Labels:
        """Locks whatever a node touches."""
        what = node.attrs.get("op", node.kind)
        reason = f"passes through {what}, which {why}" + (f" ({node.source})" if node.source else "")
        for name in node.inputs:
            self.lock(self.labels[name].ravel(), reason)
        for parameter in filter(None, node.parameters.values()):
            layer = self._users.setdefault(parameter, node).name
            for side in ("out", "in"):
                if (layer, side) in self.sides:
                    self.lock(self.sides[layer, side], f"shares a parameter with {_place(node)}")
        labels = self.new(node.shape[1] if len(node.shape) > 1 else 1)
        self.lock(labels, reason)
        return labels

    # -- reshapes ------------------------------------------------------------------------------------------

    def stays(self, labels: Labels, gone: Labels) -> list[int]:
        """Which of these channels (C,) stay when classes go."""
        return np.flatnonzero(~np.isin(self.roots(labels), gone)).tolist()

    def shapes(
        self, chain: Chain, gone: Labels, given: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape] | None:
        """The shapes of a chain's nodes when classes go; None where there are no right ones."""
        read = self.channels(chain.source.name)
        left = self.stays(read, gone)
        if len(left) == len(read):
            return {node.name: node.shape for node in chain.nodes}
        ends = {name: self.stays(self.channels(name), gone) for name in chain.ends}
        return chain.shapes(left, ends, given or {})

    def _settle(self, chain: Chain) -> None:
        """Ties the slices of a chain that can lose nothing less: a channel shuffle's, of whole columns."""
        for name in chain.ends:
            self.channels(name)
        if len(self._free(chain)) < 2 or self._has_step(chain):
            return
        before = list(self._parent), dict(self._reason)
        best, most = before, 2
        inner = [node.name for node in chain.nodes if node.name in chain.dims and node.name not in chain.ends]
        ways = itertools.product(*[(None, *chain.dims[name]) for name in inner])
        for dims in itertools.islice(ways, 1, MAX_WAYS):  # the first ties nothing
            for name, dim in zip(inner, dims, strict=True):
                for index in range(self.labels[name].shape[dim] if dim else 0):
                    self._tie_all(self.labels[name].take([index], dim))
            if len(self._free(chain)) >= most and self._has_step(chain):
                best, most = (list(self._parent), dict(self._reason)), len(self._free(chain))
            self._parent, self._reason = list(before[0]), dict(before[1])
        self._parent, self._reason = best

    def _free(self, chain: Chain) -> Labels:
        """The classes that pass a chain and are not locked."""
        found = np.unique(self.roots(self.channels(chain.source.name)))
        return np.array([root for root in found if root not in self._reason], np.int64)

    def _has_step(self, chain: Chain) -> bool:
        units = self._free(chain)
        return (
            legal_step(len(units), lambda gone: self.shapes(chain, units[list(gone)]) is not None) is not None
        )

    # -- groups --------------------------------------------------------------------------------------------

    def groups(self) -> tuple[Group, ...]:
        """The classes of atoms that a layer makes, those of equal roles together."""
        spots: dict[int, Spots] = {}
        for place, labels in self.sides.items():
            for channel, root in enumerate(self.roots(labels)):
                spots.setdefault(int(root), {}).setdefault(place, []).append(channel)
        alike: dict[tuple[bool, tuple[Role, ...]], list[int]] = {}
        for root, places in spots.items():
            if any(side == "out" for _, side in places):
                roles = tuple((name, side, len(found)) for (name, side), found in places.items())
                alike.setdefault((root in self._reason, roles), []).append(root)
        order = {node.name: i for i, node in enumerate(self.graph)}
        ways = self._ways()
        made = [self._group(roles, units, spots, order, ways) for (_, roles), units in alike.items()]
        named: dict[str, int] = {}
        groups = []
        for group in sorted(made, key=lambda g: (order[g.makers[0].node], g.makers[0].channels)):
            named[group.name] = named.get(group.name, 0) + 1
            suffix = f"/{named[group.name]}" if named[group.name] > 1 else ""
            groups.append(Group(group.name + suffix, group.members, group.chain, group.locked))
        return tuple(groups)

    def _ways(self) -> dict[int, tuple[set[int], set[int]]]:
        """Class of atoms -> the nodes that read some of it and those that make some, by number.

        Of nodes that are the same in several steps only the first counts.
        """
        holds = {name: set(self.roots(np.unique(labels)).tolist()) for name, labels in self.labels.items()}
        ways: dict[int, tuple[set[int], set[int]]] = {}
        seen = set[str]()
        for number, node in enumerate(self.graph):
            if (step := node.attrs.get(ALIKE)) in seen:
                continue
            seen |= {step} if step else set()
            for root in set().union(*(holds[name] for name in node.inputs)):
                ways.setdefault(root, (set(), set()))[0].add(number)
            for root in holds[node.name]:
                ways.setdefault(root, (set(), set()))[1].add(number)
        return ways

    def _group(
        self,
        roles: tuple[Role, ...],
        units: list[int],
        spots: Mapping[int, Spots],
        order: Mapping[str, int],
        ways: Mapping[int, tuple[set[int], set[int]]],
    ) -> Group:
        sides = sorted({(name, side) for name, side, _ in roles}, key=lambda s: (order[s[0]], s[1] == "out"))
        first = next(s for s in sides if s[1] == "out")
        units = sorted(units, key=lambda unit: spots[unit][first])
        members = tuple(
            Member(
                name, side, tuple(tuple(spots[u][name, side]) for u in units), (name, side) in self.carried
            )
            for name, side in sides
        )
        reasons = [self._reason[u] for u in units if u in self._reason]
        return Group(
            first[0], members, self._chain(set(units), first[0], ways), reasons[0] if reasons else ""
        )

    def _chain(
        self, units: set[int], first: str, ways: Mapping[int, tuple[set[int], set[int]]]
    ) -> tuple[str, ...]:
        """What every operation does with these units, for people."""
        read, made = (set().union(*(ways[unit][side] for unit in units)) for side in (0, 1))
        lines = []
        for number in sorted(read | made):
            node = self.graph.nodes[number]
            kind = operation(node.kind)
            lines.append(kind.line(self, node, units, first, number in read, number in made))
        return tuple(filter(None, lines))


def _place(node: Node) -> str:
    return node.name + (f" ({node.source})" if node.source else "")
