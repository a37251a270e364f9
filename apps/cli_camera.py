"""The commands of the camera app: camera here, and deploy, stop and logs on a device."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer

from apps.console import handled

#: The app's own parser reads the options: they are the same on a board.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer()


@app.command(context_settings=PASSED_ON)
def camera(context: typer.Context) -> None:
    """Watches a camera, a stream, a video or a folder with a bundle: boxes, tracks, counts."""
    with handled(False):
        from apps.detector.device.camera import parser, run
        from pipeline.bundle import extract, unpack
        from targets.errors import InputError

        ours = parser("paredown camera")
        ours.add_argument("bundle", type=Path, metavar="BUNDLE", help="a detector's .paredown file")
        options = ours.parse_args(context.args)
        bundle = unpack(options.bundle)
        if bundle.manifest.app != "apps.detector":
            what = f"a bundle of {bundle.manifest.app} finds no boxes"
            raise InputError(what, where=options.bundle, hint="make one with `paredown run digits`")
        with tempfile.TemporaryDirectory() as folder:
            extract(bundle, Path(folder))
            run(options, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))
