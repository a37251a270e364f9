"""Where the operations of an integer graph will run on a target, and what breaks in the delegate cost.

A prediction by `pipeline.lower.predict.rules`, made before anything is lowered;
`bench/inspect_agreement.py` compares it with what the runtimes really do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.placement import Place, Rule
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode
from paredown.pipeline.lower.predict.rules import card_kind, rule_for
from paredown.targets.cards.card import Target

BYTES = {"int8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Operation:
    """One operation on one runtime, as predicted.

    Attributes:
        name: of the node in the integer graph.
        kind: as cards name it.
        place: where it will run.
        macs: multiply-accumulates of one inference.
        reason: why it leaves the delegate; empty where it does not.
        instead: what to write to keep it there.
        source: the line of the user's code that makes it.
    """

    name: str
    kind: str
    place: Place
    macs: int
    reason: str = ""
    instead: str = ""
    source: str = ""


@dataclass(frozen=True)
class Placement:
    """A network on one runtime of a target, as predicted.

    Attributes:
        runtime: its name.
        delegate: what should execute the operations; "none" = the runtime's own kernels.
        dtype: of the arithmetic that the prediction is for.
        operations: in running order.
        segments: delegate calls of one inference; one is the aim.
        moved_bytes: of one inference: tensors that the delegate makes and the CPU reads, or the reverse.
        notes: what the card says of this runtime.
    """

    runtime: str
    delegate: str
    dtype: str
    operations: tuple[Operation, ...]
    segments: int
    moved_bytes: int
    notes: tuple[str, ...]

    @property
    def leaving(self) -> tuple[Operation, ...]:
        """The operations that are not where they should be."""
        return tuple(operation for operation in self.operations if operation.reason)

    @property
    def macs_leaving(self) -> float:
        """Their share of the multiply-accumulates."""
        whole = sum(operation.macs for operation in self.operations)
        return sum(operation.macs for operation in self.leaving) / whole if whole else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "runtime": self.runtime,
            "delegate": self.delegate,
            "dtype": self.dtype,
            "operations": [vars(operation) for operation in self.operations],
            "leaving": len(self.leaving),
            "macs_leaving": self.macs_leaving,
            "segments": self.segments,
            "moved_bytes": self.moved_bytes,
            "notes": list(self.notes),
        }


def place(graph: Graph, integer: IntegerGraph, target: Target, name: str) -> Placement:
    """Predicts where each operation runs on one runtime of a target.

    Args:
        graph: traced, opaque nodes and all.
        integer: made of it.
        target: the card.
        name: of the runtime.

    Raises:
        UsageError: the target does not have it.
    """
    runtime = target.runtime(name)
    home: Place = "cpu" if runtime.delegate == "none" else "delegate"
    dtype = "int8" if "int8" in runtime.dtypes else runtime.dtypes[0]
    sources = {node.name: node.source for node in graph}
    operations, integer = [], integer.written
    steps: dict[str, _Step] = {}
    for node in integer.nodes[1:]:
        feed = integer[node.inputs[0]]
        rule = rule_for(node, feed, target, name, runtime)
        macs = operation(node.kind).macs(node)
        told = (rule.place, macs, rule.reason, rule.instead) if rule else (home, macs, "", "")
        operations.append(
            Operation(
                node.name,
                card_kind(node, feed),
                *told,
                sources.get(node.name) or sources.get(node.name.rpartition(".")[0], ""),
            )
        )
        steps |= _steps(node, feed, rule, home == "delegate")
    return Placement(
        name, runtime.delegate, dtype, tuple(operations), _segments(steps), _moved(steps) * BYTES[dtype],
        runtime.notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Step:
    """An operation, or the part of one, that runs on the delegate or does not."""

    inputs: tuple[str, ...]
    elements: int
    delegated: bool


def _steps(node: IntegerNode, feed: IntegerNode, rule: Rule | None, delegated: bool) -> dict[str, _Step]:
    parts = rule.parts if rule else (delegated,)
    made = prod(node.shape)
    steps, inputs = {}, node.inputs
    for index, part in enumerate(parts[:-1]):
        steps[f"{node.name}/{index}"] = _Step(inputs, made, part)
        inputs = (f"{node.name}/{index}",)
    steps[node.name] = _Step(inputs, made, parts[-1])
    return steps


def _moved(steps: Mapping[str, _Step]) -> int:
    """Elements of the tensors that one side makes and the other reads."""
    crossing = {
        source
        for step in steps.values()
        for source in step.inputs
        if source in steps and steps[source].delegated != step.delegated
    }
    return sum(steps[name].elements for name in crossing)


def _segments(steps: Mapping[str, _Step]) -> int:
    """Delegate calls: in turns, whatever is ready on one side runs there, as TFLite partitions a graph."""
    waiting, calls = dict(steps), 0

    def ready() -> list[str]:
        return [name for name, step in waiting.items() if not waiting.keys() & set(step.inputs)]

    while waiting:
        delegated = waiting[ready()[0]].delegated
        calls += delegated
        while names := [name for name in ready() if waiting[name].delegated == delegated]:
            for name in names:
                del waiting[name]
    return calls
