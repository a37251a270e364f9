"""Training in codes for a language model: the full-precision network's probabilities on the recipe's text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paredown.pipeline.compress.blockwise.codes import Residual, put_residual
from paredown.pipeline.compress.blockwise.distil import DistilConfig, Distilled, distil, divergence
from paredown.pipeline.compress.blockwise.modules import put
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.recipe.language_task import LanguageTask
from paredown.pipeline.recipe.schema import Language
from paredown.targets.errors import InputError

HELD_OUT = 4  # texts that choose among the codes that training meets; a quarter of all at most
LOOKS = 8  # how often they are asked
SCALE_RATE, FLOAT_RATE = 0.2, 4.0  # of distil_lr: scales are thousandths, norms are near 1


def train(
    task: LanguageTask,
    network: nn.Module,
    codes: Mapping[str, BlockWeight],
    language: Language,
    checkpoint: Path,
    tick: Callable[[int, int], None],
    residual: Residual | None = None,
) -> tuple[dict[str, BlockWeight], Distilled]:
    """Trains the codes of the linear layers, and the norms; the embedding's codes stay.

    Args:
        task: its network in full precision is the teacher.
        network: in full precision, what the codes were found for.
        codes: to start from.
        language: the recipe's section.
        checkpoint: to resume from, and to keep up to date.
        tick: progress.
        residual: of the embedding; it stays too.

    Returns:
        The codes of every matrix, and what training gave.

    Raises:
        InputError: the text is too short, or the checkpoint another run's.
        UsageError: the loss is no longer a number.
    """
    lessons, held_out = _split(task.pieces("train"), language.distil_steps)
    logits = task.lesson(np.concatenate((lessons, held_out)))
    student, teacher = copy.deepcopy(network), task.network()
    put(student, codes, activation_bits=8)
    if residual:
        put_residual(student, residual)
    with torch.no_grad():
        expected = [logits(teacher, piece) for piece in held_out]

    @torch.no_grad()
    def evaluate(network: nn.Module) -> float:
        found = [divergence(logits(network, p), theirs) for p, theirs in zip(held_out, expected, strict=True)]
        return -float(torch.stack(found).mean())

    found = distil(
        student, teacher, lambda step: lessons[step % len(lessons)], logits, settings(language),
        source=network, trained=task.matrices(teacher)[0], evaluate=evaluate, checkpoint=checkpoint,
        identity=task.fingerprint("train"), tick=tick,
    )  # fmt: skip
    return {**codes, **found.weights}, found


def settings(language: Language) -> DistilConfig:
    """How the recipe wants it."""
    return DistilConfig(
        steps=language.distil_steps, lr=language.distil_lr, scale_lr=SCALE_RATE * language.distil_lr,
        float_lr=FLOAT_RATE * language.distil_lr, learns=language.distil_learns,
        keep_zeros=language.sparsity > 0, evaluate_every=max(1, language.distil_steps // LOOKS),
    )  # fmt: skip


def _split(pieces: NDArray[np.int64], steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts to learn from, as many as there are steps and drawn from everywhere; and the last, held out."""
    count = min(HELD_OUT, len(pieces) // 4) or 1
    if len(pieces) <= count:
        raise InputError(
            "the training text fills one piece alone", where="recipe, key language.distil_tokens",
            hint="fewer tokens, or a longer text (data.train)",
        )  # fmt: skip
    order = np.random.default_rng(0).permutation(len(pieces) - count)
    return pieces[order[:steps]], pieces[-count:]
