"""`paredown fit`: a budget in, a bundle out that keeps it, or what stands in the way and what would do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paredown.pipeline.device.executor import LOCAL, check_address
from paredown.pipeline.recipe.schema import FINISHED, Recipe
from paredown.pipeline.run.job import Tick, images_only
from paredown.pipeline.run.run import STORE, Result, Run
from paredown.pipeline.run.search.fit.strategy import Candidate, Found, Measured, Wanted, search, told
from paredown.pipeline.run.search.fit.world import StoreWorld, recipe_for
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.store import Shared, Store, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import UsageError

SUFFIX = "-fit"  # of the run's folder
JOURNAL, LOCK = "fit.json", ".fit.lock"
AGAIN = 3  # searches, at most, where bundles turn out larger than predicted


@dataclass(frozen=True)
class Asked:
    """A budget; None = the recipe's or the card's own limit, if there is one.

    Attributes:
        latency_ms: of an inference on the device.
        instructions_m: likewise, in millions, on an emulated board.
        bundle_kib: of the bundle.
        drop: of the metric.
        hours: for the search.
    """

    latency_ms: float | None = None
    instructions_m: float | None = None
    bundle_kib: float | None = None
    drop: float | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Fit:
    """What a search came to.

    Attributes:
        found: the search.
        result: of the run that ships; None where the budget is not met.
        folder: of the run.
        seconds: in all.
        built: stages.
        reused: stages.
        units: limit -> the option that sets it.
        wanted: the budget.
    """

    found: Found
    result: Result | None
    folder: Path
    seconds: float
    built: int
    reused: int
    units: dict[str, str]
    wanted: Wanted

    @property
    def met(self) -> bool:
        """Whether a bundle keeps the budget, on test data too."""
        return self.result is not None and self.result.passed

    def lines(self) -> list[str]:
        """How it ended, in words."""
        share = self.reused / max(1, self.built + self.reused)
        spent = f"{self.seconds:.0f} s, {self.built} stages built, {self.reused} reused ({share:.0%})"
        if self.found.chosen is not None:
            return [f"chosen: {self.found.chosen.candidate.line()}; {told(self.found.chosen)}", spent]
        nearest = self.found.nearest
        limits = [
            f"{option} {_up(getattr(nearest, name)):g}"
            for name, option in self.units.items()
            if getattr(self.wanted, name) is not None and getattr(nearest, name) is not None
        ]
        return [
            f"not met: {self.found.why}",
            f"nearest: {nearest.candidate.line()}; {told(nearest)}",
            f"would be met: {' '.join(limits)}", spent,
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "met": self.met, "budget": asdict(self.wanted), "options": self.units, "why": self.found.why,
            "chosen": self.found.chosen.to_dict() if self.found.chosen else None,
            "nearest": self.found.nearest.to_dict(), "judged": [each.to_dict() for each in self.found.seen],
            "seconds": round(self.seconds, 1), "built": self.built, "reused": self.reused,
            "run": str(self.folder) if self.result else None,
        }  # fmt: skip


def fit(
    name: str,
    recipe: Recipe,
    target: Target,
    root: Path,
    asked: Asked,
    *,
    device: str | None = None,
    limit: int | None = None,
    smoke: bool = False,
    tell: Tell = nobody,
    tick: Tick = lambda done, total: None,
    shared: Shared | None = None,
) -> Fit:
    """Looks for the mildest network that keeps a budget, and makes its bundle.

    Candidates are judged on held-out training images. The test images are scored once, by what was chosen.

    Args:
        name: of the recipe.
        recipe: resolved; what it says of bits, zeros and channels is our choice, all else is kept.
        target: the card.
        root: folder of all runs and of the store.
        asked: the budget.
        device: that times; None = this machine, or the target's emulated board for instructions.
        limit: test images that the device scores at most, in the end.
        smoke: handfuls of samples everywhere.
        tell: hears of events.
        tick: progress within a stage.
        shared: where other machines have their artefacts.

    Raises:
        UsageError: limits that contradict each other or the device, nothing to fit, another `fit` is at work.
        InputError: a file of the recipe is missing or broken, or there is nothing to train on.
    """
    images_only(recipe, "fit")
    if recipe.weights == FINISHED:
        raise UsageError("a finished program has no network to train", where="recipe, key weights")
    recipe = recipe.model_copy(
        update={
            "lower": recipe.lower.on(target.runtimes), "quantize": recipe.quantize.on(target.weight_range),
            "budget": _budget(recipe, target, asked),
        }
    )  # fmt: skip
    timed = next((n for n in ("latency_ms", "instructions_m") if getattr(recipe.budget, n) is not None), None)
    device = _device(target, device, timed)
    wanted = Wanted(
        getattr(recipe.budget, timed) if timed else None,
        recipe.budget.bundle_kib,
        recipe.budget.accuracy_drop,
    )
    for runtime in recipe.lower.runtimes:
        target.runtime(runtime)
    began, folder = time.monotonic(), root / (name + SUFFIX) / target.name
    with _alone(folder, f"{name} for {target.name}"):

        def say(line: str) -> None:
            tell(Event("fit", "done", None, line))

        for key in _ours(recipe):
            say(f"the recipe's {key} is not used: it is what fit chooses")
        seconds = None if asked.hours is None else 3600 * asked.hours
        world = StoreWorld(
            name + SUFFIX, recipe, target, Store(root / STORE, shared), limit=timed, device=device,
            seconds=seconds, smoke=smoke, tell=tell, tick=tick,
        )  # fmt: skip
        found = _searched(world, wanted, say)
        result = None
        if found.chosen is not None:
            final = recipe_for(recipe, found.chosen.candidate)
            proof = None if device in (None, *LOCAL) else device
            result = Run(
                name + SUFFIX, final, target, root, smoke=smoke, device=proof, device_limit=limit,
                tell=world.heard, tick=tick, around=world.sharing.around, shared=shared,
            ).execute()  # fmt: skip
        options = {
            "cost": f"--{(timed or 'latency_ms').replace('_', '-')}",
            "kib": "--bundle-kib",
            "drop": "--drop",
        }
        spent = time.monotonic() - began
        made = Fit(found, result, folder, spent, world.built, world.reused, options, wanted)
        write_atomic(
            folder / JOURNAL, (json.dumps(made.to_dict(), indent=1, allow_nan=False) + "\n").encode()
        )
    return made


def _searched(world: StoreWorld, wanted: Wanted, say: Callable[[str], None]) -> Found:
    """Searches until the chosen one's bundle, made, is within the budget too."""
    seen: list[Measured] = []
    for _ in range(AGAIN):
        found = search(world, wanted, say)
        seen += [each for each in found.seen if each not in seen]
        if found.chosen is None:
            return replace(found, seen=tuple(seen), nearest=min(seen, key=lambda each: each.excess(wanted)))
        made = replace(found.chosen, kib=world.bundle(found.chosen.candidate))
        seen = [made if each == found.chosen else each for each in seen]
        if wanted.kib is None or made.kib <= wanted.kib:
            return replace(found, chosen=made, seen=tuple(seen))
        more = made.kib - found.chosen.kib
        say(f"its bundle has {made.kib:.1f} KiB, {more:.1f} more than predicted")
        world.slack += more
    why = f"the bundle is over {wanted.kib:g} KiB in each of {AGAIN} searches"
    return Found(None, min(seen, key=lambda each: each.excess(wanted)), tuple(seen), why)


