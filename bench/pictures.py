"""Pictures of the docs: a terminal while and after a run, and its report on a phone and on a desk.

    python bench/pictures.py digits [--columns 80]

Makes the run in a fresh folder, in a terminal of tmux that many columns wide, and photographs it and the
report with Chromium. Both have to be installed. What it makes is looked at before it is committed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from record import ROOT
from rich.console import Console
from rich.text import Text

IMAGES = ROOT / "docs/images"
CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 75)
DONE = "paredown-has-ended"


def terminal(command: str, folder: Path, columns: int) -> str:
    """What a terminal shows once a command has ended, with its colours as ANSI has them."""
    tmux = ("tmux", "-L", f"pictures-{columns}")
    shell = f"PATH={Path(sys.executable).parent}:$PATH PS1='$ ' TERM=xterm-256color bash --norc"
    size = ("-x", str(columns), "-y", "60")
    subprocess.run([*tmux, "new-session", "-d", *size, "-c", str(folder), shell], check=True)
    try:
        subprocess.run([*tmux, "send-keys", f"clear; {command}; : {DONE}", "Enter"], check=True)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            time.sleep(1.0)
            found = subprocess.run(
                [*tmux, "capture-pane", "-p", "-e", "-S", "-200"], capture_output=True, check=True
            )
            text = found.stdout.decode()
            if text.rstrip().endswith("$"):
                return text.replace(f"; : {DONE}", "").replace("clear; ", "")
        raise SystemExit(f"{command}: has not ended after 600 s")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def photographed(page: Path, out: Path, width: int, height: int, *options: str) -> np.ndarray:
    """A page in a window of some size."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [*CHROMIUM, *options, f"--user-data-dir={profile}", f"--window-size={width},{height}",
             f"--screenshot={out}", page.as_uri()], check=True, capture_output=True,
        )  # fmt: skip
    image = cv2.imread(str(out))
    assert image is not None
    return image


def beside(images: list[np.ndarray], gap: int = 24) -> np.ndarray:
    """Pictures of one height side by side, on grey."""
    height = max(image.shape[0] for image in images)
    parts = []
    for image in images:
        whole = np.full((height, image.shape[1] + gap, 3), 128, np.uint8)
        whole[: image.shape[0], : image.shape[1]] = image
        parts.append(whole)
    return np.concatenate(parts, 1)[:, :-gap]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--columns", type=int, default=80)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = terminal(f"paredown run {given.recipe}", folder, given.columns)
        console = Console(record=True, width=given.columns, file=(folder / "shown").open("w"))
        console.print(Text.from_ansi(text.strip("\n")))
        page = folder / "terminal.html"
        svg = console.export_svg(title=f"paredown run {given.recipe}")
        page.write_text(f"<body style='margin:0'>{svg.replace('<svg ', '<svg width=980 ', 1)}")
        shot = photographed(page, folder / "terminal.png", 980, 1600)
        rows = np.flatnonzero((shot != 255).any((1, 2)))
        cv2.imwrite(str(IMAGES / "terminal.jpg"), shot[: rows[-1] + 1], JPEG)
        (report,) = (folder / "runs").glob("*/*/report.html")
        phone = photographed(report, folder / "phone.png", 420, 1700)
        desk = photographed(report, folder / "desk.png", 1100, 1700, DARK)
        cv2.imwrite(str(IMAGES / "report.jpg"), beside([phone, desk]), JPEG)


if __name__ == "__main__":
    main()
