"""A latency table of a recipe's network, measured on a device: what `prune.latency_table` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paredown.pipeline.compress.allocate.cost import Cost, group_widths
from paredown.pipeline.compress.coupling.trial import couple_on_trial
from paredown.pipeline.device.executor import Executor, stands_for
from paredown.pipeline.device.latency.latency import device_table, latency
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.cards.card import ChannelMultiple, Target
from paredown.targets.errors import UsageError


def measure_cost(
    recipe: Recipe,
    target: Target,
    runtime: str,
    executor: Executor,
    path: Path,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Cost:
    """Measures every layer of the recipe's network at the widths that pruning could choose.

    Args:
        recipe: resolved; its network, and the multiples and number of widths of its `prune` section.
        target: the card that the table is for.
        runtime: whose programs are measured.
        executor: runs them on the device.
        path: of the table; what it holds of the same device is not measured again.
        tick: layers measured, of how many.

    Returns:
        The predicted cost of the network at any widths.

    Raises:
        UsageError: this machine is to stand for another target.
    """
    if not stands_for(executor, target):
        raise UsageError(
            f"this machine is no {target.name}, and its times are not those of one",
            hint="give --device, or --target host",
        )
    task = load_task(recipe)
    network = task.network()
    graph = trace(network, task.preprocess.input_shape)
    groups = couple_on_trial(network, graph)
    kinds = target.channel_multiple.model_dump()
    multiple = ChannelMultiple(**{kind: recipe.prune.multiple or value for kind, value in kinds.items()})
    widths = {
        group.name: tuple(group_widths(graph, group, multiple, recipe.prune.widths))
        for group in groups
        if not group.locked
    }
    return latency(graph, groups, device_table(target, runtime, path, executor, tick=tick), widths)
