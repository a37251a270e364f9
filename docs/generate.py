"""The pages that are made from the sources: recipe keys, commands, target cards, exit codes, figures.

    python docs/generate.py FOLDER

writes them to a folder; `docs/hooks.py` gives them to MkDocs without writing anything. What they say is what
the schema, the command line, the cards and the error classes say, so they cannot be out of date.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from paredown.pipeline.recipe.schema import Recipe
from paredown.targets import errors
from paredown.targets.cards.card import CARDS, Target, load_card

FIGURES = Path(__file__).with_name("figures")
EARLIER = "an earlier release, before figures were recorded as JSON"
BOUNDS = {"ge": ">= ", "gt": "> ", "le": "<= ", "lt": "< "}
LENGTHS = {"min_length": "at least {} long", "max_length": "at most {} long"}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a pipe or a line break in a cell does no harm."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])


# -- the recipe --------------------------------------------------------------------------------------------


def _constraints(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _constraints(item.metadata)
            continue
        for name, sign in BOUNDS.items():
            if (bound := getattr(item, name, None)) is not None:
                yield f"{sign}{bound:g}"
        for name, words in LENGTHS.items():
            if (bound := getattr(item, name, None)) not in (None, 1):
                yield words.format(bound)


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[str, str]:
    """The type of a value and its range, in words, of an annotation of the schema."""
    limits = list(_constraints(metadata))
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        kind, own = describe(inner, more)
        return kind, ", ".join(filter(None, [own, *limits]))
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [describe(part) for part in get_args(annotation) if part is not type(None)]
        kinds, ranges = zip(*parts, strict=True)
        return " or ".join(kinds), ", ".join(filter(None, [*ranges, *limits]))
    if get_origin(annotation) is Literal:
        return "one of", ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        kind, own = describe(get_args(annotation)[0])
        return f"list of {kind}", ", ".join(filter(None, [own, *limits]))
    if get_origin(annotation) is dict:
        kind, own = describe(get_args(annotation)[1])
        return f"table of {kind}", ", ".join(filter(None, [own, *limits]))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "values"}
    return names[annotation], ", ".join(limits)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def recipe_keys() -> dict[str, FieldInfo]:
    """Every key of a recipe as `--set` spells it, in the order of the schema."""
    keys = {}
    for name, field in Recipe.model_fields.items():
        if _is_section(field):
            keys |= {f"{name}.{key}": inner for key, inner in _fields(field.annotation).items()}
        else:
            keys[name] = field
    return keys


def _fields(section: Any) -> Mapping[str, FieldInfo]:
    return section.model_fields


def recipe_page() -> str:
    """Every key: section, type, range, default, meaning."""
    page = [
        "# Recipe keys\n",
        "A recipe is a TOML file. Every key has a default. An unknown key is an error that names the nearest "
        "known key. `--set SECTION.KEY=VALUE` overrides one key; `--dry-run` prints the resolved recipe.\n",
    ]

    def rows(prefix: str, fields: Mapping[str, FieldInfo]) -> str:
        found = []
        for name, field in fields.items():
            kind, limits = describe(field.annotation, field.metadata)
            found.append((f"`{prefix}{name}`", kind, limits, _default(field), field.description or ""))
        return table(("key", "type", "range or values", "default", "meaning"), found)

    top = {name: field for name, field in Recipe.model_fields.items() if not _is_section(field)}
    page += ["## Without a section\n", rows("", top) + "\n"]
    for name, field in Recipe.model_fields.items():
        if _is_section(field):
            section: Any = field.annotation
            page += [f"## [{name}]\n", f"{inspect.getdoc(section)}\n", rows(f"{name}.", _fields(section))]
            page.append("")
    return "\n".join(page)


# -- the command line --------------------------------------------------------------------------------------


def own_parser(name: str, command: Any) -> argparse.ArgumentParser | None:
    """The argparse parser of a command that leaves its options to the code of the device; else None."""
    if not command.context_settings.get("ignore_unknown_options"):
        return None
    app = {"chat": "chat"}.get(name, "detector")
    module = importlib.import_module(f"paredown.apps.{app}.device.{name}")
    parser: argparse.ArgumentParser = module.parser(f"paredown {name}")
    parser.add_argument("bundle", metavar="BUNDLE", help="a .paredown file")
    if name == "chat":
        parser.add_argument("--device", default="local:", help="ssh://user@host, adb:SERIAL or emulated:NAME")
    return parser


def commands() -> dict[str, tuple[Any, Any]]:
    """Every command by name, "key new" too, with a context that knows its full name."""
    from paredown.apps.cli.main import app

    def inside(door: Any, context: Any, before: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
        for name, command in door.commands.items():
            own = typer.Context(command, info_name=name, parent=context)
            if hasattr(command, "commands"):
                yield from inside(command, own, f"{before}{name} ")
            else:
                yield f"{before}{name}", (command, own)

    door: Any = typer.main.get_command(app)
    return dict(inside(door, typer.Context(door, info_name="paredown"), ""))


def _argparse_rows(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    rows, formatter = [], argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        value = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        needed = "  [required]" if action.required else ""
        label = " ".join(filter(None, [", ".join(action.option_strings), value]))
        rows.append((f"`{label}`", f"{(action.help or '') % vars(action)}{needed}"))
    return rows


def commands_page() -> str:
    """Every command with its arguments and options."""
    page = [
        "# Commands\n",
        "Progress and messages go to standard error. Standard output is for the result; with `--json` it is "
        "one JSON document. [Exit codes](errors.md) are the same for all commands.\n",
    ]
    for name, (command, context) in commands().items():
        page += [f"## {name}\n", f"{inspect.cleandoc(command.help or '')}\n"]
        if parser := own_parser(name, command):
            usage = f"paredown {name} [OPTIONS] BUNDLE"
            rows = _argparse_rows(parser)
        else:
            usage = " ".join(("paredown", name, *command.collect_usage_pieces(context)))
            records = (parameter.get_help_record(context) for parameter in command.get_params(context))
            rows = [(f"`{record[0]}`", record[1]) for record in records if record is not None]
        page += [f"```text\n{usage}\n```\n", table(("argument or option", "meaning"), rows), ""]
    return "\n".join(page)


# -- targets and errors ------------------------------------------------------------------------------------


def target_names() -> list[str]:
    """The cards, this machine's first."""
    names = sorted(path.stem for path in CARDS.glob("*.toml"))
    return sorted(names, key=lambda name: name != "host")


