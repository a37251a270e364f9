"""The data of a recovery: a validation part of the training images, and the metric on it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.recipe.task import Outputs, Task, metric_alone
from paredown.targets.errors import InputError


class ImageSubset:
    """Some of a data set's images, as a data set of its own.

    Args:
        data: the whole set.
        chosen: indices into it, in their order.
    """

    def __init__(self, data: Dataset, chosen: Sequence[int]) -> None:
        self._data, self._chosen = data, tuple(chosen)
        self.names = data.names

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self._chosen):
            raise IndexError(f"image {index} of {len(self._chosen)}")
        return self._data[self._chosen[index]]

    def fingerprint(self) -> str:
        """Of the whole set and the choice."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(f"{self._data.fingerprint()}:{self._chosen}".encode()).hexdigest()


def split(data: Dataset, share: float, seed: int, most: int | None = None) -> tuple[ImageSubset, ImageSubset]:
    """Takes a validation part out of the training images, by chance.

    Args:
        data: the training images.
        share: of the images that go into the validation part; at least one does.
        seed: of the choice.
        most: at most this many go there.

    Returns:
        The training part and the validation part, both in the order of the data.

    Raises:
        InputError: fewer than two images.
    """
    if len(data) < 2:
        raise InputError(f"{len(data)} training images cannot be split in two", where="recover")
    count = min(max(1, round(share * len(data))), most or len(data), len(data) - 1)
    order = np.random.default_rng([seed, 3]).permutation(len(data))
    return ImageSubset(data, sorted(order[count:].tolist())), ImageSubset(
        data, sorted(order[:count].tolist())
    )


def run_network(network: nn.Module, inputs: Tensor, batch: int = 16) -> Outputs:
    """A network's outputs for each of these inputs (N, C, H, W), each with its batch of one."""
    found: list[tuple[np.ndarray, ...]] = []
    with torch.no_grad():
        for part in inputs.split(batch):
            outputs = network(part)
            arrays = [o.numpy() for o in ((outputs,) if isinstance(outputs, Tensor) else outputs)]
            found += [tuple(a[index : index + 1] for a in arrays) for index in range(len(part))]
    return found


def preprocessed(data: Dataset, preprocess: AnyInput) -> Tensor:
    """Every image of the data as the network's input, (N, C, H, W) float32."""
    return torch.from_numpy(np.stack([preprocess(data[index].image) for index in range(len(data))]))


def evaluator(task: Task, data: Dataset, original: nn.Module | None = None) -> Callable[[nn.Module], float]:
    """The task's metric on a validation part, of any network.

    Args:
        task: scores.
        data: the validation part; its inputs are kept in memory.
        original: says what is in the images that have no labels; None = all of them have.
    """
    inputs = preprocessed(data, task.preprocess)
    if original is not None:
        data = task.pseudo_labelled(run_network(original.eval(), inputs), data)
    truth = data

    def evaluate(network: nn.Module) -> float:
        return metric_alone(task, run_network(network, inputs), truth)

    return evaluate


def agreement(
    task: Task, data: Dataset, original: nn.Module, batch: int = 16
) -> Callable[[nn.Module], float]:
    """How well any network agrees with the original on a validation part: minus the distillation loss.

    For images without labels: it is much less noisy than a metric on the original's own findings, since every
    output counts and not only those over a threshold.

    Args:
        task: has the distance.
        data: the validation part; its inputs and the original's outputs are kept in memory.
        original: the network to agree with.
        batch: images at once.
    """
    parts = preprocessed(data, task.preprocess).split(batch)
    with torch.no_grad():
        wanted = [original.eval()(part) for part in parts]

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            losses = [task.distillation(network(x), y) * len(x) for x, y in zip(parts, wanted, strict=True)]
        return -float(torch.stack(losses).sum()) / len(data)

    return evaluate


def nearness(task: Task, wanted: Outputs) -> Callable[[Outputs], tuple[float, float, float]]:
    """Of some outputs: minus their distillation loss, image by image, with its 95 % confidence interval.

    Args:
        task: has the distance.
        wanted: the outputs to be near to, of images in the order of those that are scored.
    """
    theirs = [_as_returned(outputs) for outputs in wanted]

    def score(found: Outputs) -> tuple[float, float, float]:
        pairs = zip(found, theirs, strict=False)
        losses = np.array([float(task.distillation(_as_returned(ours), other)) for ours, other in pairs])
        mean, half = -losses.mean(), 1.96 * losses.std() / len(losses) ** 0.5
        return float(mean), float(mean - half), float(mean + half)

    return score


def _as_returned(outputs: tuple[np.ndarray, ...]) -> Tensor | tuple[Tensor, ...]:
    """Arrays as a network returns them."""
    tensors = tuple(torch.from_numpy(array) for array in outputs)
    return tensors[0] if len(tensors) == 1 else tensors


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
