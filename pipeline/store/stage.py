"""Stages: pure functions from artefacts to artefacts, run once per distinct input, in an order that follows.

A stage's key is the sha256 of its name, version, parameters and input keys. Equal keys mean
equal artefacts, so a stage whose artefact is in the store is not run again, in this run or any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.store import Store, canonical_json
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.store.ledger import Ledger

#: Role -> folder of the artefact that a build reads there.
Inputs = Mapping[str, Path]
#: Metadata of a parameter that is no part of the key where it is None.
OPTIONAL: Mapping[str, bool] = {"optional": True}


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Attributes:
        name: unique in the run ("calibrate", "lower-litert").
        version: raised whenever the code gives other bytes for the same parameters and inputs.
        params: a frozen dataclass of JSON-able values, no paths; everything that steers the result.
        inputs: role -> stage whose artefact is read, or content hash (64 hex digits) of a file or data set.
        build: writes the artefact's files into the empty folder it is given first; it reads the artefacts in
            the folders that it is given second, and no other.
        reads: role -> stage that is read too and is no part of the key, because an input was made from it.

    Raises:
        ValueError: an input is neither a stage nor a content hash, or no input was made from a stage that is
            read.
    """

    name: str
    version: int
    params: Any
    inputs: Mapping[str, Stage | str]
    build: Callable[[Path, Inputs], None]
    reads: Mapping[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks roles."""
        for role, given in self.inputs.items():
            if isinstance(given, str) and not (len(given) == 64 and set(given) <= set("0123456789abcdef")):
                raise ValueError(f"stage {self.name}: input `{role}` is not a key: {given!r}")
        above = {stage.key for stage in plan(self.sources.values())}
        for role, stage in self.reads.items():
            if stage.key not in above:
                raise ValueError(f"stage {self.name} reads `{role}`, which none of its inputs is made from")

    @property
    def sources(self) -> dict[str, Stage]:
        """The inputs that are stages."""
        return {role: given for role, given in self.inputs.items() if isinstance(given, Stage)}

    @functools.cached_property
    def key(self) -> str:
        """The sha256 that addresses the artefact, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.recipe()).encode()).hexdigest()

    @property
    def input_keys(self) -> dict[str, str]:
        """Role -> key of the stage, or the content hash."""
        return {role: g.key if isinstance(g, Stage) else g for role, g in self.inputs.items()}

    def recipe(self) -> dict[str, Any]:
        """What the key is made from, as JSON has it.

        Raises:
            TypeError: the parameters are no frozen dataclass of JSON-able values.
        """
        return {
            "stage": self.name,
            "version": self.version,
            "params": params_dict(self.params),
            "inputs": self.input_keys,
        }


@dataclass(frozen=True)
class Artefact:
    """The result of a stage.

    Attributes:
        path: its folder in the store; read only.
        key: its address.
        reused: whether it was there already.
        seconds: how long the stage took, or the check of the store where it was reused.
        found: what the store held before: "present", "missing" or "damaged: ..."; "shared" = the shared store
            had it.
    """

    path: Path
    key: str
    reused: bool
    seconds: float
    found: str


def plan(goals: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages that these goals need, each after what it is made from, the goals in their order.

    Raises:
        ValueError: two different stages have one name.
    """
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in found:
            return
        for source in stage.sources.values():
            visit(source)
        found[stage.key] = stage

    for goal in goals:
        visit(goal)
    names = [stage.name for stage in found.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two stages of one run are called {', '.join(sorted(twice))}")
    return tuple(found.values())


#: A context in which a stage is run.
Around = Callable[[Stage], contextlib.AbstractContextManager[None]]


def alone(stage: Stage) -> contextlib.AbstractContextManager[None]:
    """The context of a stage where nothing else is at work in the same store."""
    return contextlib.nullcontext()


def run_stage(
    store: Store,
    stage: Stage,
    tell: Tell = nobody,
    ledger: Ledger | None = None,
    prepare: Callable[[Stage], None] = lambda stage: None,
    around: Around = alone,
) -> Artefact:
    """Runs a stage, or takes its artefact from the store, or the shared one, where a sound one is there.

    Args:
        store: where artefacts live; those of the stage's inputs must be there.
        stage: what to run.
        tell: hears when the stage begins and when it ends.
        ledger: the run's ledger, which gets the result.
        prepare: called before a build, and not where the artefact is reused.
        around: held meanwhile, where other processes are at work in the same store.

    Raises:
        InputError: the store cannot be written; and whatever the stage itself raises.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        shared = store.shared
        if shared is not None and store.checked(stage.key).path is None:
            # other machines' turn comes before that of this machine's processes, in all of them
            stack.enter_context(shared.turn(stage.key, lambda owner: tell(_waits(stage, owner))))
        with around(stage):
            path, found = _made(store, stage, tell, prepare)
        if shared is not None:
            shared.push(stage.key, path)
    reused = found in ("present", "shared")
    artefact = Artefact(path, stage.key, reused, time.perf_counter() - began, found)
    tell(Event(stage.name, "reused" if reused else "done", artefact.seconds))
    if ledger is not None:
        ledger.add(stage, artefact)
    return artefact


def _made(store: Store, stage: Stage, tell: Tell, prepare: Callable[[Stage], None]) -> tuple[Path, str]:
    """The folder of a stage's artefact, and what there was before."""
    finding = store.checked(stage.key)
    if finding.path is not None:
        return finding.path, "present"
    if store.shared is not None and (pulled := store.shared.pull(stage.key, store)) is not None:
        return pulled, "shared"
    tell(Event(stage.name, "running", detail="" if finding.problem == "missing" else finding.problem))
    folders = {role: stored(store, source) for role, source in {**stage.sources, **stage.reads}.items()}
    prepare(stage)
    path = store.publish(stage.key, lambda out: stage.build(out, folders), stage.recipe())
    return path, finding.problem


def _waits(stage: Stage, owner: str) -> Event:
    return Event(stage.name, "running", detail=f"{owner} builds it, waiting")


def stored(store: Store, stage: Stage) -> Path:
    """The folder of a stage's artefact, which must have run.

    Raises:
        InputError: it is not there any more.
    """
    path = store.checked(stage.key).path
    if path is None:
        raise InputError(
            f"the artefact of stage {stage.name} was removed or damaged meanwhile",
            where=store.root,
            hint="run the same command again",
        )
    return path


def params_dict(params: Any) -> dict[str, Any]:
    """The parameters as JSON has them, without the optional ones that are None.

    Raises:
        TypeError: not a frozen dataclass, or a value in it is not JSON-able.
        ValueError: a float in it is NaN or infinite.
    """
    if not dataclasses.is_dataclass(params) or isinstance(params, type):
        raise TypeError(f"stage parameters are a dataclass, not {params!r}")
    if not params.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"stage parameters are frozen: {type(params).__name__} is not")
    given = dataclasses.asdict(params)
    for each in dataclasses.fields(params):
        if each.metadata.get("optional") and given[each.name] is None:
            del given[each.name]
    plain: dict[str, Any] = json.loads(canonical_json(given))
    return plain
