"""A language model's bundle proved on a device: its bytes, how well it knows the text there, how fast it is.

The bundle's own files go there and its own code runs there, in Python; `local:` is treated as any other.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.device.language.speed import ANSWER, ROUNDS, command, figures, lengths, medians, parse
from paredown.pipeline.device.language.unpacked import bring
from paredown.pipeline.recipe.file import check_files
from paredown.pipeline.recipe.language_task import load_language_task
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import budget_limits, violations
from paredown.pipeline.report.checks import Check, Validation
from paredown.pipeline.report.figures import Figure, Tag, parse_figures
from paredown.pipeline.report.verdict import decide
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.devices.device import Device, python_of
from paredown.targets.devices.facts import facts as facts_of
from paredown.targets.devices.facts import machine as machine_of
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.host.host import this_machine

TOLERANCE = 0.01  # of a perplexity, as a share: other kernels round activations otherwise
TOKEN_S = 60.0  # seconds that a token may take, on an emulator
START_S = 600.0  # seconds until a model is loaded there
METRIC = "perplexity"
DATA_HINT = "--data FOLDER says where the recipe's files lie; --no-score leaves the score out"


def validate_language(
    bundle: Bundle,
    address: str,
    *,
    limit: int | None = None,
    score: bool = True,
    speed: bool = True,
    answer: int = ANSWER,
    smoke: bool = False,
    recipe: Recipe | str = "no recipe",
    tell: Tell = nobody,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Validates a bundle on a device; see `pipeline.device.validate.validate`.

    Args:
        bundle: of a language model.
        address: of the device.
        limit: score at most so many pieces of text; a part's score is reported, not compared.
        score: whether to score at all.
        speed: whether to measure speed, which nothing emulated has.
        answer: tokens that are written for it, if they fit the context.
        smoke: every figure says so.
        recipe: with the files of this machine, its code trusted; or why there is none.
        tell: hears of each step.
        tick: progress within a step.

    Raises:
        InputError: the bundle or the recipe's texts are broken.
        UsageError: this is no address.
        DeviceError: the device cannot be reached, or failed on the way.
    """
    from paredown.targets.address import open_device

    with open_device(address) as device:
        bring(bundle, device, {str(model.runtime) for model in bundle.manifest.language}, tell)
        made = _Validator(bundle, device, smoke, tell, tick, recipe)
        return made.validate(limit, score, answer if speed else 0)