def _budget(recipe: Recipe, target: Target, asked: Asked) -> Any:
    """The limits that count: asked for, else the recipe's, else the card's."""
    given = {
        "latency_ms": asked.latency_ms, "instructions_m": asked.instructions_m,
        "bundle_kib": asked.bundle_kib, "accuracy_drop": asked.drop,
    }  # fmt: skip
    for name, value in {**given, "hours": asked.hours}.items():
        option = f"--{name.replace('_', '-')}" if name != "accuracy_drop" else "--drop"
        if value is not None and not math.isfinite(value):
            raise UsageError(f"`{value:g}` is no limit", where=option, hint="give a number more than 0")
        if value is not None and (value < 0 or (value == 0 and name != "accuracy_drop")):
            raise UsageError(f"`{value:g}` can never be kept", where=option, hint="give more than 0")
    if asked.drop is not None and asked.drop > 1:
        hint = "give a fraction: 0.01 is one point of 100"
        raise UsageError(f"`{asked.drop:g}` is more than all of the score", where="--drop", hint=hint)
    own = recipe.budget.over(target.budget)
    budget = own.model_copy(update={name: value for name, value in given.items() if value is not None})
    if asked.latency_ms is None and asked.instructions_m is not None:
        budget = budget.model_copy(update={"latency_ms": None})  # the board of the recipe's limit is another
    if asked.instructions_m is None and asked.latency_ms is not None:
        budget = budget.model_copy(update={"instructions_m": None})
    if budget.latency_ms is not None and budget.instructions_m is not None:
        hint = "an emulated board counts instructions, every other device gives milliseconds"
        raise UsageError("latency_ms and instructions_m contradict each other", where="budget", hint=hint)
    if not any(getattr(budget, name) is not None for name in given):
        hint = "give --latency-ms, --instructions-m, --bundle-kib or --drop"
        raise UsageError("there is no limit to fit to", where="budget", hint=hint)
    return budget


