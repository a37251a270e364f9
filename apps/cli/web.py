"""The commands that bring a detector to a browser: web, serve."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from paredown.apps.cli.console import AsJson, handled, print_json
from paredown.apps.cli.group import USE

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


@app.command(rich_help_panel=USE)
def serve(
    site: Annotated[Path, typer.Argument(help="A folder written by `paredown web`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 = any free one.")] = 8000,
    lan: Annotated[
        bool, typer.Option("--lan", help="Let other machines of the local network open it.")
    ] = False,
    https: Annotated[bool, typer.Option("--https", help="Use HTTPS with a self-signed certificate.")] = False,
) -> None:
    """Serve that web page on this machine, until Ctrl-C."""
    with handled(False), tempfile.TemporaryDirectory() as scratch:
        from paredown.apps.detector.web.serve import (
            EVERYWHERE,
            LOOPBACK,
            lan_address,
            open_server,
            secure,
            self_signed,
        )

        address = (lan_address() if lan else None) or "localhost"
        with open_server(site, EVERYWHERE if lan else LOOPBACK, port) as server:
            if https:
                secure(server, self_signed(sorted({"localhost", LOOPBACK, address})), Path(scratch))
            print(f"{'https' if https else 'http'}://{address}:{server.server_port}/", flush=True)
            for line in _warnings(lan, https):
                print(line, file=sys.stderr)
            with contextlib.suppress(KeyboardInterrupt):  # the way to end it
                server.serve_forever()


def _warnings(lan: bool, https: bool) -> list[str]:
    lines = []
    if lan:
        lines.append("warning: everyone in this network can open the page")
    if lan and not https:
        lines.append("warning: browsers give their camera to https or localhost only: add --https")
    if https:
        lines.append("note: browsers warn of the certificate, and keep nothing offline behind it")
    return lines
