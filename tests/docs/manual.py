"""The written pages, taken apart: code blocks with their marks, inline code, links.

A block of commands or Python says what a test does with it, in an HTML comment on the line above:

    (nothing)               a fast test executes it
    <!-- runs: slow -->     a slow test executes it, shortened
    <!-- runs: session -->  a slow test executes it and compares what it prints
    <!-- needs: data -->, <!-- needs: hardware -->, <!-- needs: set-up -->
                            nothing executes it; it is parsed, its options and files exist
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
MARKS = ("", "runs: slow", "runs: session", "needs: data", "needs: hardware", "needs: set-up")
LANGUAGES = ("sh", "console", "python", "toml", "text")
BLOCK = re.compile(r"^(?:<!-- ([\w: -]+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where, its language, its mark, its text."""

    page: str
    language: str
    mark: str
    text: str

    def commands(self) -> list[list[str]]:
        """The command lines, as words; of a session those that are typed."""
        lines = [line.removeprefix("$ ") for line in self.text.splitlines() if self._typed(line)]
        parts = [part for line in lines for part in line.split(" && ")]
        return [words for part in parts if (words := shlex.split(part, comments=True))]

    def _typed(self, line: str) -> bool:
        return self.language == "sh" or line.startswith("$ ")


def blocks(*languages: str, mark: str | None = None) -> list[Block]:
    """All blocks of these languages, in the order of the pages; those with one mark only, if it is given."""
    found = [
        Block(page.name, language, label or "", text)
        for page in PAGES
        for label, language, text in BLOCK.findall(page.read_text())
    ]
    return [b for b in found if b.language in languages and mark in (None, b.mark)]


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", BLOCK.sub("", page.read_text()), flags=re.DOTALL)


def inline(page: Path) -> list[str]:
    """What stands in backticks in a page's prose."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that are on no other server."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"[a-z]+:|#", link)]
