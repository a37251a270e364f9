"""The ledger of a run: what its stages did and why, kept beside its results, and explained or drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paredown.pipeline.store.stage import Artefact, Stage, params_dict
from paredown.pipeline.store.store import canonical_json, write_atomic
from paredown.targets.errors import InputError

LEDGER = "stages.json"
PREVIOUS_LEDGER = "stages.previous.json"


@dataclass(frozen=True)
class Entry:
    """One line of a ledger: what ran with what, and how it went. `found` is as in `Artefact`."""

    name: str
    key: str
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    outcome: Literal["built", "reused"]
    found: str
    seconds: float


@dataclass
class Ledger:
    """What the stages of one run directory did; `stages.json` is rewritten after each of them."""

    run_dir: Path
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def start(cls, run_dir: Path) -> Ledger:
        """Begins a run: what `stages.json` says now becomes the previous ledger.

        Of a run that was killed half-way only the stages that finished are newer; those it never came to keep
        what the run before said of them.
        """
        previous = {**_read(run_dir / PREVIOUS_LEDGER, lenient=True), **_read(run_dir / LEDGER, lenient=True)}
        if previous:
            _write(run_dir / PREVIOUS_LEDGER, previous)
        ledger = cls(run_dir)
        ledger.write()
        return ledger

    @classmethod
    def read(cls, run_dir: Path) -> tuple[Ledger, Ledger | None]:
        """The ledger of a run directory and the one before it, for `explain`.

        Raises:
            InputError: there is no ledger, or it cannot be read.
        """
        if not (run_dir / LEDGER).exists():
            raise InputError("is no run directory: it has no stages.json", where=run_dir)
        previous = _read(run_dir / PREVIOUS_LEDGER)
        return cls(run_dir, _read(run_dir / LEDGER)), cls(run_dir, previous) if previous else None

    def add(self, stage: Stage, artefact: Artefact) -> None:
        """Records a finished stage and writes the ledger; one that is in it already stays as it is.

        Raises:
            ValueError: another stage of that name is in it already.
        """
        known = self.entries.get(stage.name)
        if known is not None and known.key == artefact.key:
            return
        if known is not None:
            raise ValueError(f"two stages of one run are called {stage.name}")
        self.entries[stage.name] = Entry(
            name=stage.name,
            key=artefact.key,
            version=stage.version,
            params=params_dict(stage.params),
            inputs=stage.input_keys,
            outcome="reused" if artefact.reused else "built",
            found=artefact.found,
            seconds=round(artefact.seconds, 3),
        )
        self.write()

    def write(self) -> None:
        """Writes `stages.json` in one step."""
        _write(self.run_dir / LEDGER, self.entries)


def explain(ledger: Ledger, previous: Ledger | None) -> list[str]:
    """Why each stage ran or was reused, one line per stage, judged against the previous ledger."""
    before = previous.entries if previous else {}
    makers = {entry.key: entry for entry in ledger.entries.values()}
    lines = []
    for name, entry in ledger.entries.items():
        old = before.get(name)
        changes = _changes(entry, old, makers) if old else []
        if entry.outcome == "reused":
            if entry.found == "shared":
                reason = "; ".join([*changes, "another machine had made the artefact"])
            elif old is None:
                reason = "another run had made the same artefact"
            else:
                reason = (
                    "; ".join(changes) + ": that artefact was in the store" if changes else "nothing changed"
                )
            lines.append(f"{name}: reused: {reason}")
            continue
        reasons = changes or (["first run"] if old is None else [])
        if entry.found.startswith("damaged") or not reasons:
            reasons.append(f"its artefact was {entry.found}")
        lines.append(f"{name}: ran: {'; '.join(reasons)}")
    return lines


def draw(ledger: Ledger) -> list[str]:
    """The stages of a run and what each is made from, a line each, what is made from nothing first."""
    makers = {entry.key: name for name, entry in ledger.entries.items()}
    depth: dict[str, int] = {}
    lines = []
    for name, entry in ledger.entries.items():
        sources = [makers[key] for key in entry.inputs.values() if key in makers and makers[key] != name]
        depth[name] = 1 + max((depth.get(source, 0) for source in sources), default=-1)
        files = [role for role, key in entry.inputs.items() if key not in makers]
        made = ", ".join([*dict.fromkeys(sources), *(f"[{role}]" for role in files)])
        lines.append(f"{'    ' * depth[name]}{name} <- {made}")
    return lines


def _changes(entry: Entry, old: Entry, makers: Mapping[str, Entry]) -> list[str]:
    """What differs between two entries of one stage, in words."""
    changes = []
    if entry.version != old.version:
        changes.append(f"stage version {old.version} became {entry.version}")
    now, then = _flat(entry.params), _flat(old.params)
    for name in sorted({*now, *then}):
        if name not in then:
            changes.append(f"new parameter {name} = {_word(now[name])}")
        elif name not in now:
            changes.append(f"parameter {name} (was {_word(then[name])}) is gone")
        elif canonical_json(now[name]) != canonical_json(then[name]):
            changes.append(f"parameter {name} changed from {_word(then[name])} to {_word(now[name])}")
    for role in sorted({*entry.inputs, *old.inputs}):
        key = entry.inputs.get(role)
        if key == old.inputs.get(role):
            continue
        if key is None:
            changes.append(f"input {role} is gone")
        elif role not in old.inputs:
            changes.append(f"new input {role}")
        elif key in makers:
            verb = "ran" if makers[key].outcome == "built" else "gave another artefact"
            changes.append(f"input {role} changed because stage {makers[key].name} {verb}")
        else:
            changes.append(f"input {role} has other content")
    return changes


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _word(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _write(path: Path, entries: Mapping[str, Entry]) -> None:
    document = [dataclasses.asdict(entry) for entry in entries.values()]
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def _read(path: Path, lenient: bool = False) -> dict[str, Entry]:
    """The entries of a ledger file; none where there is no file, or, if lenient, where it is broken."""
    try:
        document = json.loads(path.read_bytes())
        entries = [Entry(**fields) for fields in document]
        _check_types(entries)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if lenient:
            return {}
        raise InputError(f"cannot read the ledger: {error}", where=path) from error
    return {entry.name: entry for entry in entries}


def _check_types(entries: list[Entry]) -> None:
    """Checks the types of what was read, so that `explain` cannot trip over them."""
    for entry in entries:
        texts = (
            entry.name,
            entry.key,
            entry.outcome,
            entry.found,
            *entry.inputs,
            *dict(entry.inputs).values(),
        )
        if not all(isinstance(text, str) for text in texts) or not isinstance(entry.params, dict):
            raise ValueError("an entry has a field of the wrong type")
