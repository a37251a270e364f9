"""`paredown inspect`: before any training, what stays on the target's delegates, and what to change.

It needs no data. The ranges of the activations are made up, and only their sign is true: it alone decides how
an operation is written. Where an Ethos-U is, and Vela is installed, Vela compiles the program and is quoted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from paredown.pipeline.compress.squantize.clip_places import clip_places, kept_at_8_bits, untrained
from paredown.pipeline.compress.training.sparsify import prunable
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.predict.islands import told
from paredown.pipeline.lower.predict.placement import Placement, place
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import load_task, notes_of
from paredown.targets.cards.card import Target
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.mcu.memory import fits
from paredown.targets.mcu.vela import Compiled, compile_for


@dataclass(frozen=True)
class Inspection:
    """What a network would meet on a target; everything in it is predicted.

    Attributes:
        network: as in the recipe.
        target: the card's name.
        shape: of the input, batch of one.
        macs: multiply-accumulates of one inference.
        placements: one per runtime.
        npu: what Vela makes of it; None without an Ethos-U, or where it could not be asked: `notes` say why.
        notes: one sentence each.
    """

    network: str
    target: str
    shape: tuple[int, ...]
    macs: int
    placements: tuple[Placement, ...]
    npu: Compiled | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "network": self.network,
            "target": self.target,
            "input": list(self.shape),
            "macs": self.macs,
            "tag": "predicted",
            "runtimes": [placement.to_dict() for placement in self.placements],
            "npu": self.npu and _npu_dict(self.npu),
            "notes": list(self.notes),
        }

    def tables(self) -> list[Any]:
        """For a terminal: per runtime what stays and what leaving costs; then what leaves, and why."""
        from rich.markup import escape
        from rich.table import Table

        sums = Table("runtime", "delegate", "stay", "MACs leaving", "delegate calls", "bytes moved", box=None)
        for each in self.placements:
            count = len(each.operations)
            sums.add_row(
                each.runtime, each.delegate, f"{count - len(each.leaving)} of {count}",
                f"{each.macs_leaving:.1%}", str(each.segments), f"{each.moved_bytes:,}",
            )  # fmt: skip
        heads = ("runtime", "operation", "kind", "goes to", "why", "instead", "in")
        leaving = Table(*heads, box=None, show_lines=True)
        for each in self.placements:
            for found in each.leaving:
                row = (found.name, found.kind, found.place, found.reason, found.instead, found.source)
                leaving.add_row(each.runtime, *map(escape, row))
        return [sums, leaving] if leaving.row_count else [sums]


def inspect(recipe: Recipe, target: Target) -> Inspection:
    """Predicts where the operations of a recipe's network run on a target, and what leaving costs.

    Args:
        recipe: resolved; its network and weights are read, its data is not.
        target: the card.

    Raises:
        UsageError: the recipe names a runtime that the target has not.
        InputError: network or weights are broken, or a layer fits no int8 kernel.
        DeviceError: Vela failed.
    """
    task = load_task(recipe)
    source = task.preprocess
    network = task.network()
    graph = trace(network, source.input_shape, opaque=True)
    refused = refusal(network, graph)
    runtimes = recipe.lower.on(target.runtimes).runtimes
    graph, notes = _with_low_bits(graph, recipe)
    found = inspect_graph(graph, target, runtimes, source.value_range or (-1.0, 1.0), recipe.network)
    return replace(found, notes=(*refused, *notes_of(task), *found.notes, *notes))


def refusal(network: nn.Module, graph: Graph) -> tuple[str, ...]:
    """A sentence where `paredown run` refuses a network that is inspected all the same: with its error.

    Args:
        network: the module.
        graph: of it, traced with `opaque=True`.
    """
    if not any(node.kind == "opaque" for node in graph):
        return ()
    try:
        trace(network, graph.nodes[0].shape)
    except InputError as error:
        return (f"`paredown run` refuses this network: {error}",)
    return ()


def inspect_graph(
    graph: Graph, target: Target, runtimes: Sequence[str], input_range: tuple[float, float], network: str
) -> Inspection:
    """The same of a traced graph.

    Args:
        graph: traced with `opaque=True`.
        target: the card.
        runtimes: of the target.
        input_range: the smallest and the largest value of the input.
        network: its name.
    """
    integer = quantize(graph, signs(graph, input_range), input_range=input_range)
    placements = tuple(place(graph, integer, target, name) for name in runtimes)
    npu, notes = _vela(integer, target, placements, network)
    notes = [*told(integer, placements), *notes]
    for each in placements:
        if each.dtype != "int8":
            notes.append(f"{each.runtime} has no int8 there: the float network is what it gets, {each.dtype}")
        elif target.runtime(each.runtime).io == "float32":
            notes.append(
                f"{each.runtime} takes and gives float32 there: the ends are quantized in the program"
            )
    return Inspection(network, target.name, graph.nodes[0].shape, graph.macs, placements, npu, tuple(notes))


def _with_low_bits(graph: Graph, recipe: Recipe) -> tuple[Graph, tuple[str, ...]]:
    """The graph with the low-bit activations that SQuantizer would train, and which these are."""
    wanted = recipe.squantize
    bits = wanted.activation_bits if wanted.active else None
    places = clip_places(graph, prunable(graph, ends=wanted.ends)) if bits else ()
    if not bits or not places:
        return graph, ()
    low = [name for place in places for name in place.makers]
    signed = [name for place in places if place.signed for name in place.makers]
    notes = [f"squantize: {len(low)} activations have {2**bits} levels: {', '.join(low)}"]
    if signed:
        notes.append(
            f"squantize: {len(signed)} of them may have levels below zero, and are requantized: "
            f"{', '.join(signed)}"
        )
    if kept := kept_at_8_bits(graph, places):
        notes.append(f"squantize: {len(kept)} activations that layers read keep 8 bits: {', '.join(kept)}")
    return untrained(graph, bits, places), tuple(notes)


def signs(graph: Graph, input_range: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Made-up ranges, from 0 where no value can be negative and from -1 elsewhere; by name of the tensor."""
    ranges = {graph.nodes[0].name: input_range}
    for node in graph.nodes[1:]:
        kind = operation(node.kind)
        kept = kind.keeps_sign and all(ranges[name][0] >= 0 for name in node.inputs)
        ranges[node.name] = (0.0 if kept or kind.is_relu else -1.0, 1.0)
    return ranges


