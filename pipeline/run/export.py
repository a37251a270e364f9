"""Files for targets that nothing here can run: Core ML, Vulkan, and browsers that take no int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paredown.pipeline.recipe.schema import Lower, Recipe
from paredown.pipeline.recipe.task import load_task
from paredown.pipeline.run.image.stages import Stages
from paredown.pipeline.store.stage import run_stage
from paredown.pipeline.store.store import Store, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import UsageError


@dataclass(frozen=True)
class Exported:
    """A file that was made and never run.

    Attributes:
        path: of the file.
        runtime: that reads it.
        delegate: that executes it there.
        dtype: of inputs and outputs.
        segments: how many delegate calls an inference makes; one is the aim.
        undelegated: operations outside the delegate.
    """

    path: Path
    runtime: str
    delegate: str
    dtype: str
    segments: int
    undelegated: tuple[str, ...]


def export(
    recipe: Recipe,
    target: Target,
    folder: Path,
    *,
    smoke: bool = False,
    log: Callable[[str], None] = lambda line: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Exported, ...]:
    """Makes the target's files of a recipe's network, pruned and trained as the recipe says.

    Float networks for Core ML and Vulkan; the integer graph, which quantizes and dequantizes itself, where a
    runtime takes float32 only. The weights of a SQuantizer pass are what is shipped in both.

    Args:
        recipe: resolved.
        target: the card.
        folder: where the files go, and the store of stages.
        smoke: every stage on a handful of samples.
        log: told one line per stage.
        tick: progress within a stage.

    Raises:
        UsageError: the target takes bundles: `run` is for it.
    """
    if not target.export_only and all(there.io is None for there in target.runtimes.values()):
        raise UsageError("takes a bundle", where=f"target {target.name}", hint="use `paredown run`")
    recipe = recipe.model_copy(update={"lower": Lower(runtimes=tuple(target.runtimes))})
    store = Store(folder / ".store")
    stages = Stages(recipe, load_task(recipe), store, target, smoke, tick)
    made = []
    for name, there in target.runtimes.items():
        todo = [stages.original, *(stages.pruning.all() if recipe.prune.active else ())]
        todo += [stages.squantizing.squantize] if recipe.squantize.active else []
        if there.io is not None:
            todo += [stages.calibrate, stages.integer]
        for stage in todo:
            run_stage(store, stage, log)
        log(f"export-{name}: running")
        if there.io is not None:
            from paredown.pipeline.lower.litert import program as litert

            lowered, dtype = litert.lower_integer(stages.integer_graph(), io=there.io), str(there.io)
        else:
            from paredown.pipeline.lower.executorch import program as executorch

            lowered, dtype = executorch.lower_float(stages.graph(), there.delegate), "float32"
        path = folder / target.name / f"model{'.tflite' if name == 'litert' else '.pte'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lowered.data)
        log(f"export-{name}: done")
        made.append(Exported(path, str(name), there.delegate, dtype, lowered.subgraphs, lowered.undelegated))
    return tuple(made)
