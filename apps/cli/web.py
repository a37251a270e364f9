"""The commands that bring a detector to a browser: web, serve."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from paredown.apps.cli.console import AsJson, handled, print_json
from paredown.apps.cli.group import USE

#: What a phone's browser does with a certificate that nobody signed.
PHONE = (
    "phone: the same Wi-Fi; scan the code, or type the address",
    "phone: the browser warns that the connection is not private: the certificate is this machine's own. "
    "Chrome: Advanced, Proceed. Safari: Show Details, visit this website",
    "phone: then it asks for the camera: Allow",
)

app = typer.Typer()


@app.command(rich_help_panel=USE)
def web(
    bundle: Annotated[Path, typer.Argument(help="A detector's .paredown file.")],
    out: Annotated[Path, typer.Option(help="Folder that the page is written to.")] = Path("site"),
    litertjs: Annotated[
        Path | None,
        typer.Option(help="A node_modules folder with @litertjs/core; default: npm downloads it once."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a web page that detects objects with a phone's camera.

    The page is static and the network runs in the browser; after the first visit the page also works offline.
    """
    with handled(as_json):
        from paredown.apps.detector.web.site import build
        from paredown.pipeline.bundle.archive import unpack

        site = build(unpack(bundle), out, litertjs)
        if as_json:
            print_json(dataclasses.asdict(site) | {"folder": str(site.folder)})
            return
        print(f"page     {site.folder}: {len(site.files)} files, {site.bytes / 2**20:.1f} MiB")
        print(f"try it   paredown serve {site.folder}")
        print(f"phone    paredown serve {site.folder} --phone")


@app.command(rich_help_panel=USE)
def serve(
    site: Annotated[Path, typer.Argument(help="A folder written by `paredown web`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 = any free one.")] = 8000,
    lan: Annotated[
        bool, typer.Option("--lan", help="Let other machines of the local network open it.")
    ] = False,
    https: Annotated[bool, typer.Option("--https", help="Use HTTPS with a self-signed certificate.")] = False,
    phone: Annotated[
        bool, typer.Option("--phone", help="--lan and --https, with a QR code to scan; says what comes.")
    ] = False,
) -> None:
    """Serve that web page on this machine, until Ctrl-C.

    With --phone a telephone in the same network opens it: scan the code. The certificate is made anew each
    time and is signed by nobody, so the browser warns once.
    """
    lan, https = lan or phone, https or phone
    with handled(False), tempfile.TemporaryDirectory() as scratch:
        from paredown.apps.detector.web.serve import (
            EVERYWHERE,
            LOOPBACK,
            lan_address,
            open_server,
            secure,
            self_signed,
        )
        from paredown.targets.errors import DeviceError
        from paredown.targets.host.tools import need

        if phone:
            need("segno", "the code that a phone scans")
        found = lan_address() if lan else None
        if phone and found is None:
            hint = "join the telephone's network (Wi-Fi), then try again"
            raise DeviceError("this machine is in no network", where="--phone", hint=hint)
        address = found or "localhost"
        with open_server(site, EVERYWHERE if lan else LOOPBACK, port) as server:
            if https:
                secure(server, self_signed(sorted({"localhost", LOOPBACK, address})), Path(scratch))
            url = f"{'https' if https else 'http'}://{address}:{server.server_port}/"
            if phone:
                _print_code(url)
            print(url, flush=True)
            for line in (*_warnings(lan, https), *(PHONE if phone else ())):
                print(line, file=sys.stderr)
            with contextlib.suppress(KeyboardInterrupt):  # the way to end it
                server.serve_forever()


def _print_code(url: str) -> None:
    """A QR code of half-height blocks, light on dark whatever the terminal's own colours are."""
    import segno

    out = io.StringIO()
    segno.make(url, error="m").terminal(out=out, compact=True)
    before, after = ("\x1b[97;40m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for line in out.getvalue().splitlines():
        print(f"{before}{line}{after}")


def _warnings(lan: bool, https: bool) -> list[str]:
    lines = []
    if lan:
        lines.append("warning: everyone in this network can open the page")
    if lan and not https:
        lines.append("warning: browsers give their camera to https or localhost only: add --https")
    if https:
        lines.append("note: browsers warn of the certificate, and keep nothing offline behind it")
    return lines