def _vela(
    integer: IntegerGraph, target: Target, placements: Sequence[Placement], network: str
) -> tuple[Compiled | None, list[str]]:
    """What Vela makes of the network, and what there is to say of it."""
    if target.npu is None:
        return None, []
    hopeless = {"refused", "not lowered"}
    if any(operation.place in hopeless for each in placements for operation in each.leaving):
        return None, ["Vela was not asked: the network cannot be compiled as it is"]
    if importlib.util.find_spec("ethosu") is None:
        return None, ["Vela is not installed, so cycles and bytes are missing: pip install ethos-u-vela"]
    from paredown.pipeline.lower.litert.program import lower_integer

    made = compile_for(target, lower_integer(integer).data, where=network)
    notes = [
        f"Vela {made.vela} predicts {made.cycles:,} cycles on {made.accelerator} ({made.system}), "
        f"{made.sram_bytes / 1024:,.1f} KiB of SRAM and {len(made.program) / 1024:,.1f} KiB of flash; "
        f"{len(made.on_cpu)} operators on the CPU, whose cycles it does not know",
        *(operator.line() for operator in made.on_cpu),
    ]
    try:
        fits(target, made.sram_bytes, len(made.program))
    except DeviceError as error:
        notes.append(str(error))
    return made, notes


def _npu_dict(made: Compiled) -> dict[str, Any]:
    return {
        "vela": made.vela,
        "accelerator": made.accelerator,
        "system": made.system,
        "cycles": made.cycles,
        "inferences_per_second": made.inferences_per_second,
        "sram_bytes": made.sram_bytes,
        "flash_bytes": len(made.program),
        "on_cpu": [operator.line() for operator in made.on_cpu],
    }
