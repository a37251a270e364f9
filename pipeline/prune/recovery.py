"""Recovery as a recipe asks for it: from the task's data and losses to a call of `pipeline.recover`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from calibration.datasets import Dataset
from pipeline.graph import Graph
from pipeline.prune.coupling import couple
from pipeline.prune.flow import Flow
from pipeline.prune.samples import run_graph
from pipeline.prune.sparsify import SparsitySchedule, prunable, prune_weights
from pipeline.prune.thinner import Thinner
from pipeline.recipe import Recipe
from pipeline.recover import Recovered, recover
from pipeline.recover_config import RecoverConfig
from pipeline.recover_data import agreement, evaluator, preprocessed
from pipeline.recover_features import FeatureTap
from pipeline.task import Outputs, Task

SMOKE_STEPS = 2
AGREEMENT = "agreement"
"""What a recovery is judged by where there are no labels: minus the distillation loss."""


def recovered(
    recipe: Recipe,
    task: Task,
    graph: Graph,
    student: nn.Module,
    kept: Mapping[str, Sequence[int]],
    training: Dataset,
    held_out: Dataset,
    truth: Callable[[Dataset, Outputs], Dataset],
    checkpoint: Path,
    smoke: bool,
    tick: Callable[[int, int], None],
) -> tuple[Recovered, str]:
    """Recovers a cut network, and says what it was judged by.

    Held-out images with labels are scored. Without, what counts is how near the outputs are to the original's
    (minus the distillation loss): a score on the original's own findings hangs on the few boxes near its
    threshold, and picks by chance.

    Args:
        recipe: its sections [prune] and [recover].
        task: gives batches, losses, features and the score.
        graph: the original's.
        student: the cut network.
        kept: what the cut kept, of `couple(graph)`.
        training: images to train on.
        held_out: images that decide which average comes back.
        truth: checks the held-out images' labels, and adds them where some have none.
        checkpoint: where to resume from.
        smoke: a step or two.
        tick: progress.
    """
    wanted = recipe.recover
    batches = task.batches(training, min(wanted.batch, len(training)), wanted.seed)
    has_labels = batches(0)[1] is not None
    method = ("both" if has_labels else "distil") if wanted.method == "auto" else wanted.method
    epochs = SMOKE_STEPS / batches.per_epoch if smoke else wanted.epochs
    steps = max(1, round(epochs * batches.per_epoch))
    share, weights = recipe.prune.weight_sparsity, prunable(graph)

    if has_labels:
        outputs = run_graph(graph, preprocessed(held_out, task.preprocess))
        measure, evaluate = task.metric, evaluator(task, truth(held_out, outputs))
    else:
        measure, evaluate = AGREEMENT, agreement(task, held_out, task.network())

    if not wanted.epochs:  # no training: weights go at once
        zeros = prune_weights(student, share, weights) if share else ()
        value = evaluate(student)
        return Recovered(student, (), value, value, 0, 0, False, zeros), measure
    config = RecoverConfig(
        method=method, epochs=epochs, lr=wanted.lr, warmup=wanted.warmup, weight_decay=wanted.weight_decay,
        ema=wanted.ema, distil_weight=wanted.distil_weight, feature_weight=wanted.feature_weight,
        evaluate_every=max(1, steps // wanted.evaluations), patience=wanted.patience, seed=wanted.seed,
    )  # fmt: skip
    schedule = SparsitySchedule(share, weights) if share else None

    result = recover(
        student, batches, config, label_loss=task.loss, teacher=task.network(), distil=task.distillation,
        features=_taps(graph, kept, task.features()), evaluate=evaluate, sparsity=schedule,
        checkpoint=checkpoint, identity=training.fingerprint() + held_out.fingerprint(), tick=tick,
    )  # fmt: skip
    return result, measure


def _taps(graph: Graph, kept: Mapping[str, Sequence[int]], paths: Sequence[str]) -> tuple[FeatureTap, ...]:
    """Where the student's features are compared, with the channels of the original that it still has."""
    if not paths:
        return ()
    thinner = Thinner(Flow(graph), couple(graph), kept)
    names = {node.name for node in graph}
    taps = []
    for path in paths:
        node = next(
            (n for n in (path, *sorted(n for n in names if n.startswith(f"{path}."))) if n in names), None
        )
        if node is not None:
            taps.append(FeatureTap(path, tuple(thinner.rows(node))))
    return tuple(taps)
