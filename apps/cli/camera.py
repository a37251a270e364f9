"""The commands of the camera app: camera here, and deploy, stop and logs on a device."""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from paredown.apps.cli.console import AsJson, handled, print_json, screen

#: The app's own parser reads the options: they are the same on a board.
PASSED_ON: dict[str, Any] = {
    "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": [],
}  # fmt: skip
APPS = ("camera", "drone")
Address = Annotated[str, typer.Option("--device", help="ssh://user@host | adb:SERIAL | local:")]
Name = Annotated[str, typer.Option(help="Of the app on the device; the kind of app, unless given otherwise.")]

app = typer.Typer()


@app.command(context_settings=PASSED_ON)
def camera(context: typer.Context) -> None:
    """Watches a camera, a stream, a video or a folder with a bundle: boxes, tracks, counts."""
    with handled(False):
        from paredown.apps.detector.device.camera import parser, run
        from paredown.pipeline.bundle.archive import extract, unpack
        from paredown.targets.errors import InputError

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


@app.command(context_settings={"allow_extra_args": True})
def deploy(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A .paredown file.")],
    device: Address,
    kind: Annotated[
        str, typer.Option("--app", help=f"What the bundle is to be there: {', '.join(APPS)}.")
    ] = "camera",
    name: Annotated[str | None, typer.Option(help="Of the app there, where one device has several.")] = None,
    service: Annotated[bool, typer.Option(help="Start it with the device, by systemd.")] = False,
    tail: Annotated[bool, typer.Option(help="Show what it says, until Ctrl-C; it goes on.")] = True,
    as_json: AsJson = False,
) -> None:
    """Installs a bundle on a device, proves it there, and starts it; after -- come the app's own options."""
    with handled(as_json):
        from paredown.pipeline.device.deploy import deploy as install
        from paredown.targets.address import open_device
        from paredown.targets.errors import UsageError

        if kind not in APPS:
            raise UsageError(f"no app is called `{kind}`", where="--app", hint=f"there are {', '.join(APPS)}")
        device_code = importlib.import_module(f"paredown.apps.detector.device.{kind}")
        device_code.parser(f"--app {kind}").parse_args(context.args)  # better told here than by the device
        with open_device(device) as connected:
            with screen() as (tell, _):
                made = install(
                    bundle, connected, kind, name=name, arguments=context.args, service=service, tell=tell
                )
            if as_json:
                print_json(made.to_dict())
                return
            print(f"{made.name} {made.release} runs on {made.device}")
            print(f"stop it  paredown stop --device {device} --name {made.name}")
            if tail:
                from paredown.targets.devices.service.service import Service

                with contextlib.suppress(KeyboardInterrupt):  # of the tailing alone
                    Service(connected, made.name).logs(print, lines=10, follow=True)


@app.command()
def stop(device: Address, name: Name = "camera", as_json: AsJson = False) -> None:
    """Ends an app that was deployed on a device, and only that."""
    with handled(as_json):
        from paredown.targets.address import open_device
        from paredown.targets.devices.service.service import Service

        with open_device(device) as connected:
            told = Service(connected, name).stop()
        if as_json:
            print_json(told)
            return
        print(f"{name} {'has ended' if told['was_running'] else 'was not running'}")


@app.command()
def logs(
    device: Address,
    name: Name = "camera",
    lines: Annotated[int, typer.Option(min=1, help="How many of the last ones.")] = 50,
    follow: Annotated[bool, typer.Option(help="Go on until the app ends, or Ctrl-C.")] = False,
) -> None:
    """Shows what an app says that was deployed on a device."""
    with handled(False):
        from paredown.targets.address import open_device
        from paredown.targets.devices.service.service import Service

        with open_device(device) as connected:
            Service(connected, name).logs(print, lines, follow)
