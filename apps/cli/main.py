"""The command `paredown`: the door to the whole house.

Heavy imports happen inside the commands, so that `--help` answers at once. Words and progress go to standard
error; standard output is for the result alone, with `--json` one JSON document.
"""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from paredown.apps.cli import (
    camera as cli_camera,
)
from paredown.apps.cli import (
    chat as cli_chat,
)
from paredown.apps.cli import (
    device as cli_device,
)
from paredown.apps.cli import (
    drone as cli_drone,
)
from paredown.apps.cli import (
    web as cli_web,
)
from paredown.apps.cli.console import (
    AsJson,
    RecipeName,
    Root,
    Settings,
    handled,
    print_json,
    recipe_folders,
    screen,
    tables,
)

app = typer.Typer(
    help="Takes a trained network and a target device, gives back a validated bundle that runs there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: RecipeName,
    target: Annotated[str, typer.Option(help="A target card, see `paredown targets`.")] = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Every stage on a handful of samples.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to prove it: local: | ssh://... | adb:... | emulated:NAME")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images to score on the device.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a bundle: prunes where the recipe says so, quantizes, lowers, checks, scores, times, packs."""
    with handled(as_json):
        from paredown.pipeline.recipe.file import load_recipe, resolved_toml
        from paredown.pipeline.run.run import Run, recipe_name
        from paredown.targets.cards.card import load_card

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        with screen() as (tell, tick):
            work = Run(
                recipe_name(recipe), resolved, load_card(target), runs, smoke=smoke, device=device,
                device_limit=limit, tell=tell, tick=tick,
            )  # fmt: skip
            if dry_run:
                _print_plan(work, resolved_toml(resolved), as_json)
                return
            result = work.execute()
        _print_run(result, as_json)
        if not result.passed:
            raise typer.Exit(3)


@app.command()
def export(
    recipe: RecipeName,
    target: Annotated[str, typer.Option(help="iphone, android-vulkan or browser.")],
    set_: Settings = None,
    runs: Root = Path("runs"),
    smoke: Annotated[bool, typer.Option("--smoke", help="On a handful of samples.")] = False,
    as_json: AsJson = False,
) -> None:
    """Makes the file for a target that nothing here can run: Core ML, Vulkan, a browser."""
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


@app.command()
def sense(
    recipe: RecipeName,
    target: Annotated[
        str, typer.Option(help="A target card: its channel multiples decide the widths.")
    ] = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    smoke: Annotated[bool, typer.Option("--smoke", help="On a handful of samples.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measures how much every group of channels matters: a table, a plot, a JSON."""
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
        if as_json:
            print_json({**{n: str(p) for n, p in files.items()}, "sensitivity": found.to_dict()})
            return
        from paredown.pipeline.compress.sensitivity.chart import table

        tables().print(table(found, channels, traced))
        for name, path in files.items():
            print(f"{name:<8} {path}")


@app.command()
def groups(
    recipe: RecipeName,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Shows which channels must be pruned together, and why."""
    with handled(as_json):
        from paredown.pipeline.compress.coupling.coupling import couple
        from paredown.pipeline.graph.trace import trace
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.recipe.task import load_task
        from paredown.pipeline.run.job import images_only

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        images_only(resolved, "groups")
        task = load_task(resolved)
        size = task.preprocess
        graph = trace(task.network(), (1, size.channels, size.height, size.width), opaque=True)
        found = couple(graph)
        if as_json:
            print_json([dataclasses.asdict(group) | {"units": group.units} for group in found])
            return
        for group in found:
            print(group.describe())


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A run's folder, as runs/digits/host.")],
    graph: Annotated[bool, typer.Option("--graph", help="Draw what each stage is made from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Says why each stage ran or was reused."""
    with handled(as_json):
        from paredown.pipeline.store.ledger import Ledger, draw
        from paredown.pipeline.store.ledger import explain as reasons

        ledgers = Ledger.read(folder)
        lines = draw(ledgers[0]) if graph else reasons(*ledgers)
        if as_json:
            print_json({"run": str(folder), "stages": lines})
        else:
            print("\n".join(lines))


@app.command()
def targets(as_json: AsJson = False) -> None:
    """Lists the target cards."""
    with handled(as_json):
        from paredown.targets.cards.card import list_cards

        cards = list_cards()
        if as_json:
            print_json([card.model_dump(mode="json", exclude_none=True) for card in cards])
            return
        from rich.table import Table

        table = Table("target", "runtimes", "reach", "summary", box=None, pad_edge=False)
        for card in cards:
            table.add_row(card.name, ", ".join(sorted(card.runtimes)), card.reach.kind, card.summary)
        tables().print(table)


app.add_typer(cli_device.app)
app.add_typer(cli_camera.app)
app.add_typer(cli_drone.app)
app.add_typer(cli_web.app)
app.add_typer(cli_chat.app)


def _version(asked: bool) -> None:
    if asked:
        print(f"paredown {metadata.version('paredown')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# -- printing ------------------------------------------------------------------------------------------------


def _print_plan(work: Any, recipe: str, as_json: bool) -> None:
    plan = [(stage.name, stage.key, work.store.get(stage.key) is not None) for stage in work.plan()]
    if as_json:
        import tomllib

        stages = [{"name": name, "key": key, "cached": cached} for name, key, cached in plan]
        print_json({"recipe": tomllib.loads(recipe), "stages": stages})
        return
    print(recipe)
    width = max(len(name) for name, _, _ in plan)
    for name, key, cached in plan:
        print(f"{name:<{width}}  {key[:12]}  {'reused' if cached else 'would run'}")


def _print_run(result: Any, as_json: bool) -> None:
    from paredown.pipeline.run.job import BUNDLE, PREVIEW
    from paredown.pipeline.run.run import REPORT

    files = {"bundle": BUNDLE, "preview": PREVIEW, "report": REPORT}
    files = {name: file for name, file in files.items() if (result.folder / file).exists()}
    if as_json:
        print_json(
            {
                "run": str(result.folder),
                **{name: str(result.folder / file) for name, file in files.items()},
                "figures": [figure.to_dict() for figure in result.figures],
                "over_budget": [violation.line() for violation in result.violations],
                "notes": list(result.notes),
                "checks": [dataclasses.asdict(check) for check in result.checks],
            }
        )
        return
    from paredown.pipeline.report.figures import figures_table

    console = tables()
    console.print(figures_table(result.figures))
    for check in result.checks:
        console.print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.detail}", markup=False)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    for violation in result.violations:
        console.print(f"over budget: {violation.line()}", markup=False)
    for name, file in files.items():
        print(f"{name:<8} {result.folder / file}")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
