"""The points of a sweep: recipes x targets x values of keys, each a run with a folder of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.run.run import recipe_name
from paredown.targets.cards.card import Target, load_card
from paredown.targets.errors import UsageError

LONGEST = 120  # characters of a folder's name
_AXIS = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_ODD = re.compile(r"[^\w.=+-]+")


@dataclass(frozen=True)
class Axis:
    """A key of the recipe and the values that it takes, as `--set` takes them."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its folder below the runs, and of its bundle.
        of: the recipe's name.
        chosen: key and value of every axis.
        recipe: with these values.
        target: the card.
    """

    name: str
    of: str
    chosen: tuple[tuple[str, str], ...]
    recipe: Recipe
    target: Target

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name} on {self.target.name}"


def is_axis(word: str) -> bool:
    """Whether a word of the command line is `key=values`, not a recipe."""
    return bool(_AXIS.match(word)) and not word.endswith(".toml")


def read_axes(words: Sequence[str]) -> tuple[Axis, ...]:
    """Reads `prune.macs=0.3,0.5`; values may be lists and quoted text.

    Raises:
        UsageError: a word is not `key=values`, or a key or a value comes twice.
    """
    axes: list[Axis] = []
    for word in words:
        key, equals, text = word.partition("=")
        where, values = f"--grid {word}", split_values(text)
        if not equals or not _AXIS.match(word) or not all(values):
            hint = "write for example --grid prune.macs=0.3,0.5"
            raise UsageError("is not key=value,value", where=where, hint=hint)
        if twice := [value for value in values if values.count(value) > 1]:
            raise UsageError(f"names {twice[0]} twice", where=where)
        if key in (axis.key for axis in axes):
            raise UsageError(f"`{key}` has values already", where=where, hint="put them into one --grid")
        axes.append(Axis(key, tuple(values)))
    return tuple(axes)


def split_values(text: str) -> list[str]:
    """Splits at commas that are in no brackets and no quotes."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            found.append("")
            continue
        found[-1] += letter
    return [value.strip() for value in found]


def make_points(
    recipes: Sequence[str],
    targets: Sequence[str],
    axes: Sequence[Axis] = (),
    overrides: Sequence[str] = (),
    search: Sequence[Path] = (),
) -> tuple[Point, ...]:
    """Every point, checked: recipes are read before any of them runs.

    Args:
        recipes: names or files.
        targets: names or files of cards.
        axes: keys and their values.
        overrides: `--set` of all points.
        search: folders of named recipes.

    Raises:
        UsageError: nothing to sweep, a recipe or a target comes twice, or is unknown.
        InputError: a file, a key or a value is not accepted.
    """
    names = [recipe_name(recipe) for recipe in recipes]
    cards = [load_card(target) for target in targets]
    for what, found in (("recipe", names), ("target", [card.name for card in cards])):
        if not found:
            raise UsageError(f"a sweep needs a {what}")
        if twice := [name for name in found if found.count(name) > 1]:
            raise UsageError(
                f"two of the {what}s are called {twice[0]}", hint="each has a folder by its name"
            )
    keys = [axis.key for axis in axes]
    points = []
    for recipe, name in zip(recipes, names, strict=True):
        for values in itertools.product(*(axis.values for axis in axes)):
            chosen = tuple(zip(keys, values, strict=True))
            settings = [f"{key}={value}" for key, value in chosen]
            resolved = load_recipe(recipe, [*overrides, *settings], search)
            folder = "-".join([name, *(_ODD.sub("_", setting) for setting in settings)])
            points += [Point(folder, name, chosen, resolved, card) for card in cards]
    folders = [(point.name, point.target.name) for point in points]
    if len(set(folders)) < len(folders) or any(len(folder) > LONGEST for folder, _ in folders):
        names = [f"{point.of}-{number}" for number, point in enumerate(points)]
        points = [
            Point(name, point.of, point.chosen, point.recipe, point.target)
            for name, point in zip(names, points, strict=True)
        ]
    return tuple(points)
