"""The commands that make many runs: sweep, and fit, which looks for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paredown.apps.cli.console import (
    AsJson,
    Quiet,
    RecipeName,
    Root,
    Settings,
    Smoke,
    StoreURL,
    TargetName,
    Verbose,
    handled,
    print_json,
    recipe_folders,
    screen,
    shared_store,
    tables,
)
from paredown.apps.cli.group import MAKE, recipe_names
from paredown.targets.errors import UsageError

if TYPE_CHECKING:
    from paredown.pipeline.run.search.table import Row
    from paredown.pipeline.run.search.workers import Executor

app = typer.Typer()


@app.command(rich_help_panel=MAKE)
def sweep(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Known recipes or .toml files; `key=value,value` among them is --grid.",
            autocompletion=recipe_names,
        ),
    ],
    targets: Annotated[str, typer.Option(help="Target cards, separated by commas.")] = "host",
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V", help="A key and its values, as prune.macs=0.3,0.5; repeatable."),
    ] = None,
    set_: Settings = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes at once.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Use a dask cluster's workers instead: tcp://host:8786."),
    ] = None,
    store: StoreURL = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Prove each point on its target's emulated board.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score at most this many images on the board.")
    ] = None,
    runs: Root = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of table and page; default: RUNS/sweeps/RECIPES.")
    ] = None,
    smoke: Smoke = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Make many runs: recipes x targets x values of keys.

    Each point is a run of its own through one store, so what points share is made once, and a sweep that was
    interrupted goes on. A point that fails is a row of the table; the exit code is then that of the first.
    """
    with handled(as_json):
        from paredown.pipeline.run.search.grid import is_axis, make_points, read_axes
        from paredown.pipeline.run.search.sweep import sweep as make

        names = [word for word in recipes if not is_axis(word)]
        axes = read_axes([*(grid or ()), *(word for word in recipes if is_axis(word))])
        cards = [name.strip() for name in targets.split(",")]
        if not all(cards):
            raise UsageError(
                f"`{targets}` has an empty name", where="--targets", hint="write host,raspberry-pi-5"
            )
        points = make_points(names, cards, axes, set_ or (), recipe_folders())
        executor = _cluster(scheduler, jobs)
        folder = out or runs / "sweeps" / "+".join(dict.fromkeys(point.of for point in points))
        with screen(quiet, verbose) as (tell, _):
            shared_store(store, tell)  # what is wrong with it is told before anything runs
            result = make(
                points, runs, folder, jobs=jobs, smoke=smoke, emulated=emulated, limit=limit, tell=tell,
                executor=executor, shared=store,
            )  # fmt: skip
        if as_json:
            print_json(result.to_dict())
        else:
            _print(result.rows)
            for line in result.lines():
                tables().print(line, markup=False, soft_wrap=True)
            if result.page:
                print(f"report   {result.page}")
        if result.code:
            raise typer.Exit(result.code)


@app.command(rich_help_panel=MAKE)
def fit(
    recipe: RecipeName,
    target: TargetName = "host",
    device: Annotated[
        str | None, typer.Option(help="Times there: local: | ssh://... | adb:... | emulated:NAME")
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="The median time of an inference.")] = None,
    instructions_m: Annotated[
        float | None, typer.Option(help="Millions of instructions, on an emulated board.")
    ] = None,
    bundle_kib: Annotated[float | None, typer.Option(help="The size of the bundle.")] = None,
    drop: Annotated[
        float | None, typer.Option(help="The most the score may fall, as a fraction (0.01 = one point).")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Trains no further candidate that would take longer.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="In the end, score at most this many images on the device.")
    ] = None,
    set_: Settings = None,
    runs: Root = Path("runs"),
    store: StoreURL = None,
    smoke: Smoke = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Find the mildest network within a budget: time, bytes, accuracy.

    Starts with int8 alone. Channels go for time, zeros and bits for bytes, epochs come last. Candidates are
    judged on held-out training images; the test images are scored once, by what was chosen. Limits that are
    not given are the recipe's. Exit code 3 = the budget is not met; the lines say by how much.
    """
    with handled(as_json):
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.run.run import recipe_name
        from paredown.pipeline.run.search.fit.fit import Asked
        from paredown.pipeline.run.search.fit.fit import fit as find
        from paredown.targets.cards.card import load_card

        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        asked = Asked(latency_ms, instructions_m, bundle_kib, drop, hours)
        with screen(quiet, verbose) as (tell, tick):
            made = find(
                recipe_name(recipe), resolved, load_card(target), runs, asked, device=device, limit=limit,
                smoke=smoke, tell=tell, tick=tick, shared=shared_store(store, tell),
            )  # fmt: skip
        if as_json:
            print_json(made.to_dict())
        else:
            if made.result is not None:
                from paredown.apps.cli.results import printing

                printing.print_figures(made.result.figures)
                print(f"bundle   {made.result.bundle}")
                printing.print_budget(made.result.limits)
                printing.print_verdict(made.result.verdict)
            for line in made.lines():
                tables().print(line, markup=False, soft_wrap=True)
        if not made.met:
            raise typer.Exit(3)


def _cluster(scheduler: str | None, jobs: int) -> Executor | None:
    """What does the work instead of processes on this machine."""
    if scheduler is None:
        return None
    if jobs != 1:
        raise UsageError("is for workers on this machine", where="--jobs",
                         hint="a cluster has its own: `dask worker --nworkers N`")  # fmt: skip
    from paredown.pipeline.run.search.cluster import DaskWorkers

    return DaskWorkers(scheduler)


def _print(rows: Sequence[Row]) -> None:
    """The table; a star before what no other point of the same target beats."""
    from rich.table import Table

    from paredown.pipeline.run.search.table import heads_of

    heads, keys = heads_of(rows)
    table = Table("", *heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row("*" if row.best else "", *row.cells(keys))
    tables().print(table)
    if any(row.best for row in rows):
        print("* no other point of the same target is as good in score, cost and bytes, and better in one")
