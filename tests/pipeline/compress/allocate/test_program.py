"""program.py against brute force: whole choices, and what the relaxed program uses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from paredown.pipeline.compress.allocate.cost import Table
from paredown.pipeline.compress.allocate.program import Program

pytestmark = pytest.mark.unit
CHOICES = {"a": (4, 2, 1), "b": (3, 1), "c": (5,)}


def made(seed: int) -> tuple[Program, dict[str, np.ndarray], list[tuple[dict[str, int], float, float]]]:
    """A program, losses, and every choice with its cost and loss."""
    rng = np.random.default_rng(seed)
    joint, single = rng.uniform(1, 2, (3, 2)), rng.uniform(1, 2, 3)
    losses = {name: np.concatenate([[0.0], rng.uniform(0, 1, len(w) - 1)]) for name, w in CHOICES.items()}
    every = []
    for places in itertools.product(*(range(len(widths)) for widths in CHOICES.values())):
        chosen = {name: CHOICES[name][i] for name, i in zip(CHOICES, places, strict=True)}
        loss = sum(losses[name][i] for name, i in zip(CHOICES, places, strict=True))
        every.append((chosen, float(joint[places[0], places[1]] + single[places[0]]), float(loss)))
    return Program.of(CHOICES, [Table(("a", "b"), joint), Table(("a",), single)]), losses, every


@pytest.mark.parametrize("seed", range(4))
def test_the_best_choice_is_that_of_brute_force(seed):
    program, losses, every = made(seed)
    objective = program.losses(losses)
    for limit in (2.5, 3.0, 3.5):
        found = program.least(objective, (program.costs, limit), 20.0)
        within = [each for each in every if each[1] <= limit]
        assert (found is None) == (not within)
        if found is not None:
            assert found == (min(within, key=lambda each: each[2])[0], 0.0)
    cheapest = program.least(program.costs, None, 20.0)
    assert cheapest is not None and cheapest[0] == min(every, key=lambda each: each[1])[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_relaxed_program_uses_a_part_of_every_group(seed):
    """With room for all it uses the full widths alone, with none nothing, else what covers each group."""
    program, losses, every = made(seed)
    objective = program.losses(losses)
    assert program.relaxed(objective, (program.costs, 10.0)) == {("a", 4), ("b", 3), ("c", 5)}
    assert program.relaxed(objective, (program.costs, 0.5)) == set()
    cheapest = min(cost for _, cost, _ in every)
    used = program.relaxed(objective, (program.costs, cheapest + 1e-9))
    assert {name for name, _ in used} == set(CHOICES)
    assert {width for _, width in used} <= {width for widths in CHOICES.values() for width in widths}
