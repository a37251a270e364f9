"""The chat's own program as people and scripts use it: pipes, signals, and a pseudo-terminal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chat_person import Person
from chat_program import chat_folder
from device_contract import until

from paredown.apps.chat.device.chat import read_members
from paredown.apps.chat.device.generation.stats import Stats
from paredown.apps.chat.device.terminal import described
from paredown.targets.errors import InputError

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "helpers" / "chat_program.py"
GREEDY = ("--temperature", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def command(folder):
    """How the program is started: its arguments, and the rest of `Popen`'s."""

    def start(*arguments, **variables):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAM.parent}", "TERM": "xterm", **variables}
        return [sys.executable, str(PROGRAM), *GREEDY, *arguments], {"cwd": folder, "env": environment}

    return start


@pytest.fixture(scope="module")
def run(command):
    """Runs it to its end: exit status, output and complaints, as bytes."""

    def run(*arguments, stdin=b"", **variables):
        words, where = command(*arguments, **variables)
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=120, **where)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_pipe_gets_an_answer_to_each_line_that_is_not_blank(run):
    lines = b"hello\n\n  \nthe \xff device \xe2\x82 \xe6\xbc\xa2\r\n/quit\nlast"
    assert run(stdin=lines) == (0, "hello\nthe � device � 漢\n/quit\nlast\n".encode(), b"")


def test_one_prompt_for_scripts(run):
    assert run("--prompt", "the device") == (0, b"the device\n", b"")
    assert run("--prompt", b"\xff") == (0, "�\n".encode(), b"")
    assert run("--prompt", "a\nb", "--stop", "\nb") == (0, b"a\n", b"")
    assert run("--prompt", "the device", "--max-tokens", "1")[2] == b"[as long as it may be]\n"


def test_an_empty_pipe_and_empty_prompts(run):
    assert run() == (0, b"", b"")
    assert run(stdin=b"\n \n\t\n") == (0, b"", b"")
    assert run("--prompt", "\n ") == (4, b"", b"the prompt is empty\n")


def test_an_enormous_prompt_is_refused_and_the_next_one_answered(run):
    code, out, err = run(stdin=b"x" * 20_000_000 + b"\nnext\n")
    assert (code, out) == (4, b"next\n")
    assert re.fullmatch(rb"a prompt of at least [\d,]+ tokens is too long: the context of 256 .*\n", err)


def test_what_a_terminal_would_obey_is_shown_instead(run):
    code, out, _ = run("--prompt", "x", WAY="raw")
    shown = out.decode()
    assert code == 0 and not set(shown) & {chr(n) for n in (*range(10), *range(11, 32), *range(127, 160))}
    assert shown == (
        "red ␛[31m, title ␛]0;x␇, up ␛[A, c1 �2J, back ␍␈, run �back, e\u0301 漢\n"
    )  # fmt: skip


def test_half_a_character_is_never_written(run):
    assert run("--prompt", "x", WAY="half") == (0, "�\n".encode(), b"")


def test_a_broken_pipe_ends_it_quietly(command):
    words, where = command(WAY="endless", CONTEXT="100000")
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **where
    ) as process:
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.read(10) == b"and on and"
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_ctrl_c_ends_a_script(command):
    words, where = command("--prompt", "go", WAY="endless", CONTEXT="100000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **where) as process:
        assert process.stdout.read(10) == b"and on and"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, b"") and out.endswith(b"\n")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--top-p", "3"), 2, b"top-p 3.0 must be more than 0, and 1 at most\n"),
        (("--temperature", "nan"), 2, b"temperature nan must be 0 or more\n"),
        (("--stop", ""), 2, b"an empty stop string; leave it out to never stop\n"),
        (("--max-tokens", "0"), 2, b"0 tokens are no answer; give 1 or more\n"),
        (("--threads", "0"), 2, b"0 threads compute nothing; give 1 or more\n"),
    ],
)
def test_options_out_of_range(run, arguments, code, complaint):
    assert run(*arguments) == (code, b"", complaint)


def test_a_model_whose_logits_are_no_numbers(run):
    code, out, err = run("--prompt", "x", WAY="nan")
    assert (code, out) == (4, b"") and err.startswith(b"the model's logits are nan")


def test_a_damaged_and_a_missing_bundle(folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "copy")
    (there / "app.json").write_text('{"template": "none"}')
    with pytest.raises(InputError, match=r"app\.json: damaged: not what the manifest says"):
        read_members(there, ("app.json",))
    (there / "manifest.json").unlink()
    with pytest.raises(InputError, match="no unpacked bundle of a language model"):
        read_members(there, ("app.json",))


def test_stats_in_words():
    assert described(Stats()) == "0 tokens read, 0 written"
    assert described(Stats(1200, 30, 29)) == (
        "1,200 tokens read, 30 written; emulated, its times mean nothing"
    )
    assert described(Stats(1200, 30, 29, 4.0, 2.0, 4.125)) == (
        "1,200 tokens read at 300.0/s, 30 written at 14.5/s; the first after 4.12 s"
    )


@pytest.fixture
def person(command):
    people = []

    def sit_down(**variables) -> Person:
        people.append(Person(*command(**variables)))
        people[-1].sees("context of")
        people[-1].sees("> ")
        return people[-1]

    yield sit_down
    for someone in people:
        someone.close()


def test_a_person_chats(person):
    someone = person()
    someone.types("the device é漢\n")
    someone.sees("the device é漢\r\nthe device é漢\r\n")
    someone.types("/stats\n")
    someone.sees("last answer: ")
    someone.sees(" tokens read at ")
    someone.types("/reset\n")
    someone.sees("forgot everything")
    someone.types("/help\n")
    someone.sees("/quit    leave")
    someone.types("/what is this\n")
    someone.sees("no command /what; there are")
    someone.types("//path\n")
    someone.sees("//path\r\n/path\r\n")
    someone.types("   \n\n/quit\n")
    assert someone.leaves() == 0 and "empty" not in someone.screen


def test_ctrl_d_leaves(person):
    someone = person()
    someone.types("\x04")
    assert someone.leaves() == 0


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(person):
    someone = person(WAY="endless", CONTEXT="100000")
    someone.types("go\n")
    someone.sees("and on and on")
    someone.types("\x03")
    someone.sees("\r\n\x1b[2m[interrupted]\x1b[0m\r\n")
    someone.sees("> ")
    someone.interrupts()
    someone.sees("Ctrl-C again leaves")
    someone.interrupts()
    assert someone.leaves() == 130


def test_a_second_ctrl_c_ends_the_program_even_where_the_model_is_stuck(person, folder):
    someone = person(WAY="stuck")
    someone.types("go\n")
    until((folder / "stuck").exists, "the model is at it")
    someone.interrupts()
    someone.interrupts()
    assert someone.leaves() == 130


def test_a_person_is_told_what_is_forgotten_and_refused(person):
    someone = person(CONTEXT="64")
    for _ in range(3):
        someone.types("the device\n")
        someone.sees("the device\r\n")
    someone.sees("[forgot the oldest exchange: the context is full]")
    someone.sees("the device\r\n")
    someone.types("x y " * 60 + "\n")
    someone.sees("tokens is too long: the context of 64")
    someone.types("/quit\n")
    assert someone.leaves() == 0


def test_no_colour_where_it_is_not_wanted(person):
    someone = person(NO_COLOR="1")
    someone.types("/reset\n/quit\n")
    someone.sees("forgot everything\r\n")
    assert someone.leaves() == 0 and "\x1b[2m" not in someone.screen
