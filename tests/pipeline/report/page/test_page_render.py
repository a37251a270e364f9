"""The page: whole, escaped, the same bytes each time, and only with what a run has."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import Limit
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.report.page.document import BURSTS, DOCUMENT, document, read_document
from paredown.pipeline.report.page.render import clean, render, render_comparison
from paredown.pipeline.report.page.sections import comparison, front, parts
from paredown.pipeline.report.verdict import Verdict
from paredown.targets.errors import InputError
from paredown.targets.host.host import Machine

pytestmark = pytest.mark.unit
HOST = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7", (("torch", "2.13.0"),))
VOID = {"meta", "img", "link", "br", "circle", "path", "rect", "polyline"}
TAGS = ("fp32", "litert")


def figures(score=0.5, size=2048.0):
    found = [Figure("score", "fp32", "map50", 0.6, "1", "measured", HOST)]
    for metric, value, unit in (("map50", score, "1"), ("file_bytes", size, "B"), ("latency_p50", 2.0, "ms")):
        found.append(Figure("x", "litert", metric, value, unit, "measured", HOST))
    found.append(Figure("classes", "litert", "class_score_cat", 0.25, "1", "predicted", HOST))
    return found


def facts(name="cat"):
    classes = [
        {"name": name, "score": 0.25, "low": 0.1, "high": 0.4, "count": 7, "curve": [[0.5, 1.0], [1, 0.5]]}
    ]
    details = {"classes": classes, "names": [name, "dog"], "confusion": [[0, 0, 3], [0, 1, 2], [-1, 1, 4]]}
    points = [{"width": w, "metric": m} for w, m in ((4, 0.5), (2, 0.4), (1, None))]
    kinds = {"conv2d": {"values": 10, "differing": 1, "max_lsb": 1}}
    return {
        "details": {"fp32": details, "litert": details},
        "examples": {"columns": ["labels", "fp32", "litert"], "words": "words", "rows": [
            {"name": name, "before": 1.0, "after": 0.5, "pictures": ["AAAA"] * 3}]},
        "sensitivity": {"metric": "map50", "images": 9, "baseline": {}, "curves": [
            {"group": name, "units": 4, "points": points}]},
        "widths": [{"makers": name, "kept": 2, "of": 4, "why": ""}],
        "ledger": [{"name": name, "weights": 80, "zeros": 40, "codes": 3, "entropy": 2.0, "packed": 24,
                    "extra": 8, "trained": True}],
        "times": {"litert": [1.0, 2.0, 3.0], "fp32": [4.0, 5.0]},
        "parity": {"litert": {"first": "conv", "inputs": 2, "kinds": kinds,
                              "layers": [{"name": name, "kind": "conv2d", **kinds["conv2d"]}],
                              "outputs": {"values": 10, "differing": 1, "max_lsb": 1}}},
    }  # fmt: skip


def told(name="digits", text="cat", **change):
    verdict = Verdict("DO NOT SHIP", (f"{text} is broken",), (f"{text} is odd",), "litert", "the smallest")
    given = {
        "limits": [Limit("litert", "least_score", 0.9, 0.5, floor=True)], "verdict": verdict,
        "checks": [Check("latency", None, text)], "notes": [text], "card": [("data", text)],
        "command": "paredown run recipe.toml", "recipe": text, "facts": facts(text), **change,
    }  # fmt: skip
    return document(name, "host", text, Metric("map50"), figures(), **given)


class Balance(HTMLParser):
    """Every tag that is opened is closed; what is fetched from elsewhere is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.fetched, self.texts, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        while self.open[-1] in ("li", "td", "th", "tr", "p") and self.open[-1] != tag:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page: bytes) -> Balance:
    parser = Balance()
    parser.feed(page.decode())
    parser.close()
    assert parser.open == [] and parser.fetched == []
    assert not parser.tags & {"script", "iframe", "object", "link"}
    return parser


