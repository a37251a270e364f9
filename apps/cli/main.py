"""The command `paredown`: the door to the whole house.

Heavy imports happen inside the commands, so that `--help` answers at once. Words and progress go to standard
error; standard output is for the result alone, with `--json` one JSON document.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paredown.apps.cli import chat as cli_chat
from paredown.apps.cli import device as cli_device
from paredown.apps.cli import web as cli_web
from paredown.apps.cli.boards import camera as cli_camera
from paredown.apps.cli.boards import trust as cli_trust
from paredown.apps.cli.console import (
    AsJson,
    Channels,
    DataPath,
    InputShape,
    Mean,
    Quiet,
    RecipeName,
    RecipeOrModel,
    Root,
    Scale,
    Settings,
    Smoke,
    StoreURL,
    TargetName,
    TaskName,
    Verbose,
    handled,
    print_json,
    recipe_folders,
    recipe_of,
    screen,
    shared_store,
    tables,
)
from paredown.apps.cli.group import LOOK, MAKE, Commands, target_names
from paredown.apps.cli.options import FromParser, options_of
from paredown.apps.cli.results import command as cli_results
from paredown.apps.cli.results import search as cli_search
from paredown.targets.errors import UsageError

if TYPE_CHECKING:
    from argparse import ArgumentParser

DRAFT = "https://json-schema.org/draft/2020-12/schema"  # that pydantic writes

app = typer.Typer(
    help="Make a bundle from a trained network, for one target device; prove it there and use it.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(rich_help_panel=MAKE)
def run(
    recipe: RecipeOrModel,
    target: TargetName = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    store: StoreURL = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole recipe and the plan; run nothing.")
    ] = False,
    smoke: Smoke = False,
    device: Annotated[
        str | None, typer.Option(help="Prove it there: local: | ssh://... | adb:... | emulated:NAME")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score at most this many images on the device.")
    ] = None,
    data: DataPath = None,
    task: TaskName = None,
    mean: Mean = None,
    scale: Scale = None,
    channels: Channels = None,
    shape: InputShape = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Make a bundle from a recipe: prune, quantize, lower, check, pack.

    What was made before is reused: an interrupted run continues at its last finished stage. Exit code 3 =
    the result is over budget.

    A model file needs no recipe: --data gives photos, and one is written beside the runs. Without labels the
    outputs are compared with the float network's own.
    """
    with handled(as_json):
        recipe = recipe_of(recipe, runs, data, task, mean, scale, channels, shape)
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.run.run import Run, recipe_name
        from paredown.pipeline.run.start.together import follows
        from paredown.targets.cards.card import load_card

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        with screen(quiet or follows(), verbose) as (tell, tick):
            work = Run(
                recipe_name(recipe), resolved, load_card(target), runs, smoke=smoke, device=device,
                device_limit=limit, tell=tell, tick=tick,
                shared=None if dry_run else shared_store(store, tell),
            )  # fmt: skip
            if dry_run:
                _print_plan(work, resolved, as_json)
                return
            if follows():
                work.help()
                return
            result = work.execute()
        _print_run(result, as_json)
        if not result.passed:
            raise typer.Exit(3)


