"""The commands that work with a device, or predict one: validate, bench, cost, inspect, bundle, doctor."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from paredown.apps.cli.console import (
    AsJson,
    InputShape,
    Quiet,
    RecipeName,
    Settings,
    TargetName,
    Verbose,
    handled,
    print_json,
    recipe_folders,
    screen,
    tables,
)
from paredown.apps.cli.group import LOOK, MAKE, PROVE, recipe_names
from paredown.pipeline.store.event import Event
from paredown.targets.errors import InputError

Bundle = Annotated[Path, typer.Argument(help="A .paredown file.")]
DeviceAddress = Annotated[
    str,
    typer.Option(help="local: | ssh://user@host | adb:SERIAL | emulated:NAME | simulated:"),
]

app = typer.Typer()


@app.command(rich_help_panel=PROVE)
def validate(
    bundle: Bundle,
    device: DeviceAddress = "local:",
    limit: Annotated[int | None, typer.Option(min=1, help="Score at most this many test images.")] = None,
    score: Annotated[bool, typer.Option(help="Score on the recipe's test images.")] = True,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that it was made with, where that names code of your own.")
    ] = None,
    times: Annotated[
        int, typer.Option(min=1, help="Timed inferences per runtime (language models: generated tokens).")
    ] = 30,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the recipe's files, or of test images; default: those of the run."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Check a bundle on a device: outputs, score, latency, budget.

    Checks the hashes of all members, the outputs on the test vectors, the score against the recorded one,
    and the budget. Exit code 3 = one of the checks failed.
    """
    with handled(as_json):
        from paredown.pipeline.device.validate.validate import validate as prove
        from paredown.pipeline.recipe.file import load_recipe

        with screen(quiet, verbose) as (tell, tick):
            result = prove(
                bundle, device, limit=limit, score=score, runs=times, data=data,
                recipe=None if recipe is None else load_recipe(recipe), tell=tell, tick=tick,
            )  # fmt: skip
        _print_validation(result, as_json)
        if not result.passed:
            raise typer.Exit(3)