def test_every_section_is_there_and_nothing_is_fetched():
    page = render(told())
    text = " ".join(read(page).texts)
    for head in (
        "Figures", "Budget", "Checks on the device", "Classes", "Precision and recall",
        "What is taken for what", "The worst images", "Time", "Channels", "Bytes and their limit", "Parity",
        "Notes", "Card", "Make it again",
    ):  # fmt: skip
        assert f"<h2>{head}</h2>" in page.decode() or f"<h3>{head}</h3>" in page.decode(), head
    assert "DO NOT SHIP" in text and "cat is broken" in text and "BROKEN" in text and "skipped" in text
    assert "paredown run recipe.toml" in text and "predicted" in text and "measured" in text
    assert render(told()) == page


def test_what_a_run_has_not_done_has_no_section():
    bare = document("digits", "host", "this machine", Metric("map50"), figures())
    page = render(bare).decode()
    assert re.findall("<h2>([^<]+)</h2>", page) == ["Figures", "Budget", "Card"]
    assert "No limit is set." in page and 'class="verdict' not in page


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_no_text_of_a_file_becomes_markup(text):
    hostile = f'</style></title><script>alert(1)</script><img src=x onerror="y">{text}'
    read(render(told(hostile, hostile)))
    read(render_comparison([told(hostile, hostile), told("b")]))


def test_control_characters_and_turned_writing_are_removed():
    assert clean("a\x1b[31mb\x00c\u202ed\u200be\nf") == "a[31mbcde\nf"
    assert "\x1b" not in render(told("di\x1bgits", "c\x07at")).decode()


def test_curves_matrix_and_tags_are_those_of_the_document():
    found = parts(told())
    (_, matrix) = found["confusion"]
    assert matrix["heads"] == ["cat", "dog", "nothing"]
    assert matrix["rows"][0] == ("cat", [(3, 0.6), (2, 0.4), (0, 0.0)])
    assert matrix["pairs"] == [("nothing", "dog", 4), ("cat", "dog", 2)]
    assert found["ledger"][0]["limit"] == 28 and found["ledger"][0]["packed"] == 32
    assert [(tag, count) for tag, _, count in found["tags"]] == [("measured", 4), ("predicted", 1)]
    many = facts()
    many["details"]["litert"]["names"] = [str(i) for i in range(40)]
    many["details"]["litert"]["confusion"] = [[i, (i + 1) % 40, 40 - i] for i in range(40)]
    shown = parts(told(facts=many))["confusion"][-1]
    assert shown["rows"] == [] and len(shown["pairs"]) == 20 and shown["pairs"][0] == ("0", "1", 40)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.booleans())
def test_the_front_is_what_nothing_beats_in_both(values, less):
    points = [(str(i), float(x), float(y)) for i, (x, y) in enumerate(values)]
    sign = -1 if less else 1

    def beaten(i):
        return any(
            (x <= points[i][1] and sign * y >= sign * points[i][2])
            and (x < points[i][1] or sign * y > sign * points[i][2])
            for _, x, y in points
        )

    best = front(points, less)
    assert {points[i][1:] for i in best} == {points[i][1:] for i in range(len(points)) if not beaten(i)}
    assert [points[i][1] for i in best] == sorted(points[i][1] for i in best)


def test_runs_of_one_name_are_told_apart_and_other_metrics_are_in_no_plot():
    other = told("other")
    other["metric"] = {"name": "top1", "less_is_better": False}
    found = comparison([told(), told(), other])
    assert found["names"] == ["digits host #1", "digits host #2", "other host"]
    assert found["classes"] == [("cat", ["0.2500"] * 3)]
    page = render_comparison([told(), told(), other]).decode()
    assert "Its score is top1: it is in no plot." in page and "<svg" in page


def test_the_document_is_read_back_with_the_minutes(tmp_path: Path):
    made = told()
    (tmp_path / DOCUMENT).write_text(json.dumps(made))
    assert read_document(tmp_path) == json.loads(json.dumps(made))
    bursts = [{"seconds": 60.0 * i, "variant": "litert", "median_ms": 2.0 + i} for i in range(3)]
    (tmp_path / BURSTS).write_text(json.dumps({"bursts": bursts}))
    again = read_document(tmp_path)
    assert again["bursts"] == bursts and "latency over minutes" in render(again).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "has no report.json"), ("{", "is not JSON"), ("[]", "is no report of this version"),
     ('{"format": 99}', "is no report of this version")],
)  # fmt: skip
def test_a_folder_without_a_sound_document_is_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / DOCUMENT).write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read_document(tmp_path)
