"""Training in codes: a low-bit network learns the full-precision one's probabilities.

As the official Gemma recipe has it (the Gemma 3 report, arXiv 2503.19786): no labels, the loss is how far the
student's probabilities are from the teacher's. In every forward pass the codes are made anew of float weights
and of scales that are learned too (`LatentTensor`); the float weights begin as close to the trained ones as
the codes that were found before allow, so that nothing of a better rounding is lost (our design). Cheaper:
the codes stay, and their scales alone are learned (`ScaledTensor`). The float parameters that a student has
beside its codes (norms) can be learned with either.

A run is a pure function of its settings, the networks and the batches: a resumed run ends where an
uninterrupted one would have, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.modules import (
    BlockTensor,
    LatentTensor,
    ScaledTensor,
    held,
    hold,
    plain_weight,
)
from paredown.pipeline.compress.grids.weight import BlockWeight, code_range, times_scales
from paredown.pipeline.compress.training.loop import (
    check_settings,
    descend,
    fit,
    learning_rate,
    run_identity,
)
from paredown.pipeline.store.checkpoint import damaged, load_run, save_checkpoint
from paredown.targets.errors import InputError, UsageError

#: A network and a batch, to logits (..., classes).
Logits = Callable[[nn.Module, Any], Tensor]
#: A network to a metric; more is better.
Evaluate = Callable[[nn.Module], float]

LEARNS = ("codes", "scales")
MARGIN = 0.02  # of a code's cell: how far from its edge the float weights begin
_PLAIN_STATE = ("identity", "step", "history", "baseline", "best", "best_step")


@dataclass(frozen=True)
class DistilConfig:
    """How to train in codes."""

    steps: int = 200
    """Batches to learn from; the official recipe has about 5,000."""
    lr: float = 5e-5
    """Highest learning rate of the float weights."""
    scale_lr: float = 1e-5
    """Of the scales."""
    float_lr: float = 0.0
    """Of the float parameters beside the codes; 0 leaves them as they are."""
    learns: Literal["codes", "scales"] = "codes"
    """Whether codes are learned with their scales, or stay."""
    keep_zeros: bool = False
    """Whether codes that are zero at the start stay so."""
    warmup: int = 10
    """Steps over which the rates rise from 0; at most half of all."""
    last_lr: float = 0.05
    """Where the cosine ends, as a share of the highest rates."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down."""
    evaluate_every: int = 50
    """Steps between two evaluations; the last step has one too."""
    checkpoint_every: int = 50
    """Steps between two checkpoints, if they are kept; each evaluation has one too."""
    seed: int = 0
    """Of whatever the network itself draws; the batches have their own."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        check_settings(
            self,
            whole=("steps", "evaluate_every", "checkpoint_every"),
            positive=("lr", "clip"),
            floored=("scale_lr", "float_lr", "warmup", "last_lr", "seed"),
        )
        if self.learns not in LEARNS:
            raise UsageError(
                f"learns = {self.learns!r}", where="DistilConfig", hint=f"one of {', '.join(LEARNS)}"
            )


@dataclass(frozen=True)
class Distilled:
    """What training gave.

    Attributes:
        weights: the codes that the network holds now: the best that were met.
        floats: the float parameters that were learned, by name, at the same step.
        history: per evaluation its step, the mean loss since the one before, and the metric if there is one.
        baseline: the metric before the first step; None without evaluation.
        best: the metric of `weights`; None without evaluation.
        best_step: the step after which it was reached; 0 = nothing was gained.
    """

    weights: Mapping[str, BlockWeight]
    floats: Mapping[str, Tensor]
    history: Sequence[Mapping[str, float]]
    baseline: float | None
    best: float | None
    best_step: int


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, the mean over all positions.

    Args:
        student: logits (..., classes).
        teacher: likewise.
    """
    theirs = teacher.log_softmax(-1)
    return (theirs.exp() * (theirs - student.log_softmax(-1))).sum(-1).mean()


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Callable[[int], Any],
    logits: Logits,
    config: DistilConfig | None = None,
    *,
    source: nn.Module | None = None,
    trained: Sequence[str] | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    tick: Callable[[int, int], None] | None = None,
) -> Distilled:
    """Trains a network's codes in place.

    Args:
        student: holds codes (`put`).
        teacher: the network whose probabilities are learned; not changed.
        batches: a pure function of the step.
        logits: of either network and a batch.
        config: how; the defaults where None.
        source: the network in full precision that the student's codes were found for, with the same names;
            the teacher where None.
        trained: names of `held` whose codes are trained; all where None.
        evaluate: of the student, on data that is neither trained nor scored on; more is better. Without it
            the last codes stay.
        checkpoint: a file to resume from if it is there, and to keep up to date.
        identity: text that decides the batches and the evaluation (fingerprints, hashes).
        tick: takes (steps done, steps in all) after every step.

    Raises:
        UsageError: settings that cannot work, or a loss that is no longer a number (the student has the last
            good codes then, and the last good checkpoint stays).
        InputError: a name that holds no codes, or a checkpoint of another run.
    """
    config = config or DistilConfig()
    names = tuple(held(student)) if trained is None else tuple(trained)
    own = run_identity([asdict(config), identity, names], student, teacher)
    run = _Run(student, teacher, source or teacher, names, batches, logits, config, own)
    if checkpoint and checkpoint.exists():
        run.resume(checkpoint)
    elif evaluate:
        run.baseline = run.best = float(evaluate(student))
    try:
        fit(
            run, where="distil", lr=config.lr, every=config.evaluate_every, look=lambda: run.look(evaluate),
            checkpoint=checkpoint, checkpoint_every=config.checkpoint_every, tick=tick,
        )  # fmt: skip
    finally:
        found = run.finish()
    return found


