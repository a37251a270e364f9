"""Recipes for the command and for Python: those that ship, files, and `Recipe` objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paredown.pipeline.recipe.schema import Recipe

APPS = Path(__file__).parents[1]
UNNAMED = "recipe"  # the folder of the runs of a recipe without a file


def recipe_folders() -> tuple[Path, ...]:
    """Where the recipes lie that ship with the apps."""
    return tuple(sorted(path for path in APPS.glob("*/recipes") if path.is_dir()))


def resolved(recipe: str | Path | Recipe, changes: Mapping[str, Any]) -> tuple[str, Recipe]:
    """A recipe with changes, and the name of its runs.

    Args:
        recipe: the name of a known recipe, a .toml file, or a recipe.
        changes: dotted key -> value, as {"prune.macs": 0.5}; relative paths are those of the working folder.

    Raises:
        UsageError: no such recipe, or a value that TOML does not have.
        InputError: the file cannot be read, a key is unknown, or a value is not accepted.
    """
    from paredown.pipeline.recipe.file import change_recipe, load_recipe
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.run.run import recipe_name

    overrides = [f"{key}={_toml(key, value)}" for key, value in changes.items()]
    if isinstance(recipe, Recipe):
        name = recipe.file.stem if recipe.file else UNNAMED
        return name, change_recipe(recipe, overrides) if overrides else recipe
    return recipe_name(str(recipe)), load_recipe(recipe, overrides, recipe_folders())


def _toml(key: str, value: Any) -> str:
    """A value as `--set` takes it."""
    import json

    import tomli_w

    from paredown.targets.errors import UsageError

    if isinstance(value, Mapping):  # inline, which tomli_w does not write
        return f"{{{', '.join(f'{json.dumps(name)} = {_toml(key, each)}' for name, each in value.items())}}}"
    try:
        text = tomli_w.dumps({"v": [str(value) if isinstance(value, Path) else value]})
    except TypeError as error:
        hint = "leave the key out to keep its default" if value is None else None
        raise UsageError(f"{value!r} is no value of a recipe", where=f"set, key {key}", hint=hint) from error
    return text.partition("[")[2].rpartition("]")[0].strip().removesuffix(",")


def examples() -> dict[str, Path]:
    """The example recipes that ship, for networks and data of the user's own: name -> file."""
    return {path.stem: path for path in sorted(APPS.glob("*/examples/*.toml"))}


def example_line(path: Path) -> str:
    """What an example is for: the first sentence of its comment."""
    first = path.read_text().splitlines()[0].removeprefix("# ")
    return first.partition(", from")[0].partition(". ")[0].rstrip(".")


def copy_example(name: str, out: Path) -> None:
    """Copies an example recipe to a file, or into a folder; nothing is overwritten.

    Raises:
        UsageError: there is none of that name, or the file is there.
        InputError: it cannot be written.
    """
    import difflib

    from paredown.targets.errors import InputError, UsageError

    known = examples()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f", did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no example {name!r}{guess}", hint=f"known: {', '.join(known)}")
    try:
        with out.open("xb") as file:
            file.write(known[name].read_bytes())
    except FileExistsError as error:
        raise UsageError("is there already", where=out, hint="--out gives another file") from error
    except OSError as error:
        raise InputError(f"cannot write the recipe: {error.strerror}", where=out) from error
