"""What MkDocs asks of us: the generated pages, and the tables of figures in the written ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate  # noqa: E402 - it lies beside this file, which MkDocs loads by its path
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

PLACE = re.compile(r"^\{\{ figures\(\"([\w-]+)\"\) \}\}$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the reference."""
    for name, page in generate.PAGES.items():
        files.append(File.generated(config, f"reference/{name}", content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the tables of figures in their places.

    Raises:
        PluginError: there is no such record, or it is not whole.
    """

    def filled(match: re.Match[str]) -> str:
        try:
            return generate.figures_table(match[1])
        except (OSError, ValueError) as error:
            raise PluginError(f"{page.file.src_path}: {error}") from error

    return PLACE.sub(filled, markdown)
