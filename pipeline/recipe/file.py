"""A recipe's file: found by name, overridden, checked key by key, resolved, written again."""

from __future__ import annotations

import copy
import json
import textwrap
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from paredown.pipeline.recipe.imports.read import is_model
from paredown.pipeline.recipe.schema import DATA_PATHS, Recipe
from paredown.targets.cards.tomlfile import first_problem, nearest, place, read_toml, written
from paredown.targets.errors import InputError, UsageError

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".weights", ".gguf")
LATENCY_TABLE = "prune.latency_table"


def known_recipes(search: Sequence[Path]) -> dict[str, Path]:
    """Recipes by name in these folders; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in search:
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name_or_path: str | Path, search: Sequence[Path]) -> Path:
    """The file of a recipe given by name (`digits`) or by path (ends in .toml, or holds a slash).

    Raises:
        UsageError: no recipe of that name; the line lists all of them and the nearest.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return Path(text)
    known = known_recipes(search)
    if text in known:
        return known[text]
    guess = nearest(text, known)
    raise UsageError(
        f"unknown recipe `{text}`" + (f", did you mean `{guess}`?" if guess else ""),
        hint=f"known recipes: {', '.join(sorted(known)) or 'none'}; or give a path, ./my-recipe.toml",
    )


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), search: Sequence[Path] = ()
) -> Recipe:
    """Reads, overrides, checks and resolves a recipe.

    Args:
        name_or_path: a name to find in `search`, or a file.
        overrides: `--set` arguments, `section.key=value`: the value as TOML, else taken as a string.
        search: folders of named recipes, first come first served.

    Raises:
        UsageError: unknown recipe name, or an override that is not `key=value`.
        InputError: the file is missing or not TOML; a key is unknown; a value is not accepted.
    """
    path = find_recipe(name_or_path, search)
    tables, text = read_toml(path, "recipe")
    _check_keys(tables, path, text)
    _resolve_paths(tables, path.parent)
    return _resolved(tables, overrides, str(path), text).read_from(path)


def change_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with some keys overridden.

    Args:
        recipe: resolved.
        overrides: as those of `load_recipe`.

    Raises:
        UsageError: an override that is not `key=value`.
        InputError: a key is unknown; a value is not accepted.
    """
    tables = recipe.model_dump(mode="json", exclude_unset=True)
    data = tables.get("data", {})
    if data.get("calibration") == data.get("train"):  # not asked for, but filled in
        data.pop("calibration", None)
    changed = _resolved(tables, overrides, "recipe", "")
    return changed.read_from(recipe.file) if recipe.file else changed


def _resolved(tables: dict[str, Any], overrides: Sequence[str], source: str, text: str) -> Recipe:
    """Overrides, checks and resolves the tables of a recipe, which have absolute paths already."""
    origin: dict[tuple[str, ...], tuple[str, str]] = {}  # keys that an override wrote, for the error line
    for override in overrides:
        key, value = _parse_override(override)
        where = f"--set {override}"
        extra: dict[str, Any] = {}
        _put(extra, key, value, where)
        _check_keys(extra, where, "")
        _resolve_paths(extra, Path())
        _put(tables, key, _get(extra, key), where)
        origin[key] = (where, "")
    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as error:
        key, problem = first_problem(error)
        prefixes = (key[:length] for length in range(len(key), 0, -1))
        source, text = next((origin[prefix] for prefix in prefixes if prefix in origin), (source, text))
        raise InputError(problem, where=place(source, text, key)) from error
    if recipe.data.calibration is None and recipe.data.train is not None:
        data = recipe.data.model_copy(update={"calibration": recipe.data.train})
        recipe = recipe.model_copy(update={"data": data})
    return recipe


def named_files(recipe: Recipe) -> dict[str, str]:
    """The files and folders that a recipe names: key -> path."""
    named = {f"data.{key}": getattr(recipe.data, key) for key in DATA_PATHS}
    named["weights"] = recipe.weights if _is_weights_file(recipe.weights) else None
    named["network"] = recipe.network if _is_network_file(recipe.network) else None
    named[LATENCY_TABLE] = recipe.prune.latency_table
    return {key: value for key, value in named.items() if value is not None}


def check_files(recipe: Recipe, unneeded: Sequence[str] = ()) -> None:
    """Checks that every file the recipe names exists, before any work.

    Args:
        recipe: resolved.
        unneeded: keys to leave out, as "data.train".

    Raises:
        InputError: one does not; the line names its key.
    """
    for key, value in named_files(recipe).items():
        try:
            if key in unneeded or key == LATENCY_TABLE or Path(value).exists():
                continue
        except OSError as error:  # such as a name longer than the file system takes
            raise InputError(f"{error.strerror} (`{key}` of the recipe)", where=value) from error
        raise InputError(f"no such file or folder (`{key}` of the recipe)", where=value)


def resolved_toml(recipe: Recipe) -> str:
    """The recipe in full as TOML; unset keys are left out. Loading it gives an equal recipe."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def commented_toml(recipe: Recipe) -> str:
    """The recipe in full as TOML, for a reader: a key that is unset is a comment with its meaning."""
    return "\n".join(_commented(Recipe, recipe.model_dump(mode="json"), ())) + "\n"


