"""What the artefacts of an image job hold: graphs, programs, ways of predicting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset
from paredown.pipeline.lower.runtimes import float_predict, runtime
from paredown.pipeline.recipe.task import Predict
from paredown.pipeline.run.job import program_in
from paredown.pipeline.store.files import read_graph, read_json, write_graph, write_json

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import IntegerGraph

BATCH = 4
FLOATS = ("fp32", "pruned", "squantized")
SIZE = "size.json"
NOTES = "notes.json"  # of a tracing stage, where there is anything to say


def graph_in(folder: Path) -> Graph:
    """The float graph of a tracing stage's artefact."""
    from paredown.pipeline.graph.graph import Graph

    return Graph.load(*read_graph(folder))


def integer_in(folder: Path) -> IntegerGraph:
    """The integer graph of a stage's artefact."""
    from paredown.pipeline.lower.integer import IntegerGraph

    return IntegerGraph.load(*read_graph(folder))


def write_traced(out: Path, graph: Graph, notes: Sequence[str] = ()) -> None:
    """The artefact of a tracing stage, with what there is to say of how the network was read."""
    write_graph(out, *graph.dump())
    if notes:
        write_json(out / NOTES, list(notes))
    write_json(out / SIZE, {"macs": graph.macs, "parameters": graph.parameters})


def traced_notes(folder: Path) -> list[str]:
    """What there is to say of how the network of a tracing stage was read."""
    path = folder / NOTES
    return [str(note) for note in read_json(path)] if path.exists() else []


def write_lowered(out: Path, lowered: Any) -> None:
    """The artefact of a lowering stage."""
    (out / "program").write_bytes(lowered.data)
    facts = {"subgraphs": lowered.subgraphs, "undelegated": list(lowered.undelegated)}
    write_json(out / "lowered.json", facts)


def predictor(variant: str, made: Path, integer: Path | None) -> Predict:
    """A way of predicting.

    Args:
        variant: one of `FLOATS`, "integer", or a runtime.
        made: the artefact that predicts: a traced graph, an integer graph, a program.
        integer: the integer graph of a runtime's program; None of one in float32.
    """
    if variant in FLOATS:
        return _torch_predict(graph_in(made))
    if variant == "integer":
        from paredown.pipeline.lower import reference

        graph = integer_in(made)
        return _real(graph, lambda codes: reference.predict(graph, codes))
    program = runtime(variant).load(program_in(made), 1, variant)
    return program if integer is None else _real(integer_in(integer), program)


def all_integers(folder: Path) -> bool:
    """Whether every operation of an integer graph is integer arithmetic, the same in batches of any size."""
    from paredown.pipeline.graph.operations.kinds import operation

    kinds = [operation(node.kind) for node in integer_in(folder)]
    return not any(kind.island or kind.tolerance for kind in kinds)


def in_batches(predict: Predict, data: Dataset, preprocess: AnyInput, size: int = BATCH) -> Predict:
    """The same way of predicting, for the images of a data set in their order, some at a time.

    Only for what gives the very same numbers in batches: integer arithmetic. It takes a third less time.

    Args:
        predict: of a batch of any size.
        data: the images that will be asked for, one after the other.
        preprocess: from an image to the network's input.
        size: images at once.
    """
    ahead: list[tuple[NDArray[np.float32], ...]] = []
    place = 0

    def next_one(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        nonlocal place
        if not ahead:
            inputs = [preprocess(data[i].image) for i in range(place, min(place + size, len(data)))]
            found = predict(np.stack(inputs))
            ahead.extend(tuple(part[i : i + 1] for part in found) for i in range(len(inputs)))
        place += 1
        return ahead.pop(0)

    return next_one


def _real(graph: IntegerGraph, codes: Callable[[NDArray[np.int8]], tuple[NDArray[np.int8], ...]]) -> Predict:
    return float_predict(graph.input.out, [graph[name].out for name in graph.outputs], codes)


def _torch_predict(graph: Graph) -> Predict:
    import torch

    def predict(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        values = graph.run(torch.from_numpy(x))
        return tuple(values[name].numpy() for name in graph.outputs)

    return predict
