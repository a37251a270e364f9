"""The verdict: may this bundle ship? Decided here alone, from figures, limits and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import LEAST, LEAST_CLASS, Limit, shipped, violations
from paredown.pipeline.report.figures import CLASS, NOISE, Figure

Word = Literal["SHIP", "DO NOT SHIP", "NOT PROVEN"]
#: A class with less than this has no detection that is right, but for a lucky one.
NEVER = 0.01
#: A drop from the original network that nobody ships without having said that it may be.
LARGE_DROP = 0.05
#: Classes that a sentence names before it counts.
MOST_NAMED = 3


@dataclass(frozen=True)
class Check:
    """One line of a validation.

    Attributes:
        name: what was checked.
        passed: how it went; None where it was not done.
        detail: the words for it.
    """

    name: str
    passed: bool | None
    detail: str

    @property
    def state(self) -> str:
        """In one word."""
        return {True: "ok", False: "FAIL", None: "skipped"}[self.passed]


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a bundle.

    Attributes:
        word: the answer.
        reasons: why it does not ship, or what is missing for a proof; none of "SHIP".
        warnings: one sentence each; they stop nothing.
        runtime: that is recommended; empty where nothing can ship.
        why: that one, in words.
    """

    word: Word
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    runtime: str = ""
    why: str = ""

    def line(self) -> str:
        """The last line of a run or a validation."""
        if self.word == "SHIP":
            more = f"; {_several(len(self.warnings), 'warning')}" if self.warnings else ""
            return f"SHIP{f' with {self.runtime} ({self.why})' if self.runtime else ''}{more}"
        first = "; ".join(self.reasons[:3])
        more = f"; and {len(self.reasons) - 3} more" if len(self.reasons) > 3 else ""
        return f"{self.word} ({'missing: ' if self.word == 'NOT PROVEN' else ''}{first}{more})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def decide(
    limits: Sequence[Limit],
    checks: Sequence[Check],
    figures: Sequence[Figure],
    metric: Metric,
    missing: Sequence[str] = (),
) -> Verdict:
    """The verdict.

    What is broken or failed decides first; else what nobody has measured; else the bundle ships.

    Args:
        limits: of the budget, all that are set.
        checks: of a validation; none of a run without a device.
        figures: of what would ship, and of the original network.
        metric: of the task.
        missing: what else is known to be missing for a proof.
    """
    broken = [each.line() for each in violations(limits)]
    broken += [f"{check.name} failed: {check.detail}" for check in checks if check.passed is False]
    warnings = (*_never_found(limits, figures), *_apart(figures))
    bad = {each.variant for each in limits if each.kept is False}
    bad |= {
        name for name in shipped(figures) for c in checks if c.passed is False and c.name.startswith(name)
    }
    runtime, why = recommended([name for name in shipped(figures) if name not in bad], figures, metric)
    if broken:
        return Verdict("DO NOT SHIP", tuple(broken), warnings, runtime, why)
    unknown = [*missing, *(f"{check.name}: {check.detail}" for check in checks if check.passed is None)]
    said = " ".join(unknown)
    unknown += [
        f"{each.variant}: nothing says {each.limit}, and the budget limits it"
        for each in limits
        if each.kept is None
    ]
    unknown += _unlimited(limits, figures, metric)
    if any(figure.tag == "smoke" for figure in figures):
        unknown = ["all test images: a smoke run proves nothing"]
    elif "score" not in said:
        scored = {figure.variant for figure in figures if figure.metric == metric.name}
        unknown += [f"{name}: no score" for name in shipped(figures) if name not in scored]
    if unknown:
        return Verdict("NOT PROVEN", tuple(dict.fromkeys(unknown)), warnings, runtime, why)
    return Verdict("SHIP", (), warnings, runtime, why)


