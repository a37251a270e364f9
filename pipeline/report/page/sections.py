"""The parts of the page: each is there only where a run did what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from paredown.pipeline.report.figures import CLASS, Figure, caption, figure_rows, parse_figures
from paredown.pipeline.report.page import svg

Document = Mapping[str, Any]

MOST_CLASSES = 30  # of a matrix; of more classes the pairs that are confused most are listed
MOST_PAIRS = 20
MOST_CURVES = 8
TAG_WORDS = {
    "measured": "measured on the machine that is named",
    "simulated": "simulated: exact codes or counts of an emulator, never a time",
    "predicted": "predicted by a model",
    "smoke": "from a handful of samples: says nothing of accuracy or speed",
}


def parts(document: Document) -> dict[str, Any]:
    """What the template shows, by name; what is empty is left out there."""
    figures = parse_figures(document["figures"], "report")
    heads, rows = figure_rows(figures)
    return {
        "table": {"heads": [head.replace("\n", " ") for head in heads], "rows": rows,
                  "caption": caption(figures)},
        "classes": _classes(document["details"]), "curves": _curves(document["details"]),
        "confusion": _confusion(document["details"]), "pareto": pareto(_points(figures, document["metric"]),
                                                                       document["metric"]),
        "sensitivity": _sensitivity(document["sensitivity"]), "ledger": _ledger(document["ledger"]),
        "times": _times(document["times"]), "bursts": _bursts(document["bursts"]),
        "parity": _parity(document["parity"]), "tags": _tags(figures), "figures": figures,
    }  # fmt: skip


def _tags(figures: Sequence[Figure]) -> list[tuple[str, str, int]]:
    """Each tag that occurs, in words, and how often."""
    counts = {tag: sum(figure.tag == tag for figure in figures) for tag in TAG_WORDS}
    return [(tag, TAG_WORDS[tag], count) for tag, count in counts.items() if count]


def _shown(details: Mapping[str, Any]) -> list[str]:
    """The original network and the last runtime: before and after."""
    return [name for name in ("fp32", *[n for n in details if n != "fp32"][-1:]) if name in details]


def _classes(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chart of the scores of all classes, of each variant."""
    found = []
    for variant in _shown(details):
        rows = [(c["name"], c["score"], c["low"], c["high"]) for c in details[variant].get("classes", ())]
        if rows:
            title = f"score of each class, {variant}"
            found.append({"variant": variant, "chart": svg.intervals(rows, title),
                          "rows": details[variant]["classes"]})  # fmt: skip
    return found


def _curves(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Precision over recall; of many classes the worst."""
    found = []
    for variant in _shown(details):
        known = [c for c in details[variant].get("classes", ()) if c.get("curve")]
        worst = sorted(known, key=lambda each: each["score"])[:MOST_CURVES]
        series = [(each["name"], [(x, y) for x, y in each["curve"]]) for each in worst]
        if series:
            title = f"precision over recall, {variant}"
            chart = svg.lines(series, title, "recall", "precision", (0.0, 1.0), (0.0, 1.02))
            found.append({"variant": variant, "chart": chart, "left_out": len(known) - len(worst)})
    return found


def _confusion(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A matrix of true class and what was said; of many classes the pairs that are confused most."""
    found = []
    for variant in _shown(details):
        pairs, names = details[variant].get("confusion", ()), details[variant].get("names", ())
        if not pairs:
            continue
        counts = {(true, said): count for true, said, count in pairs}
        present = sorted({each for pair in counts for each in pair if each >= 0})
        nothing = [-1] if any(-1 in pair for pair in counts) else []
        labels = {index: names[index] if index >= 0 else "nothing" for index in (*present, -1)}
        wrong = sorted(((n, t, s) for (t, s), n in counts.items() if t != s), reverse=True)[:MOST_PAIRS]
        shown: dict[str, Any] = {
            "variant": variant, "heads": [], "rows": [],
            "pairs": [(labels[true], labels[said], count) for count, true, said in wrong],
        }  # fmt: skip
        if len(present) <= MOST_CLASSES:
            shown["heads"] = [labels[index] for index in (*present, *nothing)]
            for true in (*present, *nothing):
                row = [counts.get((true, said), 0) for said in (*present, *nothing)]
                whole = sum(row) or 1
                cells = [(count, round(count / whole, 2)) for count in row]
                shown["rows"].append((labels[true], cells))
        found.append(shown)
    return found


def _points(figures: Sequence[Figure], metric: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Variant, bytes of its file and score; runtimes in float32 have the original's score."""
    cells = {(f.variant, f.metric): f.value for f in figures if f.tag != "smoke"}
    found = []
    for (variant, name), size in cells.items():
        of = "fp32" if variant.endswith("-fp32") else variant
        score = cells.get((of, metric["name"]))
        if name == "file_bytes" and score is not None:
            found.append((variant, size / 1024, score))
    return found


def front(points: Sequence[tuple[str, float, float]], less_is_better: bool) -> list[int]:
    """The points that no other one beats in both: cheaper and better; by cost."""
    sign = -1.0 if less_is_better else 1.0
    best, found = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], -sign * points[i][2])):
        if sign * points[index][2] > best:
            best = sign * points[index][2]
            found.append(index)
    return found


