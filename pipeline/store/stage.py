"""Stages: pure functions from artefacts to artefacts, run once per distinct input, and the ledger of a run.

A stage's key is the sha256 of its name, version, parameters and input keys. Equal keys mean
equal artefacts, so a stage whose artefact is in the store is not run again, in this run or any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paredown.pipeline.store.store import Store, canonical_json, write_atomic
from paredown.targets.errors import InputError

LEDGER = "stages.json"
PREVIOUS_LEDGER = "stages.previous.json"


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Attributes:
        name: unique in the run ("calibrate", "lower-litert").
        version: raised whenever the code gives other bytes for the same parameters and inputs.
        params: a frozen dataclass of JSON-able values, no paths; everything that steers the result.
        inputs: role -> key of another stage, or content hash of a file or data set (64 hex digits).
        build: writes the artefact's files into the empty folder it is given.
    """

    name: str
    version: int
    params: Any
    inputs: Mapping[str, str]
    build: Callable[[Path], None]

    @property
    def key(self) -> str:
        """The sha256 that addresses the artefact, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.recipe()).encode()).hexdigest()

    def recipe(self) -> dict[str, Any]:
        """What the key is made from, as JSON has it.

        Raises:
            TypeError: the parameters are no frozen dataclass of JSON-able values.
            ValueError: an input is no key.
        """
        for role, key in self.inputs.items():
            if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
                raise ValueError(f"stage {self.name}: input `{role}` is not a key: {key!r}")
        return {
            "stage": self.name,
            "version": self.version,
            "params": params_dict(self.params),
            "inputs": dict(self.inputs),
        }


@dataclass(frozen=True)
class Artefact:
    """The result of a stage.

    Attributes:
        path: its folder in the store; read only.
        key: its address.
        reused: whether it was there already.
        seconds: how long the stage took, or the check of the store where it was reused.
        found: what the store held before: "present", "missing" or "damaged: ...".
    """

    path: Path
    key: str
    reused: bool
    seconds: float
    found: str


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
        """Records a finished stage and writes the ledger.

        Raises:
            ValueError: a stage of that name is in it already.
        """
        if stage.name in self.entries:
            raise ValueError(f"two stages of one run are called {stage.name}")
        self.entries[stage.name] = Entry(
            name=stage.name,
            key=artefact.key,
            version=stage.version,
            params=params_dict(stage.params),
            inputs=dict(stage.inputs),
            outcome="reused" if artefact.reused else "built",
            found=artefact.found,
            seconds=round(artefact.seconds, 3),
        )
        self.write()

    def write(self) -> None:
        """Writes `stages.json` in one step."""
        _write(self.run_dir / LEDGER, self.entries)


def run_stage(
    store: Store, stage: Stage, log: Callable[[str], None] | None = None, ledger: Ledger | None = None
) -> Artefact:
    """Runs a stage, or takes its artefact from the store where a sound one is there.

    Args:
        store: where artefacts live.
        stage: what to run.
        log: told one line when the stage begins and one when it ends.
        ledger: the run's ledger, which gets the result.

    Raises:
        InputError: the store cannot be written; and whatever the stage itself raises.
    """
    tell = log or (lambda line: None)
    began = time.perf_counter()
    key = stage.key
    finding = store.inspect(key)
    path, reused = finding.path, finding.path is not None
    if path is None:
        tell(
            f"{stage.name}: running" + ("" if finding.problem == "missing" else f" again ({finding.problem})")
        )
        path = store.publish(key, stage.build, stage.recipe())
    artefact = Artefact(path, key, reused, time.perf_counter() - began, finding.problem or "present")
    tell(f"{stage.name}: reused" if reused else f"{stage.name}: done in {artefact.seconds:.1f} s")
    if ledger is not None:
        ledger.add(stage, artefact)
    return artefact


def explain(ledger: Ledger, previous: Ledger | None) -> list[str]:
    """Why each stage ran or was reused, one line per stage, judged against the previous ledger."""
    before = previous.entries if previous else {}
    makers = {entry.key: entry for entry in ledger.entries.values()}
    lines = []
    for name, entry in ledger.entries.items():
        old = before.get(name)
        changes = _changes(entry, old, makers) if old else []
        if entry.outcome == "reused":
            if old is None:
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


def params_dict(params: Any) -> dict[str, Any]:
    """The parameters as JSON has them.

    Raises:
        TypeError: not a frozen dataclass, or a value in it is not JSON-able.
        ValueError: a float in it is NaN or infinite.
    """
    if not dataclasses.is_dataclass(params) or isinstance(params, type):
        raise TypeError(f"stage parameters are a dataclass, not {params!r}")
    if not params.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"stage parameters are frozen: {type(params).__name__} is not")
    plain: dict[str, Any] = json.loads(canonical_json(dataclasses.asdict(params)))
    return plain


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