def _commented(schema: type[BaseModel], values: Mapping[str, Any], prefix: tuple[str, ...]) -> list[str]:
    plain: list[str] = []
    tables: list[str] = []  # after all plain keys: they end their own table
    for name, field in schema.model_fields.items():
        value, path = values[name], (*prefix, name)
        if section := _section(field.annotation):
            tables += ["", f"[{'.'.join(path)}]", *_commented(section, value, path)]
        elif value is None or value == {}:
            plain.append(f"# {name} =  # unset: {' '.join((field.description or '').split())}")
        elif isinstance(value, Mapping):
            tables += ["", f"[{'.'.join(path)}]", tomli_w.dumps(value).rstrip()]
        else:
            plain.append(tomli_w.dumps({name: value}).rstrip())
    return plain + tables


def explained_toml(tables: Mapping[str, Any], leave_out: Collection[str] = ()) -> str:
    """A recipe as TOML in which every key is explained; those that keep their default are comments.

    Args:
        tables: the keys that are set.
        leave_out: sections that are not written.
    """
    fields = {name: field for name, field in Recipe.model_fields.items() if name not in leave_out}
    return "\n".join(_explained(fields, tables, Recipe().model_dump(mode="json"), ())) + "\n"


def _explained(
    fields: Mapping[str, Any], tables: Mapping[str, Any], defaults: Mapping[str, Any], prefix: tuple[str, ...]
) -> list[str]:
    plain: list[str] = []
    sections: list[str] = []  # after all plain keys: they end their own table
    for name, field in fields.items():
        words = textwrap.wrap(field.description or "", 100, initial_indent="# ", subsequent_indent="# ")
        head = ["", *words, f"[{'.'.join((*prefix, name))}]"]
        if section := _section(field.annotation):
            inner = section.model_fields, tables.get(name, {}), defaults[name], (*prefix, name)
            sections += [*head, *_explained(*inner)]
        elif name not in tables:
            empty = defaults[name] is None or defaults[name] == {}
            text = f"{name} =" if empty else _line(name, defaults[name])
            plain += [*words, *(f"# {line}" for line in text.split("\n"))]
        elif isinstance(tables[name], Mapping):
            sections += [*head, tomli_w.dumps(tables[name]).rstrip()]
        else:
            plain += [*words, _line(name, tables[name])]
    return plain + sections


def _line(name: str, value: Any) -> str:
    """A key and its value as TOML, a list of numbers or words in one line."""
    plain = isinstance(value, list) and all(isinstance(each, (int, float, str)) for each in value)
    line = f"{name} = {json.dumps(value)}" if plain else ""
    return line if 0 < len(line) <= 100 and line.isascii() else tomli_w.dumps({name: value}).rstrip()