def pareto(points: Sequence[tuple[str, float, float]], metric: Mapping[str, Any], unit: str = "KiB") -> Any:
    """A plot of score over cost; nothing of fewer than two points."""
    if len(points) < 2:
        return Markup("")
    line = front(points, metric["less_is_better"])
    return svg.scatter(points, f"{metric['name']} over {unit}", unit, metric["name"], line)


def _sensitivity(told: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The metric over the share of channels that stay, a small chart per group that was tried."""
    found = []
    for curve in (told or {}).get("curves", ()):
        points = [
            (point["width"] / curve["units"], point["metric"])
            for point in curve["points"]
            if point["metric"] is not None
        ]
        if len(points) > 1 and told is not None:
            title = f"{told['metric']} over the share of channels of {curve['group']}"
            chart = svg.lines(
                [(curve["group"], sorted(points))], title, "share of channels", told["metric"], (0, 1)
            )
            found.append({"group": curve["group"], "chart": chart})
    return found


def _ledger(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bytes of each layer beside the limit of its codes' entropy."""
    found = []
    for row in rows:
        limit = row["entropy"] * row["weights"] / 8 + row["extra"]
        packed = row["packed"] + row["extra"]
        found.append({**row, "limit": limit, "packed": packed, "over": packed / limit - 1 if limit else 0.0})
    return found


def _times(times: Mapping[str, Sequence[float]]) -> Any:
    rows = [(variant, values) for variant, values in times.items() if values]
    return svg.strips(rows, "time of each inference", "ms per inference") if rows else Markup("")


def _bursts(bursts: Sequence[Mapping[str, Any]]) -> Any:
    series: dict[str, list[tuple[float, float]]] = {}
    for burst in bursts:
        series.setdefault(burst["variant"], []).append((burst["seconds"] / 60, burst["median_ms"]))
    return svg.lines(list(series.items()), "latency over minutes", "minutes", "ms, median of a burst")


def _parity(told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Codes that differ, per kind of operation and per operation, and the first operation that does."""
    return [
        {"runtime": name, "first": each["first"], "inputs": each["inputs"], "outputs": each["outputs"],
         "kinds": sorted(each["kinds"].items()), "islands": sorted(each.get("islands", {}).items()),
         "layers": each.get("layers", [])}
        for name, each in told.items()
    ]  # fmt: skip


# -- several of them ---------------------------------------------------------------------------------------


def comparison(documents: Sequence[Document]) -> dict[str, Any]:
    """What the page that compares shows: a row per program of each document, and plots of score over cost."""
    rows, bytes_, times = [], [], []
    metric = documents[0]["metric"]
    names = _distinct(documents)
    for document, name in zip(documents, names, strict=True):
        figures = parse_figures(document["figures"], "report")
        heads, table = figure_rows(figures)
        cells = {(f.variant, f.metric): f.value for f in figures}
        rows.append({"name": name, "document": document, "heads": [h.replace("\n", " ") for h in heads],
                     "rows": table})  # fmt: skip
        if document["metric"] != metric:
            continue
        for variant, size, score in _points(figures, metric):
            label = f"{name} {variant}"
            bytes_.append((label, size, score))
            if (ms := cells.get((variant, "latency_p50"))) is not None:
                times.append((label, ms, score))
    classes = _class_table(documents, names)
    return {
        "rows": rows, "metric": metric, "classes": classes, "names": names,
        "bytes": pareto(bytes_, metric), "times": pareto(times, metric, "ms"),
        "best": [bytes_[index][0] for index in front(bytes_, metric["less_is_better"])],
    }  # fmt: skip


def _distinct(documents: Sequence[Document]) -> list[str]:
    """A name for each; a number behind those that are the same."""
    plain = [f"{document['name']} {document['target']}" for document in documents]
    return [
        name if plain.count(name) == 1 else f"{name} #{plain[: index + 1].count(name)}"
        for index, name in enumerate(plain)
    ]


def _class_table(documents: Sequence[Document], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The score of each class by the last program of each document."""
    found: dict[str, dict[str, float]] = {}
    for document, name in zip(documents, names, strict=True):
        for figure in parse_figures(document["figures"], "report"):
            if figure.metric.startswith(CLASS) and figure.variant != "fp32":
                found.setdefault(figure.metric.removeprefix(CLASS), {})[name] = figure.value
    return [
        (label, [f"{values[n]:.4f}" if n in values else "" for n in names]) for label, values in found.items()
    ]
