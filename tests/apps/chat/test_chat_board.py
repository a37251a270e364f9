"""A real model on an emulated board, a person at a terminal here."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from chat_person import Person
from needs import needs
from tiny_project import call

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_person_chats_with_an_emulated_board(tmp_path):
    """Streaming, Ctrl-C in an answer, forgetting, the end."""
    needs("proot", "proot")
    one = ("--smoke", "--set", 'lower.runtimes=["litert"]')
    assert call("run", "gemma3-tiny", "--runs", tmp_path, *one).code == 0
    bundle = tmp_path / "gemma3-tiny" / "host" / "bundle.paredown"
    words = [
        sys.executable,
        "-m",
        "paredown.apps.cli.main",
        "chat",
        str(bundle),
        "--device",
        "emulated:raspberry-pi-5",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    someone = Person([*words, "--temperature", "0"], {"env": environment, "cwd": tmp_path}, patience=300)
    try:
        someone.sees("on emulated:raspberry-pi-5")
        someone.sees("> ")
        someone.types("The assert statement\n")
        someone.sees("The assert statement\r\n")
        someone.sees(" ")  # it has begun to write, and has not finished
        someone.types("\x03")
        someone.sees("[interrupted]")
        someone.sees("> ")
        someone.types("/reset\n")
        someone.sees("forgot everything")
        someone.types("/stats\n")
        someone.sees("tokens read")
        someone.types("/quit\n")
        assert someone.leaves() == 0
    finally:
        someone.close()
    assert not re.search(r"tokens read at|Traceback", someone.screen), "an emulated board has no speed"
