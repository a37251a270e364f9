"""A fleet's rollout and its devices, as tables; `deploy --fleet` and `status --fleet` call this."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from paredown.apps.cli.console import print_json, screen, tables
from paredown.targets.errors import DeviceError, visible

if TYPE_CHECKING:
    from rich.table import Table

    from paredown.pipeline.device.deploy.journal import Journal, Record
    from paredown.pipeline.device.deploy.rollout import Asked

STATES = {"starts": "starts", "runs": "runs", "waits": "waits to start again", "ended": "does not run"}


def roll_out(fleet: Path, asked: Asked, check: Callable[[Sequence[str]], object], as_json: bool) -> None:
    """Rolls a bundle out and tells what became of each device.

    Args:
        fleet: its file.
        asked: what to do.
        check: the app's own look at the options of a device, before anything is sent.
        as_json: whether the result is one document.

    Raises:
        UsageError: options are wrong.
        DeviceError: a device does not run the release.
    """
    from paredown.pipeline.device.deploy.fleet import load_fleet
    from paredown.pipeline.device.deploy.rollout import roll_out as work
    from paredown.pipeline.device.deploy.rollout import succeeded

    for each in load_fleet(fleet).device:
        check((*asked.arguments, *each.arguments))
    with screen() as (tell, _):
        journal = work(fleet, asked, tell)
    good = succeeded(journal)
    if as_json:
        print_json(journal.to_dict() | {"passed": good})
    else:
        _print(journal)
    if good:
        return
    told = {"stop": "stopped", "roll-back": "taken back", "": "went on"}[journal.decision]
    meant = [record for record in journal.records if record.stage]
    lacking = [record.name for record in meant if record.state != "done"]
    what = f"{told}; {len(lacking)} of {len(meant)} devices do not run it: {', '.join(lacking)}"
    problem = DeviceError(what, where=fleet)
    if as_json:  # the document is out, and says it
        print(f"paredown: {problem}", file=sys.stderr)
        raise typer.Exit(problem.exit_code)
    raise problem


def show(fleet: Path, name: str, as_json: bool) -> None:
    """Tells what runs on each device.

    Raises:
        DeviceError: one could not be asked.
    """
    from rich.table import Table

    from paredown.pipeline.device.deploy.fleet import load_fleet
    from paredown.pipeline.device.deploy.rollout import ask

    found = ask(load_fleet(fleet), name)
    if as_json:
        print_json([
            {"device": each.name, "address": each.address, "groups": list(each.groups),
             **({"error": told} if isinstance(told, str) else told)}
            for each, told in found
        ])  # fmt: skip
    else:
        table = Table("device", "groups", "state", "release", "what", box=None, pad_edge=False)
        for each, told in found:
            groups = ", ".join(each.groups) or "-"
            if isinstance(told, str):
                table.add_row(each.name, groups, "not known", "-", _plain(told))
            else:
                what = "; ".join(remarks(told)) or "-"
                table.add_row(each.name, groups, state_of(told), told["release"] or "-", _plain(what))
        _print_table(table)
    silent = [each.name for each, told in found if isinstance(told, str)]
    if silent:
        what = f"{len(silent)} of {len(found)} devices could not be asked: {', '.join(silent)}"
        problem = DeviceError(what, where=fleet)
        if as_json:
            print(f"paredown: {problem}", file=sys.stderr)
            raise typer.Exit(problem.exit_code)
        raise problem


def state_of(status: Mapping[str, Any]) -> str:
    """How an app is, in a word or two."""
    return STATES.get(str(status["state"]), str(status["state"]))


def remarks(status: Mapping[str, Any]) -> list[str]:
    """What else is to be said of an app: why it ended, its restarts, its health window, its log."""
    found = []
    ended, window = status["ended"], status["window"]
    if ended:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ended["time"]))
        said = f": {ended['said']}" if ended.get("said") and ended.get("status") else ""
        found.append(f"last {ended.get('why', 'ended')}, {when}{said}")
    if status["running"] and status["restarts"]:
        times = status["restarts"]
        found.append("started again once" if times == 1 else f"started again {times} times")
    tested = window and window["state"] == "open" and window["release"] == status["release"]
    if tested and status["running"]:
        found.append(f"in its health window of {window['seconds']:g} s")
    if window and window["state"] == "failed":
        after = f"release {window['before']} came back" if window["returned"] else "none to go back to"
        found.append(f"release {window['release']} failed: it {window['why']}; {after}")
    if status["dropped"]:
        found.append(f"no space for {status['dropped']} lines of the log")
    return found


def _print(journal: Journal) -> None:
    from rich.table import Table

    table = Table("device", "stage", "before", "now", "state", "what happened", box=None, pad_edge=False)
    for each in journal.records:
        row = (_release(each, False), _release(each, True), each.state, each.what or "-")
        table.add_row(each.name, str(each.stage or "-"), *map(_plain, row))
    _print_table(table)
    if any(_release(each, True).endswith("?") for each in journal.records):
        print("?: as a rollout before left it; the device could not be asked")
    print(f"{journal.bundle} {journal.release}; journal {journal.path}")


def _release(record: Record, now: bool) -> str:
    found = record.release(now)
    if record.state == "left out" or found is None:
        return "-"
    asked = found == (record.now if now else record.before)
    return found if asked else f"{found}?"


def _print_table(table: Table) -> None:
    """Without the spaces at the ends of its lines."""
    console = tables()
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _plain(text: str) -> str:
    """What a device says, without what a terminal or a table would obey."""
    from rich.markup import escape

    return escape(visible(text))