class _Validator:
    """One validation: what is known so far."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        smoke: bool,
        tell: Tell,
        tick: Callable[[int, int], None],
        recipe: Recipe | str,
    ) -> None:
        self.recipe = recipe
        self.bundle, self.device, self.tell, self.tick = bundle, device, tell, tick
        self.manifest = bundle.manifest
        known = parse_figures(bundle.manifest.figures, bundle.path)
        self.recorded = {(figure.variant, figure.metric): figure for figure in known}
        self.machine = machine_of(device.address, facts_of(device))
        self.tag: Tag = "smoke" if smoke else "simulated" if device.emulated else "measured"
        self.checks = [Check("hashes", True, f"{len(bundle.members)} members")]
        self.figures: list[Figure] = []
        self.scored = 0

    def validate(self, limit: int | None, score: bool, answer: int) -> Validation:
        """Everything; speed by so many tokens written, if any."""
        ran: list[str] = []
        for model in self.manifest.language:
            name, here = str(model.runtime), this_machine()
            file, bundle = len(self.bundle.read(model.file)), self.bundle.path.stat().st_size
            self.figures.append(Figure("lower", name, "file_bytes", file, "B", "measured", here))
            self.figures.append(Figure("bundle", name, "bundle_bytes", bundle, "B", "measured", here))
            if not self._runs(name):
                continue
            ran.append(name)
            if score:
                self._score(name, limit)
            if answer:
                self._speed(name, *lengths(model.context, answer))
        self.checks.append(Check("runs there", bool(ran), ", ".join(ran) or "no runtime of this bundle"))
        originals = [f for (variant, _), f in self.recorded.items() if variant == "fp32" and limit is None]
        budget = self.manifest.recipe.budget.over(self.manifest.card.budget)
        metric, figures = Metric(METRIC, less_is_better=True), [*originals, *self.figures]
        limits = budget_limits(budget, figures, metric)
        missing = () if score else ("a score: it was left out",)
        verdict = decide(limits, self.checks, figures, metric, missing)
        found = tuple(self.checks), tuple(self.figures), violations(limits)
        return Validation(*found, self.scored, limits, verdict)

    def _python(self, *arguments: str, seconds: float, on_line: Callable[[str], None] | None = None) -> str:
        return self.device.run([python_of(self.device), *arguments], timeout=seconds, on_line=on_line).out

    def _runs(self, name: str) -> bool:
        """Whether the device has a runtime; one that it lacks is told, and no failure while another runs."""
        models = f"{self.bundle.package}.device.models"
        probe = f"import pathlib, {models} as m; m.open_model(pathlib.Path(), {name!r}, 1)"
        done = self.device.run([python_of(self.device), "-c", probe], timeout=START_S, check=False)
        if done.code:
            last = (done.err.strip().splitlines() or ["it says nothing"])[-1]
            self.checks.append(Check(f"{name} loads", None, f"not there: {last}"))
        return not done.code

    def _score(self, name: str, limit: int | None) -> None:
        try:
            if isinstance(self.recipe, str):
                raise InputError(self.recipe)
            check_files(self.recipe)
            task = load_language_task(self.recipe)
            if task.fingerprint("test") != self.manifest.test.fingerprint:
                raise InputError("the test text has changed since this bundle was made")
            pieces = task.pieces("test")[:limit]
        except InputError as error:
            self.checks.append(Check(f"{name} score", False, f"{error}; {DATA_HINT}"))
            return
        self.tell(Event(f"{name}: score", "running"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pieces.npy"
            np.save(file, pieces)
            self.device.push(file, file.name)
        done = iter(range(1, len(pieces) + 1))
        threads = str(self.manifest.recipe.bench.threads)
        out = self._python(
            "-m", f"{self.bundle.package}.device.score", name, "pieces.npy", threads,
            seconds=START_S + TOKEN_S * pieces.size,
            on_line=lambda line: self.tick(next(done, 0), len(pieces)),
        )  # fmt: skip
        found = _document(out, self.device.address)
        perplexity = math.exp(found["loss"] / found["tokens"])
        self.scored = len(pieces)
        self.figures.append(Figure("score", name, METRIC, perplexity, "1", self.tag, self.machine))
        said = f"{METRIC} {perplexity:.3f} on {len(pieces)} pieces of text, read there"
        known = self.recorded.get((name, METRIC))
        if known is None or known.tag == "smoke" or len(pieces) != self.manifest.test.images:
            part = known is not None and known.tag != "smoke"
            state = None if part else True
            self.checks.append(Check(f"{name} score", state, f"{said}; nothing to compare with"))
            return
        apart = abs(perplexity / known.value - 1)
        self.checks.append(Check(f"{name} score", apart <= TOLERANCE, f"{said}; recorded {known.value:.3f}"))

    def _speed(self, name: str, prompt: int, answer: int) -> None:
        if self.device.emulated:
            detail = f"not measured: {self.device.address} is emulated, its milliseconds mean nothing"
            self.checks.append(Check(f"{name} speed", None, detail))
            return
        if self.device.kind == "local" and self.manifest.card.reach.kind != "local":
            detail = f"not measured: this machine is no {self.manifest.target}"
            self.checks.append(Check(f"{name} speed", None, detail))
            return
        self.tell(Event(f"{name}: speed", "running"))
        asked = command(self.bundle.package, name, prompt, answer, self.manifest.recipe.bench.threads)
        rows = []
        for done in range(ROUNDS):
            out = self._python(*asked, seconds=START_S)
            rows.append(parse(out, 0, "", name))
            self.tick(done + 1, ROUNDS)
        self.figures += figures(name, medians(rows), self.tag, self.machine)


def _document(out: str, where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return {name: found[name] for name in ("loss", "tokens")}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DeviceError("the bundle's own scoring says nothing that can be read", where=where) from error
