"""The command `paredown`: the door to the whole house.

Heavy imports happen inside the commands, so that `--help` answers at once. Words and progress go to standard
error; standard output is for the result alone, with `--json` one JSON document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from targets.errors import ParedownError

app = typer.Typer(
    help="Takes a trained network and a target device, gives back a validated bundle that runs there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RECIPES = Path(__file__).parent

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key, as bench.runs=20.")
]
Root = Annotated[Path, typer.Option("--runs", help="Folder of all runs and of the artefact store.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A known recipe (`digits`) or a .toml file.")],
    target: Annotated[str, typer.Option(help="A target card, see `paredown targets`.")] = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Every stage on a handful of samples.")] = False,
    as_json: AsJson = False,
) -> None:
    """Makes a bundle: prunes where the recipe says so, quantizes, lowers, checks, scores, times, packs."""
    with _handled(as_json):
        from pipeline.recipe_file import load_recipe, resolved_toml
        from pipeline.run import Run, recipe_name
        from targets.card import load_card

        resolved = load_recipe(recipe, set_ or (), _recipe_folders())
        card = load_card(target)
        with _screen() as (log, tick):
            work = Run(recipe_name(recipe), resolved, card, runs, smoke=smoke, log=log, tick=tick)
            if dry_run:
                _print_plan(work, resolved_toml(resolved), as_json)
                return
            result = work.execute()
        _print_run(result, as_json)
        if result.violations:
            raise typer.Exit(3)


@app.command()
def sense(
    recipe: Annotated[str, typer.Argument(help="A known recipe (`digits`) or a .toml file.")],
    target: Annotated[
        str, typer.Option(help="A target card: its channel multiples decide the widths.")
    ] = "host",
    set_: Settings = None,
    runs: Root = Path("runs"),
    smoke: Annotated[bool, typer.Option("--smoke", help="On a handful of samples.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measures how much every group of channels matters: a table, a plot, a JSON."""
    with _handled(as_json):
        from pipeline.prune.stages import PLOT, SENSE
        from pipeline.recipe_file import load_recipe
        from pipeline.run import Run, recipe_name
        from targets.card import load_card

        resolved = load_recipe(recipe, set_ or (), _recipe_folders())
        with _screen() as (log, tick):
            work = Run(
                recipe_name(recipe), resolved, load_card(target), runs, smoke=smoke, log=log, tick=tick
            )
            found = work.sense()
        files = {"table": work.folder / SENSE, "plot": work.folder / PLOT}
        if as_json:
            _print_json({**{n: str(p) for n, p in files.items()}, "sensitivity": found.to_dict()})
            return
        from pipeline.prune.chart import table

        _console().print(table(found, *work.stages.pruning.groups()))
        for name, path in files.items():
            print(f"{name:<8} {path}")


@app.command()
def groups(
    recipe: Annotated[str, typer.Argument(help="A known recipe (`digits`) or a .toml file.")],
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Shows which channels must be pruned together, and why."""
    with _handled(as_json):
        from pipeline.prune.coupling import couple
        from pipeline.recipe_file import load_recipe
        from pipeline.task import load_task
        from pipeline.trace import trace

        task = load_task(load_recipe(recipe, set_ or (), _recipe_folders()))
        size = task.preprocess
        graph = trace(task.network(), (1, size.channels, size.height, size.width), opaque=True)
        found = couple(graph)
        if as_json:
            _print_json([dataclasses.asdict(group) | {"units": group.units} for group in found])
            return
        for group in found:
            print(group.describe())


@app.command()
def validate(
    bundle: Annotated[Path, typer.Argument(help="A .paredown file.")],
    device: Annotated[str, typer.Option(help="Where to run it; local: is this machine.")] = "local:",
    limit: Annotated[int | None, typer.Option(min=1, help="Score at most this many test images.")] = None,
    score: Annotated[bool, typer.Option(help="Score on the recipe's test images.")] = True,
    times: Annotated[int, typer.Option(min=1, help="Timed inferences per runtime.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Proves a bundle: hashes, test vectors, score against the recorded one, latency, budget."""
    with _handled(as_json):
        from pipeline.validate import validate as prove

        with _screen() as (log, tick):
            result = prove(bundle, device, limit=limit, score=score, runs=times, log=log, tick=tick)
        _print_validation(result, as_json)
        if not result.passed:
            raise typer.Exit(3)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A run's folder, as runs/digits/host.")],
    as_json: AsJson = False,
) -> None:
    """Says why each stage ran or was reused."""
    with _handled(as_json):
        from pipeline.stage import Ledger
        from pipeline.stage import explain as reasons

        lines = reasons(*Ledger.read(folder))
        if as_json:
            _print_json({"run": str(folder), "stages": lines})
        else:
            print("\n".join(lines))


