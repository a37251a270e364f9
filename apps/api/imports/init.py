"""A recipe by asking: what a flag does not say is asked for, with what was found as the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from paredown.apps.api.imports.model_data import KINDS, look
from paredown.apps.api.imports.model_recipe import APPS, Asked, numbers, proposed, save
from paredown.targets.errors import InputError, UsageError

#: A question and its default -> the answer.
Ask = Callable[[str, str], str]
HEAD = """\
# A recipe of paredown: what is made of {model}.
#     paredown run {recipe}{target}
# Lines that begin with # are comments. A key in a comment has that value as its default; one without a
# value is unset. An editor completes and explains keys by `paredown schema`.

"""


def default(question: str, value: str) -> str:
    """Answers every question with its default.

    Raises:
        UsageError: it has none.
    """
    if not value:
        raise UsageError(f"no {question.partition(' (')[0].partition(':')[0].lower()} is given",
                         hint="paredown init MODEL --data FOLDER --yes")  # fmt: skip
    return value


def asked_for(question: str, value: str) -> str:
    """Asks in the terminal.

    Raises:
        UsageError: the terminal is closed.
    """
    try:
        return input(f"{question}{f' [{value}]' if value else ''}: ").strip() or value
    except EOFError:
        raise UsageError("no answer", where=question, hint="give flags, and --yes for the defaults") from None


def init(
    place: Path | None, given: dict[str, str | None], out: Path | None, ask: Ask
) -> tuple[Path, list[str]]:
    """Writes a recipe.

    Args:
        place: a model file, or data.
        given: answers in advance: data, task, mean, scale, channels, shape, target.
        out: of the recipe; None = the model's name, in the working folder.
        ask: the rest.

    Returns:
        The recipe's file, and lines for the user.

    Raises:
        UsageError: an answer that is none, or options that do not fit each other.
        InputError: the model cannot be imported, the data cannot be read.
    """
    from paredown.pipeline.recipe.file import explained_toml, load_recipe
    from paredown.pipeline.recipe.imports.read import is_model, read
    from paredown.targets.cards.card import list_cards, load_card

    data = given["data"]
    model = place if place is not None and is_model(place) else None
    if place is not None and model is None:
        if data is not None:
            raise UsageError(
                "no model file", where=place, hint="see `paredown import --help` for what is one"
            )
        data = str(place)
    model = model or Path(ask("Model file (.onnx, .keras, .pt2, a folder ...)", ""))
    found = read(model, numbers(given["shape"], "--shape", int, "x"))
    data = data or ask("Data: a folder of photos, of class folders, of arrays, or a YAML", "")
    path = out or Path(f"{model.stem}.toml")
    answers = Asked(
        Path(data), given["task"], numbers(given["mean"], "--mean"), numbers(given["scale"], "--scale"),
        given["channels"],
    )  # fmt: skip
    said: list[str] = []
    tables = proposed(model, found, answers, path, said)
    if ask is not default:
        said.clear()
        tables = proposed(model, found, _asked(tables, answers, ask), path, said)
    names = [card.name for card in list_cards()]
    target = given["target"] or _one_of(ask, f"Target ({', '.join(names)})", "host", names)
    load_card(target)
    _relative(tables, path)
    option = "" if target == "host" else f" --target {target}"
    head = HEAD.format(model=model.name, recipe=path, target=option)
    save(head + explained_toml(tables, ("language",)), path, said)
    load_recipe(path)
    return path, [*said, f"next: paredown run {path}{option}"]


def _asked(tables: dict[str, Any], answers: Asked, ask: Ask) -> Asked:
    """The answers that no flag gave, with what is proposed as their defaults."""
    changes: dict[str, Any] = {}
    if answers.task is None:
        proposal = next(task for task, app in APPS.items() if app == tables["app"])
        kind = look(answers.data).kind
        tasks = ["outputs", *(task for task, kinds in KINDS.items() if kind in kinds)]
        changes["task"] = _one_of(ask, f"Task ({', '.join(tasks)})", proposal, tasks)
    images = tables.get("preprocess")
    if images is not None:
        if answers.channels is None:
            orders = ["grey"] if images["colour"] == "grey" else ["rgb", "bgr"]
            changes["channels"] = _one_of(ask, f"Channels ({', '.join(orders)})", images["colour"], orders)
        for name, key, words in (("mean", "mean", "subtracted from"), ("scale", "std", "divides")):
            if getattr(answers, name) is None:
                value = ",".join(f"{255 * each:.6g}" for each in images[key])
                text = ask(f"{name.capitalize()}: {words} pixels of 0 to 255", value)
                changes[name] = numbers(text, f"--{name}")
    return dataclasses.replace(answers, **changes)


def _one_of(ask: Ask, question: str, value: str, known: Collection[str]) -> str:
    answer = ask(question, value)
    if answer not in known:
        raise UsageError(f"no {answer!r}", where=question.partition(" (")[0], hint=f"use {', '.join(known)}")
    return answer


def _relative(tables: dict[str, Any], recipe: Path) -> None:
    """Makes paths below the recipe's folder relative to it: the folder may move."""
    folder = recipe.absolute().parent

    def short(value: str) -> str:
        path = Path(value)
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else value

    tables["network"] = short(tables["network"])
    tables["data"] = {
        key: value if key == "format" else short(value) for key, value in tables["data"].items()
    }
    if not (folder / tables["network"]).exists():
        raise InputError("no such file", where=tables["network"])