def _target(card: Target) -> Iterator[str]:
    yield f"## {card.name}\n\n{card.summary}\n"
    facts = [
        ("architecture", card.arch), ("processor", card.cpu),
        ("cores", "asked from the machine" if card.cores is None else card.cores),
        ("memory", "asked from the machine" if card.memory_mib is None else f"{card.memory_mib} MiB"),
    ]  # fmt: skip
    if card.microcontroller:
        found = card.microcontroller
        facts[-1] = ("SRAM, flash", f"{found.sram_kib} KiB, {found.flash_kib} KiB ({found.board})")
    if card.npu:
        facts.append(("NPU", f"{card.npu.accelerator}, {card.npu.system}, {card.npu.memory_mode}"))
    multiples = ", ".join(f"{kind} {value}" for kind, value in card.channel_multiple.model_dump().items())
    facts.append(("multiple of channels", multiples))
    facts += [(f"default limit, {key}", value) for key, value in card.budget.limits().items()]
    facts.append(("how to reach it", card.reach.text))
    facts.append(("how it is emulated", card.emulate.text if card.emulate else "it is not"))
    facts.append(("what is made", "files only: nothing here runs them" if card.export_only else "a bundle"))
    yield table(("", card.name), facts) + "\n"
    rows = []
    for name, runtime in card.runtimes.items():
        edition = "" if runtime.edition == "full" else f", {runtime.edition}"
        rows += [
            (f"{name}{edition}", "delegate", runtime.delegate),
            ("", "data types", ", ".join(runtime.dtypes)),
            ("", "operations on the delegate", ", ".join(runtime.ops)),
            ("", "zeros buy", f"{runtime.pays.zeros.buys}: {runtime.pays.zeros.note}"),
            ("", "low bits buy", f"{runtime.pays.low_bits.buys}: {runtime.pays.low_bits.note}"),
        ]
        if runtime.io:
            rows.append(("", "inputs and outputs", runtime.io))
        if runtime.int4:
            rows.append(("", "int4 in the program", ", ".join(runtime.int4)))
        rows += [("", "note", note) for note in runtime.notes]
    yield table(("runtime", "", ""), rows) + "\n"
    yield "Sources:\n\n" + "\n".join(f"- {source}" for source in card.sources) + "\n"


