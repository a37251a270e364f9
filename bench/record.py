"""Tables of figures: printed as Markdown row by row; `--record` writes them to docs/figures/ too.

The pages of docs/ render the records, so no number is copied by hand. docs/formats.md has their keys.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paredown.targets.host.host import this_machine

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
SOURCES = ("apps", "bench", "calibration", "pipeline", "targets")
FACTS = ("cpu", "cores", "arch", "system", "python", "versions")  # of the machine; not its name


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--record [NAME]`; it comes after the bench's own arguments."""
    parser.add_argument(
        "--record", nargs="?", const="", metavar="NAME",
        help="write the table to docs/figures/NAME.json (default: the bench's own name)",
    )  # fmt: skip


class Table:
    """One table; use it with `with`.

    Args:
        name: of the record, unless `--record NAME` gives another.
        columns: the heads.
        record: the value of `--record`; None = print only.
        part: ends the record's name, where a bench has several tables.
        notes: what a reader has to know beside the columns.
    """

    def __init__(
        self, name: str, columns: Sequence[str], record: str | None = None, *, part: str = "",
        notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name = "-".join(filter(None, [record or name, part]))
        self.columns, self.notes, self.rows = list(columns), list(notes), list[list[str]]()
        self._record = record is not None

    def __enter__(self) -> Table:
        self._print(self.columns)
        self._print(["---"] * len(self.columns))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._record and kind is None:
            write(self.name, command(), self.columns, self.rows, self.notes)

    def row(self, *cells: object) -> None:
        """Prints a row.

        Raises:
            ValueError: it has another length than the heads.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells in a table of {len(self.columns)} columns: {cells}")
        self.rows.append([str(cell) for cell in cells])
        self._print(self.rows[-1])

    def note(self, text: str) -> None:
        """Adds a note to the record."""
        self.notes.append(text)

    def _print(self, cells: Sequence[str]) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)


def command(words: Sequence[str] | None = None) -> str:
    """How this bench was called, without `--record` and without folders of this machine."""
    words = list(sys.argv if words is None else words)
    if "--record" in words:
        at = words.index("--record")
        named = at + 1 < len(words) and not words[at + 1].startswith("-")
        del words[at : at + 1 + named]
    options = [Path(word).name if word.startswith(("/", "..", "~")) else word for word in words[1:]]
    return shlex.join(["python", f"bench/{Path(words[0]).name}", *options])


def commit() -> str:
    """The commit of the sources, ended by "+" where they were changed after it; "unknown" without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES],
            capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "") if found.stdout else "unknown"


def write(
    name: str, made_by: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()
) -> Path:
    """Writes one record, with this machine, the commit and today's date.

    Args:
        name: of the file, without its suffix.
        made_by: the command.
        columns: the heads.
        rows: each as long as the heads.
        notes: Markdown, one line each.

    Returns:
        The file.
    """
    machine = this_machine().to_dict()
    document = {
        "bench": Path(shlex.split(made_by)[1]).stem,
        "command": made_by,
        "machine": {key: machine[key] for key in FACTS},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "notes": list(notes),
    }
    path = FIGURES / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(f"recorded: {path.relative_to(ROOT)}", file=sys.stderr)
    return path
