"""Commands of docs/ that prune, train and reach devices are executed too, shortened; the site is built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from executed import SHORT, at_once, environment, python, slow
from manual import DOCS, ROOT, blocks

pytestmark = pytest.mark.slow


def test_the_commands_of_compression_run(tmp_path: Path) -> None:
    done: list[list[str]] = []
    for page in ("pruning.md", "squantizer.md", "search.md", "README.md"):
        for command in slow(page):
            if command not in done:
                assert at_once([*command, *SHORT.get(command[0], [])], tmp_path).strip()
                done.append(command)
        if page == "pruning.md":
            run = tmp_path / "runs" / "digits" / "host"
            text = (DOCS / page).read_text()
            for name in ("sensitivity.json", "sensitivity.png", "plan.json", "pruned.safetensors"):
                assert f"`{name}`" in text and (run / name).stat().st_size > 0
            (block,) = (b for b in blocks("python", mark="runs: slow") if b.page == page)
            python(block, tmp_path)


def test_the_commands_for_devices_run(tmp_path: Path) -> None:
    for command in slow("devices.md"):
        here = ["local:" if word.startswith("ssh://") else word for word in command]
        if here[0] == "cost":  # this machine's times are nobody else's
            here[here.index("raspberry-pi-5")] = "host"
        assert at_once([*here, *SHORT.get(here[0], [])], tmp_path).strip()
    assert (tmp_path / "latency-host-litert.json").stat().st_size > 0
    command = ["run", "digits", "--target", "cortex-m4", "--limit", "2", "--smoke"]
    assert "LiteRT Micro" in at_once(command, tmp_path)


def test_the_chat_runs(tmp_path: Path) -> None:
    for command in slow("chat.md"):
        assert at_once([*command, *SHORT.get(command[0], [])], tmp_path).strip()


@pytest.mark.sample
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    silent = {**environment(), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=silent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?|png|svg))"', page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