def targets_page() -> str:
    """Every card with the sources of its facts."""
    cards = [load_card(name) for name in target_names()]
    listed = [
        (
            f"[{card.name}](#{card.name})", card.summary, ", ".join(card.runtimes), card.reach.kind,
            "yes" if card.emulate and card.emulate.cpu else "no",
        )
        for card in cards
    ]  # fmt: skip
    page = [
        "# Target cards\n",
        "A card is a TOML file in `targets/cards/`. It holds facts about one device, with their sources. "
        "Choose one with `--target NAME`.\n",
        table(("name", "device", "runtimes", "reached by", "emulated"), listed) + "\n",
    ]
    return "\n".join([*page, *(part for card in cards for part in _target(card))])


def error_classes() -> list[type[errors.ParedownError]]:
    """The classes of errors that a user can cause, by exit code."""
    found = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.ParedownError)
    ]
    return sorted(found, key=lambda item: item.exit_code)


def errors_page() -> str:
    """Every exit code and class."""
    rows = [
        (item.exit_code, f"`{item.__name__}`", (inspect.getdoc(item) or "").split("\n")[0])
        for item in error_classes()
    ]
    return "\n".join([
        "# Exit codes\n",
        "An error is one line on standard error: what is wrong, where, what to do next. Exit code 0 means "
        "that the command did its work and no limit was broken. [Errors](../errors.md) says what to do.\n",
        table(("exit code", "class in `paredown.targets.errors`", "meaning"), rows) + "\n",
    ])  # fmt: skip


# -- figures -----------------------------------------------------------------------------------------------


def read_figure(name: str) -> dict[str, Any]:
    """The record of one table of figures.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: it lacks a key, or a row has another length than the heads.
    """
    record = json.loads((FIGURES / f"{name}.json").read_text())
    needed = {"bench", "command", "machine", "commit", "date", "columns", "rows", "notes"}
    if missing := needed - set(record):
        raise ValueError(f"docs/figures/{name}.json lacks {', '.join(sorted(missing))}")
    if wrong := [row for row in record["rows"] if len(row) != len(record["columns"])]:
        raise ValueError(f"docs/figures/{name}.json: {len(record['columns'])} columns, but {wrong[0]}")
    return record


def _made(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    words = ["Made by " + ", ".join(f"`{line}`" for line in record["command"].split("\n"))]
    if machine.get("cpu"):
        cores = f", {machine['cores']} cores" if "cores" in machine else ""
        words.append(f"on {machine['cpu']}{cores}")
    if record.get("measured"):
        words.append(f"in {record['measured']}")
    else:
        words.append(f"on {record['date']}, commit `{record['commit']}`")
    if versions := machine.get("versions"):
        words.append("(" + ", ".join(f"{name} {version}" for name, version in versions.items()) + ")")
    return " ".join(words) + "."


def figures_table(name: str) -> str:
    """The table of one record, how it was made, and its notes."""
    record = read_figure(name)
    parts = [table(record["columns"], record["rows"]), f"<small>{_made(record)}</small>"]
    if record["notes"]:
        parts.append("\n".join(f"- {note}" for note in record["notes"]))
    return "\n\n".join(['<div class="figure" markdown>', *parts, "</div>"])


PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe_page,
    "commands.md": commands_page,
    "targets.md": targets_page,
    "errors.md": errors_page,
}


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main()
