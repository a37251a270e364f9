"""Recovery: the accuracy that pruning cost is won back, from labels or from the original network.

SGD with Nesterov's momentum, a warm-up, a cosine, an average of the weights, and an early stop on a
validation part of the training data: what comes back is the best average that was met, and what was given
is a candidate too, so it never comes back worse (our design, from usual parts). Single weights can be made
zero meanwhile; see `pipeline.compress.training.sparsify`.

A run is a pure function of its settings, the networks and the batches: what a step does depends on its
number only, so a resumed run ends where an uninterrupted one would have, bit for bit, on the same machine
with the same number of threads (the caller sets it, `torch.set_num_threads`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.ranks import ranks
from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.features import FeatureTap, Listener, feature_loss
from paredown.pipeline.compress.training.loop import (
    decayed_groups,
    descend,
    device_name,
    explained,
    fit,
    learning_rate,
    memory_order,
    reorder,
    run_identity,
    update_average,
)
from paredown.pipeline.compress.training.sparsify import (
    LayerSparsity,
    SparsitySchedule,
    apply_masks,
    grow_masks,
    layer_sparsity,
    prune_weights,
    sparsest,
)
from paredown.pipeline.recipe.task import Batches
from paredown.pipeline.store.checkpoint import damaged, load_run, save_checkpoint
from paredown.targets.errors import InputError, UsageError

#: The network's outputs and the labels, or the teacher's outputs, to a scalar tensor.
Loss = Callable[[Any, Any], Tensor]
#: A network in evaluation mode, on the CPU, to a metric; more is better.
Evaluate = Callable[[nn.Module], float]

# What a checkpoint holds beside the networks and the optimizer.
_PLAIN_STATE = (
    "identity", "step", "losses_seen", "history", "baseline", "best", "best_step", "best_state",
    "without_gain", "masks", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Recovered:
    """What a recovery gave.

    Attributes:
        network: a new network, in eval mode, on the CPU; the one that was given is unchanged.
        history: per evaluation its step and epoch, the mean loss since the one before, the learning rate, the
            share of zeros where weights are pruned, and the metric where it was evaluated.
        baseline: the metric before the first step (weights pruned at once where they are), None without.
        best: the metric of `network`, None where nothing was evaluated.
        best_step: the step after which it was reached; 0 = nothing was gained.
        steps: steps taken.
        stopped_early: whether patience ran out.
        sparsity: zeros per pruned parameter of `network`; empty where none is.
        seconds: what it took, evaluations included; of a resumed run all its parts.
        device: where it was trained, "cpu" or the name of a GPU.
    """

    network: nn.Module
    history: tuple[Mapping[str, float], ...]
    baseline: float | None
    best: float | None
    best_step: int
    steps: int
    stopped_early: bool
    sparsity: tuple[LayerSparsity, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    device: str = "cpu"

    def facts(self) -> dict[str, Any]:
        """How it went, as JSON has it: what `pipeline.report.markdown.training_notes` says."""
        return {
            "baseline": self.baseline, "best": self.best, "best_step": self.best_step, "steps": self.steps,
            "stopped_early": self.stopped_early, "history": [dict(row) for row in self.history],
            "seconds": round(self.seconds, 1), "device": self.device,
        }  # fmt: skip


@dataclass(frozen=True)
class _Losses:
    """What is minimised: the terms, and where they come from."""

    config: RecoverConfig
    label_loss: Loss | None
    distil: Loss | None
    teacher: nn.Module | None
    taps: tuple[FeatureTap, ...]

    def __post_init__(self) -> None:
        method = self.config.method
        if method != "distil" and self.label_loss is None:
            raise UsageError(f"method {method!r} needs a loss on labels", where="recover")
        if method != "labels" and (self.teacher is None or self.distil is None):
            raise UsageError(
                f"method {method!r} needs the original network as teacher, and a distance from it",
                where="recover",
                hint="use method 'labels' where the images have labels",
            )

    def __call__(self, student: nn.Module, images: Tensor, labels: Any, heard: _Heard) -> Tensor:
        config, outputs = self.config, student(images)
        terms: list[Tensor] = []
        if config.method != "distil" and labels is not None:
            assert self.label_loss is not None
            terms.append(self.label_loss(outputs, labels))
        elif config.method == "labels":
            raise InputError(
                "images without labels", where="recover", hint="use method 'distil': it needs none"
            )
        if config.method != "labels":
            assert self.teacher is not None and self.distil is not None
            with torch.no_grad():
                theirs = self.teacher(images)
            terms.append(config.distil_weight * self.distil(outputs, theirs))
            if self.taps:
                loss = feature_loss(heard.student.take(), heard.teacher.take(), self.taps)
                terms.append(config.feature_weight * loss)
        return torch.stack([term.reshape(()) for term in terms]).sum()


@dataclass(frozen=True)
class _Heard:
    """The features of both networks."""

    student: Listener
    teacher: Listener


class _Run:
    """The state of a recovery: networks, optimizer, masks, the best so far, and how far it is."""

    def __init__(
        self,
        student: nn.Module,
        batches: Batches,
        config: RecoverConfig,
        losses: _Losses,
        evaluate: Evaluate | None,
        sparsity: SparsitySchedule | None,
        identity: str,
    ) -> None:
        self.config, self.batches, self.losses = config, batches, losses
        self.evaluate, self.sparsity = evaluate, sparsity
        self.heard: _Heard  # while it is listened to
        self.ranks = ranks()
        self.steps, self.step = max(1, round(config.epochs * batches.per_epoch)), 0
        self.every = config.evaluate_every or batches.per_epoch
        if sparsity and sparsity.target > (most := sparsest(student, sparsity.weights, sparsity.floor)):
            raise UsageError(
                f"a weight sparsity of {sparsity.target:g} leaves less than every layer has to keep",
                where="recover",
                hint=f"at most {most:.4g} can be reached, or lower the floor (it was {sparsity.floor:g})",
            )
        self.identity = identity
        # The average stays in torch's own order of memory: it is evaluated as it will be used.
        self.average = copy.deepcopy(student).to(config.device).eval()
        self.network = copy.deepcopy(self.average).train()
        if config.norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):  # what all of them are
                    module.eval()
        self.order = memory_order(student)
        reorder(self.network, self.order)
        self.optimizer = _optimizer(self.network, config)
        self.masks: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.losses_seen = [0.0, 0.0]  # sum and number since the last evaluation
        self.seconds = 0.0  # up to the last step
        self.baseline: float | None = None
        self.best: float | None = None
        self.best_step = self.without_gain = 0
        self.best_state: dict[str, Tensor] = {}

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self.without_gain >= self.config.patience

    def begin(self) -> None:
        """Evaluates what was given: the candidate that all others have to beat."""
        if self.evaluate is None:
            return
        start = self._snapshot()
        if self.sparsity:
            prune_weights(start, self.sparsity.target, self.sparsity.weights, self.sparsity.floor)
        self.baseline = self.best = self.ranks.mean(float(self.evaluate(start)))
        self.best_state = start.state_dict()

    def advance(self) -> float:
        """Takes a step, gives the loss; where that or the gradient is not finite, takes none and gives it."""
        images, labels = self.ranks.share(*self.batches(self.step))
        device = self.config.device
        order = self.order if images.ndim == 4 else torch.preserve_format
        images = images.to(device, memory_format=order)
        if isinstance(labels, Tensor):
            labels = labels.to(device)
        cards = range(torch.cuda.device_count() if device.startswith("cuda") else 0)
        with torch.random.fork_rng(cards):  # what the network draws depends on the step alone
            torch.manual_seed(self.config.seed * 1_000_003 + self.step + 2**40 * self.ranks.rank)
            with explained(device):
                loss = self.losses(self.network, images, labels, self.heard)
        value = descend(
            loss, self.optimizer, self.network.parameters(), clip=self.config.clip, device=device,
            rate=learning_rate(self.config, self.step, self.steps),
            mask=lambda: apply_masks(self.network, self.masks, gradients=True), ranks=self.ranks,
        )  # fmt: skip
        if not math.isfinite(value):
            return value
        self.ranks.average_statistics(self.network)
        apply_masks(self.network, self.masks)
        update_average(self.average, self.network, self.step, self.config.ema)
        self.step += 1
        self._sparsify()
        self.losses_seen[0] += value
        self.losses_seen[1] += 1
        return value

    def _sparsify(self) -> None:
        plan = self.sparsity
        if plan is None or not plan.due(self.step, self.steps):
            return
        share = plan.at(self.step, self.steps)
        self.masks = grow_masks(self.network, plan.weights, share, plan.floor, self.masks or None)
        apply_masks(self.network, self.masks)
        apply_masks(self.average, self.masks)

    def look(self) -> dict[str, float]:
        """Evaluates the average, keeps it where it is the best, and gives the history's new row."""
        total, count = self.losses_seen
        self.losses_seen = [0.0, 0.0]
        row: dict[str, float] = {
            "step": self.step,
            "epoch": self.step / self.batches.per_epoch,
            "loss": total / max(1, count),
            "lr": learning_rate(self.config, self.step - 1, self.steps),
        }
        if self.sparsity:
            row["sparsity"] = self.sparsity.at(self.step, self.steps) if self.masks else 0.0
        # While weights are still being taken away the average is not what was asked for.
        settled = self.sparsity is None or self.step >= self.sparsity.last(self.steps)
        if self.evaluate is not None and settled:
            candidate = self._snapshot()
            row["metric"] = metric = self.ranks.mean(float(self.evaluate(candidate)))
            if not metric <= _number(self.best) and math.isfinite(metric):
                self.best, self.best_step, self.without_gain = metric, self.step, 0
                self.best_state = candidate.state_dict()
            else:
                self.without_gain += 1
        self.history.append(row)
        return row

    def _snapshot(self) -> nn.Module:
        return copy.deepcopy(self.average).cpu().eval()

    def result(self) -> Recovered:
        """The best average, or the last where none was evaluated."""
        network = self._snapshot()
        if self.evaluate is not None:
            network.load_state_dict(self.best_state)
        zeros = layer_sparsity(network, self.sparsity.weights) if self.sparsity else ()
        scores = (self.baseline, self.best, self.best_step)
        name = device_name(self.config.device)
        history = tuple(self.history)
        return Recovered(network, history, *scores, self.step, self.stopped, zeros, self.seconds, name)

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs; of several processes the first does."""
        if self.ranks.rank:
            return
        state: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN_STATE}
        for name in ("network", "average", "optimizer"):
            state[name] = getattr(self, name).state_dict()
        save_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Goes on from what `save` wrote.

        Raises:
            InputError: not a checkpoint, another run's, or damaged.
        """
        state = load_run(path, self.identity)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in _PLAIN_STATE:
                setattr(self, name, state[name])
            self.masks = {name: mask.to(self.config.device) for name, mask in self.masks.items()}
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise damaged(path, error) from error


