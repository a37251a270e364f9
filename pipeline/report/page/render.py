"""The report as one HTML page: nothing is fetched, nothing runs, every text is escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from paredown.pipeline.report.page import sections, svg

TEMPLATES = Path(__file__).parent


def clean(value: Any) -> Any:
    """A text without characters that control a terminal or turn the direction of writing."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    if value.replace("\n", "").replace("\t", "").isprintable():  # nearly all are, and there are many
        return value
    kept = (c for c in value if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return "".join(kept)


def render(document: Mapping[str, Any]) -> bytes:
    """The page of one run or bundle.

    Args:
        document: as `document.run_document` and `document.bundle_document` make it.
    """
    return _page("page.html", {"document": document, "parts": sections.parts(document)})


def render_comparison(
    documents: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any] | None = None
) -> bytes:
    """One page that puts several runs or bundles side by side.

    Args:
        documents: of each.
        sweep: table and plots of a sweep, `pipeline.run.search.table.page_parts`, in the place of the page's
            own plots.
    """
    return _page("compare.html", {**sections.comparison(documents), "sweep": sweep})


def _page(name: str, values: Mapping[str, Any]) -> bytes:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=clean,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = Markup((TEMPLATES / "page.css").read_text())  # our own file
    text = environment.get_template(name).render(**values, style=style, svg=svg)
    return text.encode()
