"""What the commands share: progress on standard error, results on standard output, errors in one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from paredown.apps.api.recipes import recipe_folders as recipe_folders
from paredown.apps.cli.group import recipe_names, target_names
from paredown.pipeline.store.event import Event, Tell
from paredown.targets.errors import ParedownError, UsageError

if TYPE_CHECKING:
    from paredown.pipeline.store.shared.shared import SharedStore

FOR_MODELS = ("--mean", "--scale", "--channels", "--shape")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe, as bench.runs=20; repeatable."),
]
Root = Annotated[Path, typer.Option("--runs", help="Folder of the runs and of stored results.")]
StoreURL = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="PAREDOWN_STORE",
        help="Share results with other machines: a folder, or a URL as s3://bucket/folder.",
    ),
]
RecipeName = Annotated[
    str, typer.Argument(help="A known recipe (`digits`) or a .toml file.", autocompletion=recipe_names)
]
RecipeOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_MODEL",
        help="A known recipe (`digits`), a .toml file, or a model file (.onnx) with --data.",
        autocompletion=recipe_names,
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(help="Of a model file: a folder of photos or .npy arrays, or a YAML of labelled data."),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", help="Of a model file: detect, classify, segment or outputs; unset = by its outputs."
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Of a model file: subtracted from pixels of 0 to 255, as 123.7,116.3,103.5."),
]
Scale = Annotated[
    str | None, typer.Option(help="Of a model file: divides what is left, as 58.4,57.1,57.4 or 255.")
]
Channels = Annotated[str | None, typer.Option(help="Of a model file: rgb, bgr or grey.")]
InputShape = Annotated[
    str | None, typer.Option("--shape", help="Of a model file that leaves it open: as 3x224x224 or 224x224.")
]
TargetName = Annotated[
    str, typer.Option(help="A target card, see `paredown targets`.", autocompletion=target_names)
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Run every stage on a handful of samples.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also say what begins.")]
EVERY_S = 20.0  # between two lines that say that a stage is at work, where there is no bar


def recipe_of(recipe: str, runs: Path, data: Path | None, task: str | None, *given: str | None) -> str:
    """The recipe's own name, or the file of one that is written for a model file."""
    from paredown.pipeline.recipe.imports.read import is_model

    if not is_model(recipe):
        asked = {"--data": data, "--task": task} | dict(zip(FOR_MODELS, given, strict=True))
        if used := [option for option, value in asked.items() if value is not None]:
            raise UsageError("is for model files alone; a recipe says it in its keys", where=used[0])
        return recipe
    if data is None:
        raise UsageError("a model file needs data to calibrate on", where=recipe,
                         hint="add --data photos/")  # fmt: skip
    from paredown.apps.api.imports.model_recipe import Asked, model_recipe, numbers

    mean, scale, channels, shape = given
    asked_for = Asked(
        data, task, numbers(mean, "--mean"), numbers(scale, "--scale"), channels,
        numbers(shape, "--shape", int, "x"),
    )  # fmt: skip
    path, said = model_recipe(Path(recipe), asked_for, runs / Path(recipe).stem)
    for line in said:
        print(line, file=sys.stderr)
    return str(path)


def tables() -> Any:
    """For tables on standard output."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def print_json(document: Any) -> None:
    """The one document of `--json`."""
    print(json.dumps(document, indent=1, allow_nan=False))


def _own_stderr() -> TextIO:
    """Standard error through a descriptor of its own: to silence a runtime, descriptor 2 is turned away."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except OSError:  # not a real file, as under a test
        return sys.stderr


class Pulse:
    """Says that a stage is still at work where no bar shows it: a line every 20 seconds.

    Args:
        say: prints a line.
        every_s: seconds between two.
        clock: seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._every, self._clock = say, every_s, clock
        self._stage, self._began, self._done, self._total = "", 0.0, 0, 0
        self._ended = threading.Event()

    def begin(self, stage: str) -> None:
        """A stage is at work now; an empty name is none."""
        self._stage, self._began, self._done, self._total = stage, self._clock(), 0, 0

    def tick(self, done: int, total: int) -> None:
        """How far it is."""
        self._done, self._total = done, total

    def line(self) -> str:
        """What there is to say now; empty where nothing is at work."""
        if not self._stage:
            return ""
        passed = self._clock() - self._began
        said = f"{self._stage}: at work for {_span(passed)}"
        if 0 < self._done < self._total:
            left = passed / self._done * (self._total - self._done)
            said += f", {self._done}/{self._total}, about {_span(left)} left"
        return said

    def run(self) -> None:
        """Says it again and again, until `end`."""
        while not self._ended.wait(self._every):
            if line := self.line():
                self._say(line)

    def end(self) -> None:
        """Nothing more is said."""
        self._ended.set()


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def screen(quiet: bool = False, verbose: bool = False) -> Iterator[tuple[Tell, Callable[[int, int], None]]]:
    """One line per finished stage and a bar for the one at work, on standard error.

    Args:
        quiet: nothing but errors.
        verbose: a line for each beginning too.
    """
    if quiet:
        yield (lambda event: None), (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=_own_stderr(), highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    pulse = Pulse(lambda line: console.print(line, markup=False, soft_wrap=True))
    with (
        contextlib.ExitStack() as stack,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        if not console.is_terminal:
            thread = threading.Thread(target=pulse.run, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(pulse.end)

        def tell(event: Event) -> None:
            for bar in progress.task_ids:
                progress.remove_task(bar)
            if event.state == "running":
                label = event.stage + (f" again ({event.detail})" if event.detail else "")
                progress.add_task(label, total=None, count="")
                pulse.begin(label)
                if verbose:
                    console.print(event.line(), markup=False, soft_wrap=True)
            else:
                pulse.begin("")
                console.print(event.line(), markup=False, soft_wrap=True)

        def tick(done: int, total: int) -> None:
            pulse.tick(done, total)
            for bar in progress.task_ids:
                progress.update(bar, completed=done, total=total, count=f"{done}/{total}")

        yield tell, tick


def shared_store(url: str | None, tell: Tell) -> SharedStore | None:
    """Opens what --store says; what goes wrong there later is a line."""
    from paredown.pipeline.store.shared.shared import open_shared

    if not url:
        return None
    return open_shared(url, lambda line: tell(Event("shared store", "done", None, line)))


@contextlib.contextmanager
def handled(as_json: bool) -> Iterator[None]:
    """Turns an error of ours into its one line and its exit code."""
    try:
        yield
        sys.stdout.flush()  # a full disk or a closed pipe behind it shows here, not at the interpreter's end
    except ParedownError as error:
        if as_json:
            print_json({"error": str(error), "exit_code": error.exit_code})
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
        print(f"paredown: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(4) from None