@app.command(rich_help_panel=PROVE)
def bench(
    bundle: Bundle,
    device: DeviceAddress = "local:",
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Duration in minutes; heat shows after some minutes.")
    ] = 0.5,
    plot: Annotated[Path | None, typer.Option(help="Draw latency over time, as a PNG file.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency over minutes, memory, operators and temperature."""
    with handled(as_json):
        from paredown.pipeline.device.bench.bench import bench as measure
        from paredown.pipeline.device.bench.sustained import plot as draw
        from paredown.pipeline.report.page.document import BURSTS, DOCUMENT
        from paredown.pipeline.store.store import write_atomic
        from paredown.targets.host.tools import need

        if plot:
            need("matplotlib", "--plot")
        with screen(quiet, verbose) as (tell, tick):
            result = measure(bundle, device, minutes, tell=tell, tick=tick)
        if plot and result.bursts:
            draw(result.bursts, device, plot)
        beside = bundle.with_name(DOCUMENT)
        if beside.exists():  # a run's folder: its next `paredown report` shows the minutes
            write_atomic(bundle.with_name(BURSTS), (json.dumps(result.to_dict()) + "\n").encode())
        if as_json:
            print_json(result.to_dict())
            return
        from paredown.apps.cli.results.printing import print_figures

        print_figures(result.figures)
        for table in result.tables():
            tables().print(table)
        for note in result.notes:
            tables().print(f"note: {note}", markup=False)
        if plot and result.bursts:
            print(f"plot     {plot}")


@app.command(rich_help_panel=LOOK)
def cost(
    recipe: RecipeName = "digits",
    target: TargetName = "host",
    device: DeviceAddress = "local:",
    runtime: Annotated[str, typer.Option(help="The runtime to measure: litert or executorch.")] = "litert",
    out: Annotated[
        Path | None, typer.Option(help="The table's file; default: latency-TARGET-RUNTIME.json.")
    ] = None,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure the latency of each layer, for `prune.latency`."""
    with handled(as_json):
        from paredown.pipeline.device.executor import open_executor
        from paredown.pipeline.device.latency.measure import measure_cost
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.run.job import images_only
        from paredown.targets.cards.card import load_card

        card = load_card(target)
        resolved = load_recipe(recipe, set_ or (), recipe_folders())
        images_only(resolved, "cost")
        path = out or Path(f"latency-{card.name}-{runtime}.json")
        with screen() as (tell, tick), open_executor(device, card, tell) as executor:
            found = measure_cost(resolved, card, runtime, executor, path, tick)
        if as_json:
            parts = {part.node: part.value(found.full) for part in found.parts}
            document = {"table": str(path), "unit": found.unit, "network": found.unpruned, "layers": parts}
            print_json(document)
            return
        print(f"whole network: {found.unpruned:.3f} {found.unit}, as a sum of its layers and a call")
        print(f"table    {path}")
        print(f"use it   --set prune.latency_table={path} --set prune.latency=0.6")


@app.command(rich_help_panel=LOOK)
def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RECIPE",
            autocompletion=recipe_names,
            help="A recipe, a .cfg file, or a built-in network.",
        ),
    ],
    target: TargetName = "host",
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Predict which operators leave the target's delegate, and why."""
    with handled(as_json):
        from paredown.apps.api.untrained import untrained
        from paredown.pipeline.graph.trace import trace
        from paredown.pipeline.lower.predict.inspect import inspect as predict
        from paredown.pipeline.lower.predict.inspect import inspect_graph, refusal
        from paredown.pipeline.recipe.file import load_recipe
        from paredown.pipeline.recipe.schema import Lower
        from paredown.pipeline.run.job import images_only
        from paredown.targets.cards.card import load_card

        card = load_card(target)
        with screen() as (tell, _):
            tell(Event(what, "running"))
            if (model := untrained(what)) is not None:
                network, shape, values = model
                graph = trace(network, shape, opaque=True)
                usual = Lower().on(card.runtimes).runtimes
                found = inspect_graph(graph, card, usual, values, what)
                found = dataclasses.replace(found, notes=(*refusal(network, graph), *found.notes))
            else:
                recipe = load_recipe(what, set_ or (), recipe_folders())
                images_only(recipe, "inspect")
                found = predict(recipe, card)
        if as_json:
            print_json(found.to_dict())
            return
        for table in found.tables():
            tables().print(table)
        for note in found.notes:
            tables().print(f"note: {note}", markup=False)


@app.command("import", rich_help_panel=LOOK)
def import_(
    model: Annotated[
        Path,
        typer.Argument(help="A model of another tool: .onnx, .tflite, .keras, .h5, .pt2, .pt, a folder."),
    ],
    target: TargetName = "host",
    shape: InputShape = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model file is, and what will be possible with it.

    It is imported, compared with onnxruntime where that is installed, and traced; each group of channels is
    cut on trial, and the placement on the target is predicted. Nothing is written.
    """
    with handled(as_json):
        from paredown.apps.api.imports.describe import describe
        from paredown.apps.api.imports.model_recipe import numbers
        from paredown.targets.cards.card import load_card

        with screen() as (tell, _):
            tell(Event(str(model), "running"))
            found = describe(model, numbers(shape, "--shape", int, "x"), load_card(target))
        if as_json:
            print_json(found.to_dict())
        else:
            for line in found.lines():
                tables().print(line, markup=False)
            if found.inspection is not None:
                for table in found.inspection.tables():
                    tables().print(table)
                for note in found.inspection.notes:
                    tables().print(f"note: {note}", markup=False)
        if found.problem:
            problem = InputError(found.problem)
            if as_json:  # the document is out, and says it
                print(f"paredown: {problem}", file=sys.stderr)
                raise typer.Exit(problem.exit_code)
            raise problem


@app.command("bundle", rich_help_panel=MAKE)
def bundle_(
    programs: Annotated[
        list[Path], typer.Argument(help="Finished programs of one network: .tflite, .pte, .onnx.")
    ],
    preprocess: Annotated[
        Path | None, typer.Option(help="A .toml with a recipe's keys of [preprocess], and decoding.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="The classes' names, one a line.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Photos or .npy arrays; photos in class folders are scored.")
    ] = None,
    task: Annotated[str, typer.Option(help="outputs, classify or detect.")] = "outputs",
    target: TargetName = "host",
    out: Annotated[Path | None, typer.Option(help="The bundle; default: PROGRAM.paredown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of a finished program, as it is.

    Nothing is trained or quantized. Test vectors are made by running the program here; then validate, bench
    and deploy work as for any bundle.
    """
    with handled(as_json):
        from paredown.apps.api.finished import Asked, bundle
        from paredown.targets.cards.card import load_card

        card, asked = load_card(target), Asked(tuple(programs), preprocess, labels, data, task)
        with screen() as (tell, tick):
            made = bundle(asked, card, out or Path(f"{programs[0].stem}.paredown"), tell, tick)
        if as_json:
            figures = [figure.to_dict() for figure in made.figures]
            print_json({"bundle": str(made.path), "figures": figures, "notes": list(made.notes)})
            return
        for line in made.lines():
            tables().print(line, markup=False)


@app.command(rich_help_panel=LOOK)
def doctor(
    device: Annotated[str | None, typer.Option(help="The device to check; default: this machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check what is missing on this machine or a device; print the fix."""
    with handled(as_json):
        from paredown.targets.devices.doctor import examine

        if device is None:
            found = examine(None)
        else:
            from paredown.targets.address import open_device

            with open_device(device) as connected:
                found = examine(connected)
        if as_json:
            print_json([dataclasses.asdict(finding) for finding in found])
            return
        from rich.table import Table

        table = Table("", "what", "detail", "fix", box=None, pad_edge=False)
        for finding in found:
            table.add_row(finding.state, finding.name, finding.detail, finding.mend or "")
        tables().print(table)


def _print_validation(result: Any, as_json: bool) -> None:
    from paredown.apps.cli.results import printing

    if as_json:
        print_json({"passed": result.passed, **printing.judged(result)})
        return
    printing.print_checks(result.checks)
    printing.print_figures(result.figures)
    printing.print_budget(result.limits)
    printing.print_verdict(result.verdict)
