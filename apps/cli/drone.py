"""The command `drone`: a bundle's detections, told to an autopilot."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer

from paredown.apps.cli.camera import PASSED_ON
from paredown.apps.cli.console import handled

app = typer.Typer()


@app.command(context_settings=PASSED_ON)
def drone(context: typer.Context) -> None:
    """Tells an autopilot over MAVLink where the objects are: landing target, follow target, or silence."""
    with handled(False):
        from paredown.apps.detector.device.drone import parser, run
        from paredown.pipeline.bundle.archive import extract, unpack
        from paredown.targets.errors import InputError

        ours = parser("paredown drone")
        ours.add_argument("bundle", type=Path, metavar="BUNDLE", help="a detector's .paredown file")
        options = ours.parse_args(context.args)
        bundle = unpack(options.bundle)
        if bundle.manifest.app != "apps.detector":
            what = f"a bundle of {bundle.manifest.app} finds no boxes"
            raise InputError(what, where=options.bundle, hint="make one with `paredown run digits`")
        with tempfile.TemporaryDirectory() as folder:
            extract(bundle, Path(folder))
            run(options, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))