def recipe_keys(schema: type[BaseModel] = Recipe, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a recipe with its sections, `("quantize", "observer")`, in the schema's order."""
    for name, field in schema.model_fields.items():
        if section := _section(field.annotation):
            yield from recipe_keys(section, (*prefix, name))
        else:
            yield (*prefix, name)


def default_recipe() -> Recipe:
    """A recipe in which no key is set."""
    return Recipe()


def value_of(recipe: BaseModel, key: Sequence[str]) -> Any:
    """The value of a key, `("quantize", "observer")`."""
    value: Any = recipe
    for name in key:
        value = getattr(value, name)
    return value


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _check_keys(tables: Mapping[str, Any], source: object, text: str) -> None:
    """Refuses the first key that is no key of a recipe, naming the nearest that is."""
    known = tuple(recipe_keys())
    sections = tuple(dict.fromkeys(key[0] for key in known if len(key) > 1))
    for leaf in _leaves(tables):
        key = leaf[:2] if leaf[0] in sections else leaf
        if key in known or key[:1] in known or (len(key) == 1 and key[0] in sections):
            continue  # wrong types, such as a table for a plain key, are the schema's to name
        if len(key) == 1 or key[0] in sections:
            hint = _suggest(key, known, sections)
        else:
            guess = nearest(key[0], sections)
            hint = f"did you mean [{guess}]?" if guess else f"the sections are: {', '.join(sections)}"
        raise InputError(f"unknown key `{'.'.join(key)}`", where=place(source, text, key), hint=hint)


def _suggest(key: tuple[str, ...], known: Sequence[tuple[str, ...]], sections: Sequence[str]) -> str:
    """What the writer of an unknown key may have meant: its own section first, then the whole recipe."""
    siblings = [other[-1] for other in known if other[:-1] == key[:-1]]
    elsewhere = [other for other in known if other[-1] == key[-1]]
    if elsewhere:
        return f"did you mean {' or '.join(_placed(other) for other in elsewhere)}?"
    if guess := nearest(key[-1], siblings + (list(sections) if len(key) == 1 else [])):
        return f"did you mean {f'[{guess}]' if guess in sections else _placed((*key[:-1], guess))}?"
    if guess := nearest(key[-1], dict.fromkeys(other[-1] for other in known)):
        return f"did you mean {' or '.join(_placed(other) for other in known if other[-1] == guess)}?"
    return f"the keys here are: {', '.join(siblings)}"


def _placed(key: tuple[str, ...]) -> str:
    return f"`{key[0]}` at the top" if len(key) == 1 else f"`{'.'.join(key[1:])}` in [{key[0]}]"


def _leaves(tables: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """Splits `a.b=value`; the value is TOML, or else a plain string."""
    name, equals, written_value = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise UsageError(
            "is not key=value", where=f"--set {override}", hint="write for example --set bench.runs=20"
        )
    plain = written_value.strip()
    try:
        parsed = tomllib.loads(f"value = {plain}")
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return key, plain
    if set(parsed) != {"value"}:  # a line break smuggled in a second key
        return key, plain
    value = parsed["value"]
    if _takes_text(key) and not isinstance(value, (str, dict, list)):
        return key, plain
    return key, value


def _takes_text(key: tuple[str, ...]) -> bool:
    """Whether this key is plain text, so that `--set network=42` means the name "42"."""
    schema: type[BaseModel] | None = Recipe
    for name in key[:-1]:
        field = schema.model_fields.get(name) if schema else None
        schema = _section(field.annotation) if field else None
    field = schema.model_fields.get(key[-1]) if schema else None
    return field is not None and _is_text(field.annotation)


def _is_text(annotation: Any) -> bool:
    return annotation is str or any(
        _is_text(part) for part in typing.get_args(annotation) if part is not None
    )


def _put(tables: dict[str, Any], key: tuple[str, ...], value: Any, where: str) -> None:
    for name in key[:-1]:
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise InputError(f"`{name}` is {written(tables)}, no table to set a key in", where=where)
    tables[key[-1]] = copy.deepcopy(value)


def _get(tables: Mapping[str, Any], key: tuple[str, ...]) -> Any:
    value: Any = tables
    for name in key:
        value = value[name]
    return value


def _is_weights_file(weights: str) -> bool:
    return weights.lower().endswith(WEIGHT_SUFFIXES) or "/" in weights or "\\" in weights


def _is_network_file(network: str) -> bool:
    return network.endswith(".cfg") or is_model(network)


def _resolve_paths(tables: dict[str, Any], folder: Path) -> None:
    """Makes the paths in these tables absolute, taking relative ones from `folder`."""

    def resolved(value: str) -> str:
        path = Path(value)
        if value.startswith("~"):
            try:
                path = path.expanduser()
            except RuntimeError:  # no such user: leave it to be reported as missing
                pass
        return str((folder / path).absolute())

    weights, network, data = tables.get("weights"), tables.get("network"), tables.get("data")
    if isinstance(weights, str) and _is_weights_file(weights):
        tables["weights"] = resolved(weights)
    if isinstance(network, str) and (_is_network_file(network) or is_model(resolved(network))):
        tables["network"] = resolved(network)
    if isinstance(data, dict):
        for key in DATA_PATHS:
            if isinstance(data.get(key), str) and data[key]:
                data[key] = resolved(data[key])
