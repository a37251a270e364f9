"""`paredown.run`: from a recipe to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.apps.api.recipes import resolved

if TYPE_CHECKING:
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.report.budget import Violation
    from paredown.pipeline.report.checks import Check
    from paredown.pipeline.report.figures import Figure


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        folder: of the run, with figures.json, report.md and more.
        bundle: the file to validate, load and deploy.
        figures: every number, with its unit and where it comes from.
        violations: limits of the budget that are broken.
        notes: what a reader should know.
        checks: on the device; none where the run was not proved on one.
    """

    folder: Path
    bundle: Path
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the budget is kept and every check passed."""
        return not self.violations and all(check.passed for check in self.checks)


def run(
    recipe: str | Path | Recipe,
    target: str | Path,
    device: str | None,
    changes: Mapping[str, Any],
    runs: str | Path,
    smoke: bool,
    limit: int | None,
    log: Callable[[str], None],
) -> Result:
    """Makes a bundle; see `paredown.run`."""
    from paredown.pipeline.run.language.run import LanguageRun
    from paredown.pipeline.run.run import BUNDLE, Run
    from paredown.targets.cards.card import load_card

    name, whole = resolved(recipe, changes)
    kind: type[Run | LanguageRun] = LanguageRun if whole.data.textual else Run
    work = kind(
        name, whole, load_card(target), Path(runs), smoke=smoke, device=device, device_limit=limit, log=log
    )
    made = work.execute()
    bundle = made.folder / BUNDLE
    return Result(made.folder, bundle, made.figures, made.violations, made.notes, made.checks)
