"""paredown against torch-pruning 1.6.1 at equal MACs: accuracy before and after an equal recovery.

    python bench/versus_torch_pruning.py resnet56 --cifar CIFAR   # CIFAR: bench/cifar.py makes it
    python bench/versus_torch_pruning.py resnet56 --cifar CIFAR prune.macs=0.4
    python bench/versus_torch_pruning.py yolo

torch-pruning runs as its documentation has it: magnitude importance (L2), uniform or global ratios; where
there are labels its first-order Taylor importance too, of the loss on 16 training batches, global. The ratio
is found by bisection so that its network has at most our MACs. It gets the same recovery: the same batches,
steps, seed, learning rate, teacher and losses; and, in the rows that say so, its batch norm re-estimated on
the images that ours is reconstructed on. Widths are unaligned for all (multiple 1), which suits torch-pruning
best. Prints Markdown, a row per method, mean and standard deviation over the seeds. With --runs a killed run
goes on with the next method.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import data, make_run
from record import Table, add_option
from torch import Tensor, nn

from paredown.pipeline.compress.training.bn_recalibration import recalibrate
from paredown.pipeline.compress.training.data import preprocessed, run_network
from paredown.pipeline.compress.training.setup import TrainingSetup
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.prune_stages import PruneStages
from paredown.pipeline.store.files import write_json

SETTINGS = {
    "resnet56": ("prune.macs=0.5", "recover.batch=64", "recover.lr=0.01"),
    "yolo": ("prune.macs=0.6", "recover.batch=16", "recover.lr=0.001"),
}


TAYLOR_BATCHES = 16
Gradients = dict[str, Tensor]


def training_batches(task: Task, pruning: PruneStages) -> list[tuple[Any, Any]]:
    """The first batches of a recovery."""
    recover = pruning.recipe.recover
    batches = task.batches(pruning.training.held_out()[0], recover.batch, recover.seed)
    return [batches(step) for step in range(TAYLOR_BATCHES)]


def gradients(network: nn.Module, task: Task, batches: list[tuple[Any, Any]]) -> Gradients:
    """The loss's gradient, the sum of these batches, by parameter."""
    for parameter in network.eval().parameters():
        parameter.requires_grad_(True)
    for images, labels in batches:
        task.loss(network(images), labels).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def torch_pruned(
    network: nn.Module, shape: tuple[int, ...], macs: int, whole: bool, taylor: Gradients | None = None
) -> nn.Module:
    """torch-pruning's network of at most these MACs, the largest that bisection of its ratio finds."""
    import torch_pruning

    importance = torch_pruning.importance
    judge = importance.GroupTaylorImportance() if taylor else importance.MagnitudeImportance(p=2)

    outputs = {node for node in trace(network, shape).outputs}
    best: tuple[int, nn.Module] | None = None
    low, high = 0.0, 0.95
    for _ in range(12):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(network)
        for name, parameter in candidate.named_parameters():
            parameter.requires_grad_(True)
            if taylor:
                parameter.grad = taylor[name].clone()
        ignored = [m for name, m in candidate.named_modules() if name in outputs or name.startswith("head")]
        pruner = torch_pruning.pruner.MagnitudePruner(
            candidate, torch.zeros(shape), judge, global_pruning=whole, pruning_ratio=ratio,
            ignored_layers=ignored,
        )  # fmt: skip
        pruner.step()
        have = trace(candidate.eval(), shape).macs
        if have <= macs:
            high = ratio
            best = (have, candidate) if best is None or have > best[0] else best
        else:
            low = ratio
    assert best is not None
    return best[1]


