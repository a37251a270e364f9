"""The commands that show what was made: report, unpack."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from paredown.apps.cli.console import AsJson, handled, print_json
from paredown.apps.cli.group import LOOK, USE

app = typer.Typer()


@app.command(rich_help_panel=LOOK)
def report(
    what: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_BUNDLE...", help="Folders of runs, or .paredown files.")
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Put them side by side in one page.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The page's file; default: report.html of the run, NAME.html of a bundle."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report, or a bundle's card, as one HTML page.

    The page needs no network and no other file. After `paredown bench` it also shows the minutes.
    """
    with handled(as_json):
        from paredown.pipeline.report.page.render import render, render_comparison
        from paredown.pipeline.store.store import write_atomic
        from paredown.targets.errors import UsageError

        if compare and len(what) < 2:
            raise UsageError("needs two runs or bundles", where="--compare", hint="name another one")
        if out and len(what) > 1 and not compare:
            hint = "add --compare, or leave --out out"
            raise UsageError(f"is one page, and {len(what)} are asked for", where="--out", hint=hint)
        documents = [_document(path) for path in what]
        if compare:
            pages = {out or Path("compare.html"): render_comparison(documents)}
        else:
            pages = {
                out or _page_of(path): render(document)
                for path, document in zip(what, documents, strict=True)
            }
        for path, page in pages.items():
            write_atomic(path, page)
        if as_json:
            print_json({"pages": [str(path) for path in pages]})
        else:
            for path in pages:
                print(f"report   {path}")
        if open_:
            for path in pages:
                webbrowser.open(path.absolute().as_uri())


@app.command(rich_help_panel=USE)
def unpack(
    bundle: Annotated[Path, typer.Argument(help="A .paredown file.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: the bundle's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the files of a bundle into a folder.

    Every hash is checked first. The folder is what a device gets.
    """
    with handled(as_json):
        from paredown.pipeline.bundle.archive import extract
        from paredown.pipeline.bundle.archive import unpack as opened
        from paredown.targets.errors import UsageError

        found = opened(bundle)
        folder = out or Path(bundle.stem if bundle.suffix else f"{bundle.name}-files")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError("is there already and not empty", where=folder, hint="give --out a new folder")
        extract(found, folder)
        models = [model.file for model in found.manifest.programs]
        if as_json:
            print_json({"folder": str(folder), "files": sorted(found.members), "models": models})
            return
        print(f"folder   {folder}: {len(found.members) + 1} files")
        for model in models:
            print(f"model    {folder / model}")


def _document(path: Path) -> dict[str, Any]:
    from paredown.pipeline.bundle.archive import unpack as opened
    from paredown.pipeline.report.page.document import bundle_document, read_document
    from paredown.targets.errors import InputError

    if path.is_dir():
        return read_document(path)
    if not path.exists():
        raise InputError("no such run or bundle", where=path, hint="runs lie in runs/RECIPE/TARGET")
    bundle = opened(path)
    return bundle_document(bundle.manifest, bundle.path, {n: len(d) for n, d in bundle.members.items()})


def _page_of(path: Path) -> Path:
    from paredown.pipeline.report.page.document import PAGE

    return path / PAGE if path.is_dir() else path.with_suffix(".html")