class _Run:
    """The state of a training: weights, optimizer, the best so far, and how far it is."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        source: nn.Module,
        names: Sequence[str],
        batches: Callable[[int], Any],
        logits: Logits,
        config: DistilConfig,
        identity: str,
    ) -> None:
        self.batches, self.logits, self.steps = batches, logits, config.steps
        self.student, self.teacher = student.eval(), teacher.eval()
        self.config, self.identity = config, identity
        self.best_weights = {name: _codes_of(student, name) for name in names}
        self.tensors = {
            name: _learned(weight, source, name, config) for name, weight in self.best_weights.items()
        }
        self.floats = dict(student.named_parameters()) if config.float_lr else {}
        self.best_floats = {name: value.detach().clone() for name, value in self.floats.items()}
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in self.floats)
        hold(student, self.tensors)
        groups = (
            (config.lr, [t.latent for t in self.tensors.values() if isinstance(t, LatentTensor)]),
            (config.scale_lr, [t.scales for t in self.tensors.values()]),
            (config.float_lr, list(self.floats.values())),
        )
        self.optimizer = torch.optim.Adam(
            [{"params": found, "share": lr / config.lr} for lr, found in groups if found],
            lr=config.lr,
            betas=(0.9, 0.99),
        )
        self.step, self.history = 0, list[dict[str, float]]()
        self.losses: list[float] = []
        self.baseline: float | None = None
        self.best: float | None = None
        self.best_step = 0

    def advance(self) -> float:
        """Takes a step, gives the loss; where that or the gradient is not finite, takes none and gives it."""
        batch, logits = self.batches(self.step), self.logits
        with torch.no_grad():
            theirs = logits(self.teacher, batch)
        with torch.random.fork_rng([]):  # what the network draws depends on the step alone
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)
            loss = divergence(logits(self.student, batch), theirs)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        rate = learning_rate(self.config, self.step, self.steps)
        value = descend(loss, self.optimizer, parameters, clip=self.config.clip, rate=rate)
        if not math.isfinite(value):
            return value
        self.step += 1
        self.losses.append(value)
        return value

    def look(self, evaluate: Evaluate | None) -> None:
        """Evaluates the present codes, and keeps them where they are the best."""
        row = {"step": self.step, "loss": sum(self.losses) / len(self.losses)}
        self.losses = []
        if evaluate:
            row["metric"] = metric = float(evaluate(self.student))
            if self.best is None or metric > self.best:
                self._keep(metric)
        else:
            self._keep(None)
        self.history.append(row)

    def _keep(self, metric: float | None) -> None:
        self.best, self.best_step = metric, self.step
        self.best_weights = {name: tensor.weight for name, tensor in self.tensors.items()}
        self.best_floats = {name: value.detach().clone() for name, value in self.floats.items()}

    @torch.no_grad()
    def finish(self) -> Distilled:
        """Leaves the best codes and floats in the network."""
        hold(self.student, {name: BlockTensor(weight) for name, weight in self.best_weights.items()})
        for name, parameter in self.floats.items():
            parameter.copy_(self.best_floats[name])
            parameter.requires_grad_(False)
        history = tuple(self.history)
        return Distilled(
            self.best_weights, self.best_floats, history, self.baseline, self.best, self.best_step
        )

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        state: dict[str, Any] = {name: getattr(self, name) for name in (*_PLAIN_STATE, "losses")}
        state["tensors"] = {name: tensor.state_dict() for name, tensor in self.tensors.items()}
        state["floats"] = {name: value.detach() for name, value in self.floats.items()}
        state["best_floats"] = self.best_floats
        state["optimizer"] = self.optimizer.state_dict()
        state["best_weights"] = {
            name: {"codes": weight.codes, "scales": weight.scales}
            for name, weight in self.best_weights.items()
        }
        save_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Goes on from what `save` wrote.

        Raises:
            InputError: not a checkpoint, another run's, or damaged.
        """
        state = load_run(path, self.identity)
        try:
            for name, tensor in self.tensors.items():
                tensor.load_state_dict(state["tensors"][name])
                best = state["best_weights"][name]
                self.best_weights[name] = BlockWeight(
                    best["codes"], best["scales"], tensor.bits, tensor.block
                )
            with torch.no_grad():
                for name, parameter in self.floats.items():
                    parameter.copy_(state["floats"][name])
                    self.best_floats[name].copy_(state["best_floats"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in (*_PLAIN_STATE, "losses"):
                setattr(self, name, state[name])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise damaged(path, error) from error


def _codes_of(student: nn.Module, name: str) -> BlockWeight:
    tensor = held(student).get(name)
    if tensor is None:
        raise InputError(f"{name} holds no codes", where="distil", hint="put codes there first")
    return tensor.weight


def _learned(
    weight: BlockWeight, source: nn.Module, name: str, config: DistilConfig
) -> LatentTensor | ScaledTensor:
    if config.learns == "scales":
        return ScaledTensor(weight)
    latent = _inside(plain_weight(source, name).detach().float(), weight)
    return LatentTensor(latent, weight, config.keep_zeros)


def _inside(weight: Tensor, start: BlockWeight) -> Tensor:
    """The weights nearest to these that have the given codes."""
    wide = times_scales(torch.ones_like(weight), start.scales)
    low, high = code_range(start.bits)
    codes = start.codes.float()
    # The outermost cells are open: a weight beyond them would have no gradient, so they end at the code.
    least = torch.where(codes == low, codes, codes - 0.5 + MARGIN)
    most = torch.where(codes == high, codes, codes + 0.5 - MARGIN)
    return torch.minimum(torch.maximum(weight, least * wide), most * wide)