def after(task: Task, student: nn.Module, pruning: PruneStages, steps: int) -> nn.Module:
    """The same recovery for whoever asks."""
    training, held_out = pruning.training.held_out()
    recover = pruning.recipe.recover
    epochs = steps / task.batches(training, recover.batch, recover.seed).per_epoch
    schedule = {"epochs": epochs, "warmup": 10, "ema": 0.95, "evaluations": 4, "patience": 10}
    setup = TrainingSetup(
        recover.model_copy(update=schedule), task, pruning.groups()[1], training, held_out,
        pruning.training.truth, None,
        False, lambda done, total: None,
    )  # fmt: skip
    return setup.train(student, setup.evaluation()[1]).network


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=tuple(SETTINGS))
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--cifar", type=Path, default=Path("cifar"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--runs", type=Path, default=None, help="keep the store here")
    add_option(parser)
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    root = arguments.runs or Path(tempfile.mkdtemp())
    rows: dict[str, list[tuple[float, float, float]]] = {}
    kind = "-".join([arguments.case, str(arguments.steps), *arguments.more])
    log = root / f"versus-{kind}.json"
    known: dict[str, list[float]] = json.loads(log.read_text()) if log.exists() else {}
    original = 0.0
    for seed in range(arguments.seeds):
        asked = [*data(arguments.case, arguments.cifar.absolute()), *SETTINGS[arguments.case]]
        work = make_run(
            arguments.case, [*asked, *arguments.more, "prune.multiple=1", f"recover.seed={seed}"], root
        )
        task, pruning = work.job.task, work.job.pruning
        work.reach([pruning.prune])
        test = task.data("test")
        inputs = preprocessed(test, task.preprocess)
        shape = (1, *inputs.shape[1:])

        def score(network: nn.Module, test: Any = test, inputs: Tensor = inputs, task: Task = task) -> float:
            return task.score_outputs(run_network(network, inputs), test)[task.metric]

        original = score(task.network())
        whole, ours = trace(task.network(), shape).macs, pruning.pruned()
        macs = trace(ours, shape).macs
        calibration = list(pruning.training.inputs(pruning.training.held_out()[0]).split(32))

        def normed(make: Callable[[], nn.Module], images: list[Tensor] = calibration) -> nn.Module:
            network = make().eval()
            recalibrate(network, images)
            return network

        def uniform(task: Task = task, shape: Any = shape, macs: int = macs) -> nn.Module:
            return torch_pruned(task.network(), shape, macs, whole=False).eval()

        def overall(task: Task = task, shape: Any = shape, macs: int = macs) -> nn.Module:
            return torch_pruned(task.network(), shape, macs, whole=True).eval()

        batches = training_batches(task, pruning)

        def taylor(
            task: Task = task, shape: Any = shape, macs: int = macs, batches: Any = batches
        ) -> nn.Module:
            found = gradients(task.network(), task, batches)
            return torch_pruned(task.network(), shape, macs, whole=True, taylor=found).eval()

        methods = {
            "paredown": lambda ours=ours: ours,
            "torch-pruning, uniform": uniform,
            "torch-pruning, uniform, BN re-estimated": lambda make=uniform: normed(make),
            "torch-pruning, global": overall,
            "torch-pruning, global, BN re-estimated": lambda make=overall: normed(make),
        }
        if batches[0][1] is not None:
            methods["torch-pruning, Taylor, global"] = taylor
            methods["torch-pruning, Taylor, global, BN re-estimated"] = lambda make=taylor: normed(make)
        for name, make in methods.items():
            if (key := f"{seed}: {name}") not in known:
                student = make()
                before, share = score(student), trace(student, shape).macs / whole
                known[key] = [share, before, score(after(task, student, pruning, arguments.steps))]
                write_json(log, known)
            row = (known[key][0], known[key][1], known[key][2])
            rows.setdefault(name, []).append(row)
            print(f"seed {seed}, {name}: MACs {row[0]:.3f}, {row[1]:.4f} -> {row[2]:.4f}", file=sys.stderr)
    print(f"original {original:.4f}; {arguments.steps} steps of recovery, {arguments.seeds} seeds\n")
    heads = ("method", "MACs", "before recovery", "after")
    with Table(f"versus-{arguments.case}", heads, arguments.record) as table:
        for name, found in rows.items():
            shares, befores, afters = zip(*found, strict=True)
            cells = [f"{statistics.mean(v):.4f} ± {statistics.pstdev(v):.4f}" for v in (befores, afters)]
            table.row(name, f"{statistics.mean(shares):.3f}", *cells)


if __name__ == "__main__":
    main()
