"""The commands of the camera apps: camera and drone here; deploy, stop and logs on a device."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paredown.apps.cli.console import AsJson, handled, print_json, screen
from paredown.apps.cli.group import USE
from paredown.apps.cli.options import FromParser, options_of

if TYPE_CHECKING:
    from argparse import ArgumentParser

APPS = ("camera", "drone")
Bundle = Annotated[Path, typer.Argument(help="A detector's .paredown file.")]
Address = Annotated[str, typer.Option("--device", help="ssh://user@host | adb:SERIAL | local:")]
Name = Annotated[str, typer.Option(help="Name of the app on the device.")]

app = typer.Typer()


class _Camera(FromParser):
    """The options of the device's own program."""

    def parser(self) -> ArgumentParser:
        from paredown.apps.detector.device.camera import parser

        return parser("paredown camera")


class _Drone(FromParser):
    """The options of the device's own program."""

    def parser(self) -> ArgumentParser:
        from paredown.apps.detector.device.drone import parser

        return parser("paredown drone")


@app.command(cls=_Camera, rich_help_panel=USE)
def camera(context: typer.Context, bundle: Bundle) -> None:
    """Detect, track and count objects in a camera, a video or images.

    A live source drops what comes too fast; a file is read frame by frame.
    """
    with handled(False):
        from paredown.apps.detector.device.camera import run

        _watch(run, context, bundle)


@app.command(cls=_Drone, rich_help_panel=USE)
def drone(context: typer.Context, bundle: Bundle) -> None:
    """Send the positions of detected objects to an autopilot (MAVLink).

    It sends LANDING_TARGET or FOLLOW_TARGET, and nothing while it cannot trust what it sees.
    """
    with handled(False):
        from paredown.apps.detector.device.drone import run

        _watch(run, context, bundle)


def _watch(run: Any, context: typer.Context, path: Path) -> None:
    """Runs an app of the detector on this machine.

    Raises:
        InputError: the bundle is damaged, or of another app.
    """
    from paredown.apps.detector.device.camera import tell_stderr
    from paredown.pipeline.bundle.archive import extract, unpack
    from paredown.pipeline.bundle.finished.apart import run_apart
    from paredown.pipeline.device.validate.programs import bundle_program
    from paredown.targets.errors import InputError

    bundle = unpack(path)
    if bundle.manifest.app != "apps.detector":
        what = f"a bundle of {bundle.manifest.app} detects no objects"
        hint = "make one with `paredown run digits`, or `paredown bundle --task detect` of a finished program"
        raise InputError(what, where=path, hint=hint)
    for model in bundle.manifest.models:
        if model.runtime == "litert":
            run_apart(bundle_program(bundle, model))
    with tempfile.TemporaryDirectory() as folder:
        extract(bundle, Path(folder))
        run(options_of(context), Path(folder), tell_stderr)


def _show(line: str) -> None:
    """A line of a device's log."""
    from paredown.targets.errors import visible

    print(visible(line), flush=True)


def _apps(incomplete: str) -> list[str]:
    return [name for name in APPS if name.startswith(incomplete)]