def _optimizer(network: nn.Module, config: RecoverConfig) -> torch.optim.Optimizer:
    groups = decayed_groups(network, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _number(metric: float | None) -> float:
    return metric if metric is not None and math.isfinite(metric) else -math.inf


def recover(
    student: nn.Module,
    batches: Batches,
    config: RecoverConfig | None = None,
    *,
    label_loss: Loss | None = None,
    teacher: nn.Module | None = None,
    distil: Loss | None = None,
    features: Sequence[FeatureTap] = (),
    evaluate: Evaluate | None = None,
    sparsity: SparsitySchedule | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    report: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Recovered:
    """Wins back accuracy; the networks that are given stay as they are.

    Args:
        student: from its present weights.
        batches: of the training part; a pure function of the step.
        config: how; the defaults where None.
        label_loss: of the network's outputs and a batch's labels.
        teacher: the original network; put in eval mode, never trained.
        distil: of the student's outputs and the teacher's.
        features: where the student should match inside, too; only while distilling.
        evaluate: a metric on the validation part; more is better. Without it the last average comes back.
        sparsity: which weights become zero, and when. Until its end nothing is evaluated.
        checkpoint: a file to resume from if it is there, and to keep up to date.
        identity: text that decides data and evaluation (fingerprints, hashes); a checkpoint is refused where
            it differs, or the first batch does.
        report: takes one line per evaluation.
        tick: takes (steps done, steps in all) after every step.

    Returns:
        The best network by `evaluate`, what was given (pruned at once to the target) being a candidate.

    Raises:
        UsageError: settings that cannot work, or a loss that is no longer a number (the last good checkpoint
            stays).
        InputError: images without labels where those are needed, or a checkpoint of another run.
    """
    config = config or RecoverConfig()
    taps = tuple(features) if config.method != "labels" else ()
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(config.device).eval()
        reorder(teacher, memory_order(student))
    losses = _Losses(config, label_loss, distil, teacher, taps)
    networks = (student,) if teacher is None else (student, teacher)
    plan = asdict(sparsity) if sparsity else None
    first = hashlib.sha256(batches(0)[0].numpy().tobytes()).hexdigest()
    settings = {**asdict(config), "device": None}  # a run may go on elsewhere
    if config.norm == "live":  # as before there was another
        del settings["norm"]
    facts = [settings, identity, batches.per_epoch, first, plan, [asdict(tap) for tap in taps]]
    own = run_identity(facts, *networks)
    run = _Run(student, batches, config, losses, evaluate, sparsity, own)
    began = time.monotonic()
    if checkpoint and checkpoint.exists():
        run.resume(checkpoint)
    else:
        run.begin()
    spent = run.seconds  # by the processes before this one
    started, before = time.monotonic(), run.step
    paths = [tap.path for tap in taps]
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(Listener(run.network, paths, "student"))
        theirs = stack.enter_context(Listener(teacher or nn.Module(), paths if teacher else (), "teacher"))
        run.heard = _Heard(mine, theirs)

        def look() -> None:
            row = run.look()
            if report:
                figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                report(f"{figures}, {(time.monotonic() - started) / (run.step - before):.3f} s/step")

        def after() -> None:
            run.seconds = spent + time.monotonic() - began

        fit(
            run, where="recover", lr=config.lr, every=run.every, look=look, checkpoint=checkpoint,
            checkpoint_every=config.checkpoint_every, tick=tick, stopped=lambda: run.stopped, after=after,
        )  # fmt: skip
    return run.result()
