"""`paredown.run`: from a recipe to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.apps.api.recipes import resolved

if TYPE_CHECKING:
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.run.run import Result


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
    from paredown.pipeline.run.run import Run
    from paredown.targets.cards.card import load_card

    name, whole = resolved(recipe, changes)
    work = Run(
        name, whole, load_card(target), Path(runs), smoke=smoke, device=device, device_limit=limit,
        tell=lambda event: log(event.line()),
    )  # fmt: skip
    return work.execute()