@app.command()
def targets(as_json: AsJson = False) -> None:
    """Lists the target cards."""
    with _handled(as_json):
        from targets.card import list_cards

        cards = list_cards()
        if as_json:
            _print_json([card.model_dump(mode="json", exclude_none=True) for card in cards])
            return
        from rich.table import Table

        table = Table("target", "runtimes", "reach", "summary", box=None, pad_edge=False)
        for card in cards:
            table.add_row(card.name, ", ".join(sorted(card.runtimes)), card.reach.kind, card.summary)
        _console().print(table)


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


def _recipe_folders() -> tuple[Path, ...]:
    return tuple(sorted(path for path in RECIPES.glob("*/recipes") if path.is_dir()))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))


def _print_plan(work: Any, recipe: str, as_json: bool) -> None:
    plan = [(stage.name, stage.key, work.store.get(stage.key) is not None) for stage in work.plan()]
    if as_json:
        import tomllib

        stages = [{"name": name, "key": key, "cached": cached} for name, key, cached in plan]
        _print_json({"recipe": tomllib.loads(recipe), "stages": stages})
        return
    print(recipe)
    width = max(len(name) for name, _, _ in plan)
    for name, key, cached in plan:
        print(f"{name:<{width}}  {key[:12]}  {'reused' if cached else 'would run'}")


def _print_run(result: Any, as_json: bool) -> None:
    from pipeline.run import BUNDLE, PREVIEW, REPORT

    files = {"bundle": BUNDLE, "preview": PREVIEW, "report": REPORT}
    if as_json:
        _print_json(
            {
                "run": str(result.folder),
                **{name: str(result.folder / file) for name, file in files.items()},
                "figures": [figure.to_dict() for figure in result.figures],
                "over_budget": [violation.line() for violation in result.violations],
                "notes": list(result.notes),
            }
        )
        return
    from pipeline.figures import figures_table

    console = _console()
    console.print(figures_table(result.figures))
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    for violation in result.violations:
        console.print(f"over budget: {violation.line()}", markup=False)
    for name, file in files.items():
        print(f"{name:<8} {result.folder / file}")


def _print_validation(result: Any, as_json: bool) -> None:
    if as_json:
        _print_json(
            {
                "passed": result.passed,
                "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in result.checks],
                "figures": [figure.to_dict() for figure in result.figures],
                "over_budget": [violation.line() for violation in result.violations],
            }
        )
        return
    from pipeline.figures import figures_table

    width = max(len(check.name) for check in result.checks)
    for check in result.checks:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  {check.detail}")
    _console().print(figures_table(result.figures))
    for violation in result.violations:
        print(f"over budget: {violation.line()}")
    print("passed" if result.passed else "FAILED")


def _own_stderr() -> TextIO:
    """Standard error through a descriptor of its own: to silence a runtime, descriptor 2 is turned away."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except OSError:  # not a real file, as under a test
        return sys.stderr


@contextlib.contextmanager
def _screen() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """One line per finished stage and a bar for the one at work, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=_own_stderr(), highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def log(line: str) -> None:
            name, _, rest = line.partition(": ")
            for bar in progress.task_ids:
                progress.remove_task(bar)
            if rest.startswith(("done", "reused")):
                console.print(line, markup=False)
            else:
                progress.add_task(line.removesuffix(": running"), total=None, count="")

        def tick(done: int, total: int) -> None:
            for bar in progress.task_ids:
                progress.update(bar, completed=done, total=total, count=f"{done}/{total}")

        yield log, tick


@contextlib.contextmanager
def _handled(as_json: bool) -> Iterator[None]:
    """Turns an error of ours into its one line and its exit code."""
    try:
        yield
        sys.stdout.flush()  # a full disk or a closed pipe behind it shows here, not at the interpreter's end
    except ParedownError as error:
        if as_json:
            _print_json({"error": str(error), "exit_code": error.exit_code})
        print(f"paredown: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print(
            "paredown: interrupted; run the same command again to go on from the last stage", file=sys.stderr
        )
        raise typer.Exit(130) from None
    except OSError as error:
        if error.filename is None:  # standard output: what is left in its buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `paredown ... | head`: the reader has what it wanted
            raise typer.Exit(1) from None
        print(f"paredown: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(4) from None


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
