"""Batches and outputs of samples, as ranking and sensitivity want them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from calibration.datasets import Dataset
from pipeline.graph import Graph
from pipeline.recover_data import preprocessed
from pipeline.task import Outputs, Task


def run_graph(graph: Graph, inputs: Tensor, batch: int = 16) -> Outputs:
    """A graph's outputs for each of these inputs (N, C, H, W), each with its batch of one."""
    found: list[tuple[np.ndarray, ...]] = []
    for part in inputs.split(batch):
        values = graph.run(part)
        arrays = [values[name].numpy() for name in graph.outputs]
        found += [tuple(a[index : index + 1] for a in arrays) for index in range(len(part))]
    return found


def labelled_batches(
    task: Task, graph: Graph, data: Dataset, batch: int = 16, seed: int = 0
) -> Iterator[tuple[Tensor, object]]:
    """Training batches with labels, for gradients; images without any get what the network finds there."""
    truth = task.pseudo_labelled(run_graph(graph, preprocessed(data, task.preprocess)), data)
    batches = task.batches(truth, min(batch, len(truth)), seed)
    for step in range(batches.per_epoch):
        yield batches(step)