def recommended(variants: Sequence[str], figures: Sequence[Figure], metric: Metric) -> tuple[str, str]:
    """The variant to use and why: the fastest, or the smallest of those as fast or not timed.

    One whose codes are not the integer graph's is used only where all are such.

    Args:
        variants: that may ship.
        figures: of them.
        metric: of the task.

    Returns:
        Its name and the reason; both empty where there is no variant.
    """
    if not variants:
        return "", ""
    cells = {(f.variant, f.metric): f.value for f in figures if f.variant in variants}
    if len(variants) == 1:
        return variants[0], "the only program that may ship"
    apart = {name for name in variants if _is_apart(cells, name)}
    if apart and len(apart) < len(variants):
        return recommended([name for name in variants if name not in apart], figures, metric)
    for cost, unit, scale in (("latency_p50", "ms", 1.0), ("instructions", "million instructions", 1e-6)):
        known = sorted((value * scale, name) for (name, m), value in cells.items() if m == cost)
        if len(known) == len(variants) and known[1][0] > NOISE * known[0][0]:
            others = ", ".join(f"{value:.2f} of {name}" for value, name in known[1:])
            return known[0][1], f"{known[0][0]:.2f} {unit} against {others}"
        if len(known) == len(variants):
            close = [name for value, name in known if value <= NOISE * known[0][0]]
            least = min(close, key=lambda name: cells.get((name, "file_bytes"), float("inf")))
            rest = " and ".join(sorted({*close} - {least}))
            others = "the others" if len(close) == len(variants) else rest
            return least, f"as fast as {others}, and the smallest file"
    sizes = sorted((value, name) for (name, m), value in cells.items() if m == "file_bytes")
    timed = "not all were timed" if any(m == "latency_p50" for _, m in cells) else "nothing was timed"
    return (sizes[0][1] if sizes else variants[0]), f"the smallest file; {timed}"


def _unlimited(limits: Sequence[Limit], figures: Sequence[Figure], metric: Metric) -> list[str]:
    """A line per variant that is much worse than the original network, where no limit judges that."""
    if any(limit.limit in ("accuracy_drop", LEAST) for limit in limits):
        return []
    scores = {figure.variant: figure.value for figure in figures if figure.metric == metric.name}
    if "fp32" not in scores:
        return []
    drops = {name: metric.drop(scores["fp32"], scores[name]) for name in shipped(figures) if name in scores}
    return [
        f"{name}: a limit for what {metric.name} may lose; it loses {drop:.4f} (budget.accuracy_drop)"
        for name, drop in drops.items()
        if drop > LARGE_DROP
    ]


def _never_found(limits: Sequence[Limit], figures: Sequence[Figure]) -> list[str]:
    """A sentence per program that never finds some of its classes, where no floor judges them."""
    if any(limit.limit == LEAST_CLASS for limit in limits):
        return []
    classes = {name: dict[str, float]() for name in shipped(figures)}
    for figure in figures:
        if figure.variant in classes and figure.metric.startswith(CLASS):
            classes[figure.variant][figure.metric.removeprefix(CLASS)] = figure.value
    found = []
    for variant, scores in classes.items():
        missed = [name for name, value in scores.items() if value < NEVER]
        shown = ", ".join(map(repr, missed[:MOST_NAMED]))
        more = f" and {len(missed) - MOST_NAMED} more" if len(missed) > MOST_NAMED else ""
        if len(missed) == 1:
            what = f"class {shown} is never found right (score {scores[missed[0]]:.4f})"
        else:
            what = f"{len(missed)} of {len(scores)} classes are never found right ({shown}{more})"
        if missed:
            found.append(f"{variant}: {what}; budget.least_class_score makes that an error")
    return found


def _apart(figures: Sequence[Figure]) -> list[str]:
    """A sentence per runtime that does not compute the codes of the integer graph."""
    cells = {(f.variant, f.metric): f.value for f in figures}
    return [
        f"{name}: codes differ from the integer graph's by up to {cells[name, 'parity_lsb']:.0f} LSB"
        for name in shipped(figures)
        if _is_apart(cells, name)
    ]


def _is_apart(cells: Mapping[tuple[str, str], float], name: str) -> bool:
    """Whether a program's codes are farther from the integer graph's than they may be."""
    return cells.get((name, "parity_lsb"), 0.0) > cells.get((name, "parity_allowed"), 0.0)


def _several(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
