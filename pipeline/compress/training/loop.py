"""The training loop, and what goes with it: settings, learning rate, optimizer groups, average, identity.

Recovery, SQuantizer, training in codes, the detector's training and the tiny language model's all run `fit`
over a state of their own, and take each step by `descend`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from paredown.pipeline.compress.ranks import Ranks
from paredown.targets.errors import UsageError


class Schedule(Protocol):
    """The settings that a learning rate follows from."""

    @property
    def lr(self) -> float:
        """Highest rate."""

    @property
    def warmup(self) -> int:
        """Steps over which it rises from 0."""

    @property
    def last_lr(self) -> float:
        """Where the cosine ends, as a share of `lr`."""


def learning_rate(config: Schedule, step: int, steps: int) -> float:
    """The rate of a step, 0 <= step < steps: a straight rise over the warm-up, then half a cosine."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return config.lr * (config.last_lr + (1 - config.last_lr) * (1 + math.cos(math.pi * share)) / 2)


class State(Protocol):
    """A training under way.

    Attributes:
        step: steps taken.
        steps: in all.
    """

    step: int
    steps: int

    def advance(self) -> float:
        """Takes a step, gives the loss; where that or the gradient is not finite, takes none and gives it."""

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""


def fit(
    state: State,
    *,
    where: str,
    lr: float,
    every: int,
    look: Callable[[], None],
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    tick: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Runs a training to its end, from the step at which it stands.

    Args:
        state: of the training.
        where: it is called in errors.
        lr: highest rate of its schedule, for the hint of an error.
        every: steps between two looks; there is one after the last step, too.
        look: evaluates, and keeps what is best.
        checkpoint: a file to keep up to date: at every look, and every `checkpoint_every` steps (0 = never).
        checkpoint_every: steps.
        tick: takes (steps done, steps in all) after every step.
        stopped: whether patience has run out.
        after: called after each step, before the checkpoint is written.

    Raises:
        UsageError: the loss or the gradient is no longer a number; the last good checkpoint stays.
    """
    while state.step < state.steps and not stopped():
        loss = state.advance()
        if not math.isfinite(loss):
            raise diverged(where, loss, state.step, state.steps, lr, checkpoint)
        if tick:
            tick(state.step, state.steps)
        looked = state.step % every == 0 or state.step == state.steps
        if looked:
            look()
        after()
        if checkpoint and (looked or (checkpoint_every and state.step % checkpoint_every == 0)):
            state.save(checkpoint)


def descend(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    clip: float,
    rate: float,
    mask: Callable[[], None] = lambda: None,
    device: str = "cpu",
    ranks: Ranks | None = None,
) -> float:
    """Takes one step down a loss.

    Args:
        loss: a scalar.
        optimizer: whose groups get `rate`, times their own `share` where they have one.
        parameters: whose gradient is clipped, together.
        clip: largest norm of the gradient.
        rate: learning rate of this step.
        mask: changes gradients before they are clipped.
        device: where it is computed; named in errors.
        ranks: the processes that take this step together, each with a share of the batch; None = this alone.

    Returns:
        The loss, of several processes their mean; or the first of loss and norm of the gradient that is not
        finite, and no step was taken.
    """
    ranks, parameters = ranks or Ranks(), list(parameters)
    value = ranks.mean(float(loss.detach()))
    optimizer.zero_grad()
    if not math.isfinite(value):
        return value
    with explained(device):
        loss.backward()
    ranks.average_gradients(parameters)
    mask()
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    if not math.isfinite(norm):
        return norm
    for group in optimizer.param_groups:
        group["lr"] = group.get("share", 1.0) * rate
    optimizer.step()
    return value


def check_settings(
    config: Any,
    *,
    whole: Sequence[str] = (),
    positive: Sequence[str] = (),
    shares: Sequence[str] = (),
    floored: Sequence[str] = (),
) -> None:
    """Checks the ranges of a settings dataclass.

    Args:
        config: the settings; its class is named in the error.
        whole: fields that must be 1 or more.
        positive: fields that must be finite and more than 0.
        shares: fields that must be 0 or more and below 1.
        floored: fields that must be finite and 0 or more.

    Raises:
        UsageError: a value that cannot work, by its name.
    """
    for names, allowed, hint in (
        (whole, lambda value: value >= 1, "at least 1"),
        (positive, lambda value: math.isfinite(value) and value > 0, "more than 0"),
        (shares, lambda value: 0 <= value < 1, "0 or more, below 1"),
        (floored, lambda value: math.isfinite(value) and value >= 0, "0 or more"),
    ):
        for name in names:
            value = getattr(config, name)
            if not allowed(value):
                raise UsageError(f"{name} = {value}", where=type(config).__name__, hint=hint)


def check_device(device: str) -> None:
    """Checks that torch can compute there.

    Raises:
        UsageError: it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them
        raise UsageError(f"device {device!r} cannot be used here", hint="set device to cpu") from error


def training_device(wanted: str) -> str:
    """Where to train: what is wanted, or for "auto" a GPU where torch finds one, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What a device is called: "cpu", or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@contextlib.contextmanager
def explained(device: str) -> Iterator[None]:
    """Says in a line what a network cannot do on a GPU, of which torch says little.

    Raises:
        UsageError: it does not fit into its memory, or keeps tensors that do not move there.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = 'set a smaller batch, or device = "cpu"'
        raise UsageError(f"{device_name(device)} has too little memory", hint=hint) from error
    except RuntimeError as error:
        apart = any(words in str(error) for words in ("same device", "should be the same"))
        if not device.startswith("cuda") or not apart:
            raise
        raise UsageError(
            "the network keeps a tensor that is neither parameter nor buffer, so it stays on the CPU",
            hint='use register_buffer for it, or set device = "cpu"',
        ) from error


def memory_order(network: nn.Module) -> torch.memory_format:
    """The order in which to train a network and its images (N, C, H, W): channels last, where that is safe.

    It is nearly twice as fast on a CPU for small convolutions. But there the gradient of a 1x1 convolution
    with a stride and 2 to 7 input channels goes beyond its buffer (torch 2.13.0, oneDNN on AVX2, batches of
    two and more), and the process dies. A weight does not show its stride: any 1x1 of so few channels counts.
    """
    unsafe = any(p.ndim == 4 and p.shape[2:] == (1, 1) and 1 < p.shape[1] < 8 for p in network.parameters())
    return torch.contiguous_format if unsafe else torch.channels_last


def reorder(network: nn.Module, order: torch.memory_format) -> None:
    """Changes how the convolutions' weights lie in memory, not what they are."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)


def decayed_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: weights decay, biases and batch norm do not."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Moves an exponential average of weights and batch norm statistics towards the live network.

    Args:
        average: of the same shape as `network`; changed in place.
        network: the live one.
        step: how many steps were averaged before: young averages forget faster.
        decay: the highest; 0 keeps only the last.
    """
    decay = min(decay, (1 + step) / (10 + step))
    live, means, values = network.state_dict(), [], []
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            means.append(mean)
            values.append(live[name])
        else:
            mean.copy_(live[name])
    torch._foreach_lerp_(means, values, 1 - decay)  # as torch's own AveragedModel does


def run_identity(facts: Sequence[Any], *networks: nn.Module) -> str:
    """The sha256 over what a run starts from: JSON-able facts and the weights of networks."""
    identity = hashlib.sha256(json.dumps(facts).encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            identity.update(name.encode() + tensor.cpu().numpy().tobytes())
    return identity.hexdigest()


def diverged(
    where: str, loss: float, step: int, steps: int, lr: float, checkpoint: Path | None
) -> UsageError:
    """What to say of a loss or a gradient that is no longer a number.

    Args:
        where: the training.
        loss: inf or NaN.
        step: the step that was not taken.
        steps: in all.
        lr: highest rate of the schedule.
        checkpoint: where the last good one is kept, if at all.
    """
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was kept"
    return UsageError(
        f"the loss is {loss} at step {step} of {steps}", where=where, hint=f"lower lr (it was {lr}); {kept}"
    )