@app.command(rich_help_panel=MAKE)
def init(
    place: Annotated[
        Path | None, typer.Argument(metavar="[MODEL|DATA]", help="A model file, or a folder of data.")
    ] = None,
    data: DataPath = None,
    task: TaskName = None,
    mean: Mean = None,
    scale: Scale = None,
    channels: Channels = None,
    shape: InputShape = None,
    target: Annotated[
        str | None,
        typer.Option(help="A target card, for the command that is printed.", autocompletion=target_names),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe; default: MODEL.toml, here.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the defaults.")] = False,
) -> None:
    """Write a recipe by asking, with every key explained.

    The data are looked at, the task is proposed by the network's outputs. Flags answer in advance.
    """
    with handled(False):
        from paredown.apps.api.imports import init as asking

        if not yes and not sys.stdin.isatty():
            raise UsageError("init asks, and there is no terminal", hint="add --yes to take the defaults")
        given = {"data": str(data) if data else None, "task": task, "mean": mean, "scale": scale,
                 "channels": channels, "shape": shape, "target": target}  # fmt: skip
        path, lines = asking.init(place, given, out, asking.default if yes else asking.asked_for)
        for line in lines:
            print(line, file=sys.stderr)
        print(path)


@app.command(rich_help_panel=MAKE)
def export(
    recipe: RecipeName,
    target: Annotated[
        str, typer.Option(help="iphone, android-vulkan or browser.", autocompletion=target_names)
    ],
    set_: Settings = None,
    runs: Root = Path("runs"),
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> None:
    """Make a file for Core ML, Vulkan or a browser; it is not run here."""
    with handled(as_json):
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.run.export import export as make
        from paredown.pipeline.run.run import recipe_name
        from paredown.targets.cards.card import load_card

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        folder = runs / recipe_name(recipe)
        with screen() as (tell, tick):
            made = make(resolved, load_card(target), folder, smoke=smoke, tell=tell, tick=tick)
        if as_json:
            print_json([dataclasses.asdict(each) | {"path": str(each.path)} for each in made])
            return
        for each in made:
            outside = ", ".join(each.undelegated) or "nothing"
            print(f"{each.path}: {each.dtype} in and out, {outside} outside {each.delegate}; never run here")


@app.command(rich_help_panel=LOOK)
def sense(
    recipe: RecipeName,
    target: TargetName = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> None:
    """Measure how sensitive the accuracy is to each group of channels."""
    with handled(as_json):
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.run.image.prune_stages import PLOT, SENSE
        from paredown.pipeline.run.run import Run, recipe_name
        from paredown.targets.cards.card import load_card

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        with screen() as (tell, tick):
            work = Run(
                recipe_name(recipe), resolved, load_card(target), runs, smoke=smoke, tell=tell, tick=tick
            )
            found, channels, traced = work.sense()
        files = {"table": work.folder / SENSE, "plot": work.folder / PLOT}
        files = {name: path for name, path in files.items() if path.exists()}
        if as_json:
            print_json({**{n: str(p) for n, p in files.items()}, "sensitivity": found.to_dict()})
            return
        from paredown.pipeline.compress.sensitivity.chart import table

        tables().print(table(found, channels, traced))
        for name, path in files.items():
            print(f"{name:<8} {path}")


@app.command(rich_help_panel=LOOK)
def groups(
    recipe: RecipeName,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show which channels are pruned together, and why."""
    with handled(as_json):
        from paredown.pipeline.compress.coupling.trial import couple_on_trial
        from paredown.pipeline.graph.trace import trace
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.recipe.task import load_task
        from paredown.pipeline.run.job import images_only

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        images_only(resolved, "groups")
        task = load_task(resolved)
        network = task.network()
        graph = trace(network, task.preprocess.input_shape, opaque=True)
        found = couple_on_trial(network, graph)
        if as_json:
            print_json([dataclasses.asdict(group) | {"units": group.units} for group in found])
            return
        for group in found:
            print(group.describe())


@app.command(rich_help_panel=LOOK)
def explain(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, as runs/digits/host.")],
    graph: Annotated[bool, typer.Option("--graph", help="Draw what each stage is made from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say why each stage of a run was run or reused."""
    with handled(as_json):
        from paredown.pipeline.store.ledger import Ledger, draw
        from paredown.pipeline.store.ledger import explain as reasons

        ledgers = Ledger.read(folder)
        lines = draw(ledgers[0]) if graph else reasons(*ledgers)
        if as_json:
            print_json({"run": str(folder), "stages": lines})
        else:
            print("\n".join(lines))


@app.command(rich_help_panel=LOOK)
def targets(as_json: AsJson = False) -> None:
    """List the target devices."""
    with handled(as_json):
        from paredown.targets.cards.card import list_cards

        cards = list_cards()
        if as_json:
            print_json([card.model_dump(mode="json", exclude_none=True) for card in cards])
            return
        from rich.table import Column, Table

        name = Column("target", no_wrap=True, min_width=max(len(card.name) for card in cards))
        table = Table(name, "runtimes", "reach", "summary", box=None, pad_edge=False)
        for card in cards:
            table.add_row(card.name, ", ".join(sorted(card.runtimes)), card.reach.kind, card.summary)
        tables().print(table)


@app.command(rich_help_panel=LOOK)
def schema() -> None:
    """Print the JSON schema of a recipe, for editors.

    An editor with Taplo (VS Code: Even Better TOML) completes and explains the keys of a recipe that names
    the schema in its first line:

    paredown schema > recipe.schema.json

    #:schema ./recipe.schema.json
    """
    with handled(False):
        from paredown.pipeline.recipe.schema import Recipe

        print_json({"$schema": DRAFT, **Recipe.model_json_schema()})


@app.command(rich_help_panel=LOOK)
def examples(
    name: Annotated[str | None, typer.Argument(help="The example to copy; without, all are listed.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write (default: NAME.toml).")] = None,
    as_json: AsJson = False,
) -> None:
    """List the example recipes for own networks and data, or copy one."""
    with handled(as_json):
        from paredown.apps.api import recipes

        if name is None:
            known = {each: recipes.example_line(path) for each, path in recipes.examples().items()}
            if as_json:
                print_json(known)
                return
            for each, line in known.items():
                print(f"{each:<14} {line}")
            return
        path = out or Path(f"{name}.toml")
        recipes.copy_example(name, path)
        print_json({"recipe": str(path)}) if as_json else print(f"wrote {path}")


class _Train(FromParser):
    """The options of the trainer's own parser."""

    def parser(self) -> ArgumentParser:
        from paredown.apps.api.training.command import parser

        return parser("paredown train")


@app.command(cls=_Train, rich_help_panel=MAKE)
def train(context: typer.Context) -> None:
    """Train a detector or a classifier on labelled images."""
    with handled(False):
        from paredown.apps.api.training.command import run

        run(options_of(context))


app.add_typer(cli_device.app)
app.add_typer(cli_camera.app)
app.add_typer(cli_trust.app)
app.add_typer(cli_web.app)
app.add_typer(cli_chat.app)
app.add_typer(cli_results.app)
app.add_typer(cli_search.app)


def _version(asked: bool) -> None:
    if asked:
        print(f"paredown {metadata.version('paredown')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# -- printing ------------------------------------------------------------------------------------------------


def _print_plan(work: Any, recipe: Any, as_json: bool) -> None:
    from paredown.pipeline.recipe.file import commented_toml, resolved_toml

    plan = [(stage.name, stage.key, work.store.get(stage.key) is not None) for stage in work.plan()]
    if as_json:
        import tomllib

        stages = [{"name": name, "key": key, "cached": cached} for name, key, cached in plan]
        print_json({"recipe": tomllib.loads(resolved_toml(recipe)), "stages": stages})
        return
    print(commented_toml(recipe))
    width = max(len(name) for name, _, _ in plan)
    for name, key, cached in plan:
        print(f"{name:<{width}}  {key[:12]}  {'reused' if cached else 'would run'}")


def _print_run(result: Any, as_json: bool) -> None:
    from paredown.apps.cli.results import printing
    from paredown.pipeline.report.page.document import PAGE
    from paredown.pipeline.run.job import BUNDLE, PREVIEW

    files = {"bundle": BUNDLE, "preview": PREVIEW, "report": PAGE}
    files = {name: file for name, file in files.items() if (result.folder / file).exists()}
    if as_json:
        paths = {name: str(result.folder / file) for name, file in files.items()}
        judged = printing.judged(result)
        print_json({"run": str(result.folder), **paths, "notes": list(result.notes), **judged})
        return
    printing.print_figures(result.figures)
    printing.print_checks(result.checks)
    for note in result.notes:
        tables().print(f"note: {note}", markup=False)
    for name, file in files.items():
        print(f"{name:<8} {result.folder / file}")
    printing.print_budget(result.limits)
    printing.print_verdict(result.verdict)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
