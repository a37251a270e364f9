"""The mixed-integer program of an allocation: one binary per group and width, solved by HiGHS (scipy).

Joint variables stand where a summand of the cost depends on several groups; they follow from the binaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.allocate.cost import Table
from paredown.targets.runners.quiet import quiet

SCALE = 1e4  # of objectives, above the solver's absolute tolerance of 1e-6
EXACT = 1e-7  # relative gap of a solution that counts as the best
USED = 1e-6  # of a choice: more than an error of rounding
Choices = Mapping[str, Sequence[int]]  # group -> the widths that can be chosen
Values = Mapping[str, NDArray[np.float64]]  # group -> a number per choice


Limit = tuple[NDArray[np.float64], float]  # of each variable, and how much all together may have of it


@dataclass(frozen=True)
class Program:
    """A linear program: one choice per group. What is made small, and within which limit, comes later.

    Attributes:
        choices: of every group.
        first: group -> the variable of its first choice.
        binaries: how many variables are choices; the others tie them together.
        costs: of each variable.
        matrix, low, high: low <= matrix @ variables <= high.
    """

    choices: Choices
    first: Mapping[str, int]
    binaries: int
    costs: NDArray[np.float64]
    matrix: Any
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, choices: Choices, tables: Sequence[Table]) -> Program:
        """The program of these choices.

        Args:
            choices: of every group.
            tables: summands of the cost.
        """
        rows = _Rows()
        first = {name: rows.variables(len(found)) for name, found in choices.items()}
        binaries = rows.count
        for name, found in choices.items():
            rows.add([(first[name] + i, 1.0) for i in range(len(found))], 1.0, 1.0)
        shares = np.concatenate([rows.joint(table, first) for table in tables] or [np.zeros(0)])
        where = np.concatenate(rows.places or [np.zeros(0, np.int64)])
        costs = np.zeros(rows.count)
        np.add.at(costs, where, shares)
        return cls(choices, first, binaries, costs, *rows.matrix())

    def losses(self, values: Values) -> NDArray[np.float64]:
        """A number per choice, of each variable."""
        found = np.zeros(len(self.costs))
        for name, each in values.items():
            found[self.first[name] : self.first[name] + len(each)] = each
        return found

    def least(
        self, objective: NDArray[np.float64], limit: Limit | None, seconds: float
    ) -> tuple[dict[str, int], float] | None:
        """The choices with the least objective; None where nothing was found.

        Args:
            objective: of each variable.
            limit: what they must keep within.
            seconds: for the solver; then it takes the best that it has.

        Returns:
            The widths and the relative gap that is left.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        integrality = np.zeros(len(self.costs))
        integrality[: self.binaries] = 1
        constraints = [LinearConstraint(self.matrix, self.low, self.high)]
        if limit is not None:
            constraints.append(LinearConstraint(limit[0][None], -np.inf, limit[1]))
        with quiet(output=True):  # HiGHS prints lines for its own developers
            result = milp(
                SCALE * objective, integrality=integrality, bounds=Bounds(0, 1), constraints=constraints,
                options={"time_limit": seconds, "mip_rel_gap": EXACT},
            )  # fmt: skip
        if result.x is None:
            return None
        chosen = {
            name: found[int(np.argmax(result.x[self.first[name] : self.first[name] + len(found)]))]
            for name, found in self.choices.items()
        }
        return chosen, 0.0 if result.status == 0 else float(result.mip_gap or 0.0)

    def relaxed(self, objective: NDArray[np.float64], limit: Limit) -> set[tuple[str, int]]:
        """The groups and widths of which the best takes a part, where parts of choices may be taken.

        Nothing where nothing is within the limit.
        """
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        equal = self.low == self.high
        found = linprog(
            SCALE * objective, A_ub=vstack([self.matrix[~equal], limit[0][None]]),
            b_ub=np.append(self.high[~equal], limit[1]), A_eq=self.matrix[equal], b_eq=self.high[equal],
            bounds=(0, 1), method="highs",
        )  # fmt: skip
        if found.x is None:
            return set()
        parts = {name: found.x[start : start + len(self.choices[name])] for name, start in self.first.items()}
        return {
            (name, width)
            for name, widths in self.choices.items()
            for width, part in zip(widths, parts[name], strict=True)
            if part > USED
        }


class _Rows:
    """The variables and constraints of a program while they are put together."""

    def __init__(self) -> None:
        self.count = 0
        self.places: list[Any] = []  # of every table: its entries' variables
        self._entries: list[tuple[int, int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def variables(self, count: int) -> int:
        """New variables; returns the first one's index."""
        self.count += count
        return self.count - count

    def add(self, terms: Sequence[tuple[int, float]], low: float, high: float) -> None:
        """A constraint: low <= sum of coefficient * variable <= high."""
        self._entries += [(len(self._low), index, value) for index, value in terms if value]
        self._low.append(low)
        self._high.append(high)

    def joint(self, table: Table, first: Mapping[str, int]) -> Any:
        """Variables for a table's entries, tied to its groups' choices; returns the entries, flat.

        Each sums up, over the other groups, to the choice of its own: with whole choices only one is 1.
        """
        values = table.values
        if values.ndim == 1:
            self.places.append(first[table.groups[0]] + np.arange(len(values)))
            return values
        start = self.variables(values.size)
        index = start + np.arange(values.size).reshape(values.shape)
        for axis, name in enumerate(table.groups):
            for i in range(values.shape[axis]):
                chosen = [(int(v), 1.0) for v in index.take(i, axis).ravel()]
                self.add([*chosen, (first[name] + i, -1.0)], 0.0, 0.0)
        self.places.append(index.ravel())
        return values.ravel()

    def matrix(self) -> tuple[Any, Any, Any]:
        """The constraints as a sparse matrix and its bounds."""
        from scipy.sparse import csr_array

        row, column, value = zip(*self._entries, strict=True) if self._entries else ((), (), ())
        shape = (len(self._low), self.count)
        return csr_array((value, (row, column)), shape=shape), np.array(self._low), np.array(self._high)