@app.command(context_settings={"allow_extra_args": True}, rich_help_panel=USE)
def deploy(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A .paredown file.")],
    device: Annotated[
        str | None, typer.Option("--device", help="ssh://user@host | adb:SERIAL | local:")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="A fleet.toml: many devices, stage by stage; instead of --device.")
    ] = None,
    stages: Annotated[
        str, typer.Option(help="Of a fleet: numbers of devices, groups or `all`, as 1,5,all.")
    ] = "1,all",
    soak: Annotated[
        str | None,
        typer.Option(help="Time that it must live before it counts: 60s, 5m; default of a fleet: 60s."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Give up a fleet's rollout that was interrupted.")
    ] = False,
    kind: Annotated[
        str, typer.Option("--app", help="The app that runs there: camera or drone.", autocompletion=_apps)
    ] = "camera",
    name: Annotated[str | None, typer.Option(help="Name of the app there; default: --app's.")] = None,
    service: Annotated[bool, typer.Option(help="Start it at boot, with systemd.")] = False,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Go back to an older signed release; it is recorded there.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option(help="Install packages that are missing there, into a virtual environment.")
    ] = True,
    tail: Annotated[bool, typer.Option(help="Show its output until Ctrl-C; the app keeps running.")] = True,
    as_json: AsJson = False,
) -> None:
    """Install a bundle on a device, check it there and start it.

    Options of the app itself come after `--`:

    paredown deploy digits.paredown --device ssh://pi@board -- --source 0
    """
    with handled(as_json):
        from paredown.apps.detector.device.frames.private import check_arguments
        from paredown.pipeline.device.deploy.deploy import deploy as install
        from paredown.pipeline.device.deploy.fleet import seconds
        from paredown.targets.address import open_device
        from paredown.targets.devices.service.board.starting import Health
        from paredown.targets.errors import DeviceError, UsageError

        soak_s = None if soak is None else seconds(soak)
        if (device is None) == (fleet is None):
            raise UsageError("give one of --device and --fleet", where="deploy")
        if kind not in APPS:
            raise UsageError(f"no app is called `{kind}`", where="--app", hint=f"there are {', '.join(APPS)}")
        check_arguments(context.args)
        device_code = importlib.import_module(f"paredown.apps.detector.device.{kind}")
        check = device_code.parser(f"--app {kind}").parse_args  # better told here than by the device
        if fleet is not None:
            from paredown.apps.cli.boards.fleet import roll_out
            from paredown.pipeline.device.deploy.rollout import Asked

            asked = Asked(
                bundle, kind, name, stages, 60.0 if soak_s is None else soak_s, context.args, service,
                allow_older, prepare, anew,
            )  # fmt: skip
            roll_out(fleet, asked, check, as_json)
            return
        check(context.args)
        assert device is not None
        health = Health() if soak_s is None else Health(soak_s)
        with open_device(device) as connected:
            with screen() as (tell, _):
                made = install(
                    bundle, connected, kind, name=name, arguments=context.args, service=service,
                    allow_older=allow_older, prepare=prepare, health=health, tell=tell,
                )  # fmt: skip
                if soak_s is not None:
                    from paredown.pipeline.device.deploy.visit import verdict
                    from paredown.targets.devices.service.service import Service

                    _, what = verdict(made.release, health, Service(connected, made.name))
                    if what:
                        raise DeviceError(what, where=device)
            if as_json:
                print_json(made.to_dict())
                return
            print(f"{made.name} {made.release} runs on {made.device}")
            print(f"stop it  paredown stop --device {device} --name {made.name}")
            if tail:
                from paredown.targets.devices.service.service import Service

                with contextlib.suppress(KeyboardInterrupt):  # of the tailing alone
                    Service(connected, made.name).logs(_show, lines=10, follow=True)


@app.command(rich_help_panel=USE)
def stop(device: Address, name: Name = "camera", as_json: AsJson = False) -> None:
    """Stop an app that `deploy` started on a device."""
    with handled(as_json):
        from paredown.targets.address import open_device
        from paredown.targets.devices.service.service import Service

        with open_device(device) as connected:
            told = Service(connected, name).stop()
        if as_json:
            print_json(told)
            return
        print(f"{name} {'has ended' if told['was_running'] else 'was not running'}")


@app.command(rich_help_panel=USE)
def logs(
    device: Address,
    name: Name = "camera",
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option(help="Follow the output until the app ends, or Ctrl-C.")] = False,
) -> None:
    """Show the output of an app that `deploy` started on a device."""
    with handled(False):
        from paredown.targets.address import open_device
        from paredown.targets.devices.service.service import Service

        with open_device(device) as connected:
            Service(connected, name).logs(_show, lines, follow)
