"""Files for targets that nothing here can run: Core ML, Vulkan, and browsers that take no int8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paredown.pipeline.recipe.schema import Lower, Recipe
from paredown.pipeline.run.image.job import ImageJob
from paredown.pipeline.run.job import Settings, Tick, images_only
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.stage import plan, run_stage
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
    tell: Tell = nobody,
    tick: Tick = lambda done, total: None,
) -> tuple[Exported, ...]:
    """Makes the target's files of a recipe's network, pruned and trained as the recipe says.

    Float networks for Core ML and Vulkan; the integer graph, which quantizes and dequantizes itself, where a
    runtime takes float32 only. The weights of a SQuantizer pass are what is shipped in both.

    Args:
        recipe: resolved.
        target: the card.
        folder: where the files go, and the store of stages.
        smoke: every stage on a handful of samples.
        tell: hears of events.
        tick: progress within a stage.

    Raises:
        UsageError: the target takes bundles: `run` is for it.
    """
    images_only(recipe, "export")
    if not target.export_only and all(there.io is None for there in target.runtimes.values()):
        raise UsageError("takes a bundle", where=f"target {target.name}", hint="use `paredown run`")
    recipe = recipe.model_copy(update={"lower": Lower(runtimes=tuple(target.runtimes))})
    store = Store(folder / ".store")
    job = ImageJob(Settings(folder.name, recipe, target, store, smoke, tell=tell, tick=tick), exported=True)
    made = []
    for name, there in target.runtimes.items():
        for stage in plan([job.trace if there.io is None else job.integer]):
            run_stage(store, stage, tell, prepare=job.prepare)
        tell(Event(f"export-{name}", "running"))
        if there.io is not None:
            from paredown.pipeline.lower.litert import program as litert

            lowered, dtype = litert.lower_integer(job.integer_graph(), io=there.io), str(there.io)
        else:
            from paredown.pipeline.lower.executorch import program as executorch

            lowered, dtype = executorch.lower_float(job.graph(), there.delegate), "float32"
        path = folder / target.name / f"model{'.tflite' if name == 'litert' else '.pte'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lowered.data)
        tell(Event(f"export-{name}", "done"))
        made.append(Exported(path, str(name), there.delegate, dtype, lowered.subgraphs, lowered.undelegated))
    return tuple(made)
