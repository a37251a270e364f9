"""How figures, budget, checks and the verdict look in a terminal and in JSON, for run and validate alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from paredown.apps.cli.console import tables
from paredown.pipeline.report.budget import Limit, limit_rows, violations
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import Figure, caption, figures_table


def print_figures(figures: Sequence[Figure]) -> None:
    """The table, and under it what its marks mean and whose figures these are, over the whole width."""
    console = tables()
    console.print(figures_table(figures))
    for line in caption(figures):
        console.print(line, markup=False)


def print_checks(checks: Sequence[Check]) -> None:
    """One line per check."""
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        line = f"{check.state:<7}  {check.name:<{width}}  {check.detail}"
        tables().print(line, markup=False, soft_wrap=True)


def print_budget(limits: Sequence[Limit]) -> None:
    """What is allowed and what was reached, also where it is kept, and a line for each broken limit."""
    from rich.table import Table

    if not limits:
        print("budget   no limit is set")
        return
    table = Table("budget", "variant", "allowed", "reached", "", box=None, pad_edge=False)
    for row in limit_rows(limits):
        table.add_row(*row)
    tables().print(table)
    for violation in violations(limits):
        tables().print(f"over budget: {violation.line()}", markup=False, soft_wrap=True)


def print_verdict(verdict: Any) -> None:
    """Its warnings, and the last line."""
    if verdict is None:
        return
    for warning in verdict.warnings:
        tables().print(f"warning: {warning}", markup=False)
    print(verdict.line())


def judged(result: Any) -> dict[str, Any]:
    """Checks, budget and verdict of a run or a validation as JSON has them."""
    return {
        "checks": [dataclasses.asdict(check) | {"state": check.state} for check in result.checks],
        "figures": [figure.to_dict() for figure in result.figures],
        "budget": [dataclasses.asdict(limit) | {"state": limit.state} for limit in result.limits],
        "over_budget": [violation.line() for violation in result.violations],
        "verdict": None if result.verdict is None else result.verdict.to_dict(),
    }