def _device(target: Target, device: str | None, timed: str | None) -> str | None:
    """Where programs are timed.

    Raises:
        UsageError: nothing there gives what the budget limits.
    """
    if device is not None:
        check_address(device)
    if timed is None:
        return device
    emulated = target.emulate is not None and bool(target.emulate.cpu)
    if device is None and timed == "instructions_m" and emulated:
        device = f"emulated:{target.name}"
    elif device is None and timed == "latency_ms" and target.reach.kind == "local":
        device = "local:"
    if device is None:
        what = "counts instructions" if timed == "instructions_m" else "gives milliseconds"
        hint = "give --device ADDRESS" if timed == "latency_ms" else "only emulated boards count"
        raise UsageError(f"nothing here {what} of {target.name}", where=f"budget, {timed}", hint=hint)
    on_board = device.startswith("emulated:")
    if on_board and timed == "latency_ms":
        hint = "give --instructions-m, in millions"
        raise UsageError("emulated milliseconds mean nothing", where="--latency-ms", hint=hint)
    if not on_board and timed == "instructions_m":
        raise UsageError(
            f"{device} counts no instructions", where="--instructions-m", hint="give --latency-ms"
        )
    if device in LOCAL and target.reach.kind != "local":
        raise UsageError(f"this machine is no {target.name}", where="--device", hint="name the device")
    return device


def _ours(recipe: Recipe) -> list[str]:
    """Keys of the recipe that we choose and that are set."""
    plain = recipe_for(recipe, Candidate())
    sections = (("prune", ("macs", "latency", "bytes", "accuracy_drop", "weight_sparsity")),
                ("squantize", ("weight_bits", "bytes", "accuracy_drop")))  # fmt: skip
    return [
        f"{section}.{key}"
        for section, keys in sections
        for key in keys
        if getattr(getattr(recipe, section), key) != getattr(getattr(plain, section), key)
    ]


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """One `fit` of a recipe and a target at a time; the lock goes with its process.

    Raises:
        UsageError: another one is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            other = lock.read().strip() or "unknown"
            hint = "wait for it, or give another --runs"
            raise UsageError(f"another fit of {what} is at work (process {other})", hint=hint) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _up(value: float) -> float:
    """A little more than a value, in three digits: a limit that it keeps."""
    return float(f"{value * 1.006:.3g}") if value > 0 else 0.0
