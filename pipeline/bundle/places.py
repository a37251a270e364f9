"""A recipe for others: without the folders of its maker, and found again in those of its user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath

from paredown.pipeline.recipe.file import named_files
from paredown.pipeline.recipe.schema import Recipe
from paredown.targets.runners.expand import leads_out


def portable(recipe: Recipe) -> Recipe:
    """The recipe with paths relative to its own folder; of a path outside of it the last name is kept.

    Args:
        recipe: resolved: its paths are absolute.
    """
    folder = recipe.folder

    def named(text: str) -> str:
        path = PurePath(text)
        if not path.is_absolute():
            return text
        if folder is not None and path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
        return path.name or "data"

    return _renamed(recipe, lambda key, text: named(text))


def relocated(recipe: Recipe, folder: Path) -> Recipe:
    """A portable recipe whose files lie below a folder; the test data may also be that folder itself.

    Of a path that leads out of the folder, as bundles of earlier versions have them, the last name is looked
    for there: a bundle reads no other file of its user.

    Args:
        recipe: of a bundle.
        folder: of its user.
    """

    def placed(key: str, text: str) -> str:
        path = folder / (PurePath(text).name or "data" if leads_out(text) else text)
        return str((folder if key == "data.test" and not path.exists() else path).absolute())

    return _renamed(recipe, placed)


def same_files(recipe: Recipe, other: Recipe) -> bool:
    """Whether two recipes name the same files, wherever these lie."""
    named = [{key: PurePath(text).name for key, text in named_files(r).items()} for r in (recipe, other)]
    return named[0] == named[1] and recipe.data.format == other.data.format


def _renamed(recipe: Recipe, name: Callable[[str, str], str]) -> Recipe:
    files = {key: name(key, text) for key, text in named_files(recipe).items()}
    found = recipe.model_copy(update={key: text for key, text in files.items() if "." not in key})
    for section in ("data", "prune"):
        inside = {key.partition(".")[2]: text for key, text in files.items() if key.startswith(f"{section}.")}
        if inside:
            found = found.model_copy(update={section: getattr(found, section).model_copy(update=inside)})
    return found
