"""Commands whose options are those of an argparse parser: the same names, defaults and values."""

from __future__ import annotations

import argparse
import re

import pytest
import typer
from tiny_project import call, python

from paredown.apps.api.training.command import parser as train_parser
from paredown.apps.chat.device.chat import parser as chat_parser
from paredown.apps.cli.main import app
from paredown.apps.cli.options import FromParser, actions, options_of
from paredown.apps.detector.device.camera import parser as camera_parser
from paredown.apps.detector.device.drone import parser as drone_parser
from paredown.targets.errors import ParedownError

PARSERS = {"camera": camera_parser, "drone": drone_parser, "chat": chat_parser, "train": train_parser}
NEEDED = {
    "camera": ["--source", "0"],
    "drone": ["--source", "0", "--mavlink", "udp:h:1", "--fov", "60"],
    "chat": [],
    "train": ["digits", "--out", "a.weights"],
}
SAID = {
    "camera": (
        ["--confidence", "0.25", "--threads", "3", "--rotate", "270", "--mirror", "--frames", "7"],
        ["--line", "a=0,0,1,1", "--line", "b=0,1,1,0", "--zone", "z=0,0,1,0,1,1", "--save", "o.mp4"],
        ["--patience=1.5", "--realtime", "--show", "--json", "--mqtt", "h:1/t", "--snapshot", "s.png"],
    ),
    "drone": (
        ["--mount", "0", "-90", "12.5", "--send", "both", "--trust-range", "30", "--min-confidence", "0.9"],
        ["--system", "7", "--follow-system", "9", "--target", "a,b", "--tiles", "off", "--overlap", "0.1"],
    ),
    "chat": (
        ["--prompt", "", "--temperature", "0", "--top-k", "3", "--top-p", "0.5", "--seed", "0"],
        ["--stop", "a", "--stop", "b", "--max-tokens", "9", "--threads", "2", "--no-times", "--serve"],
    ),
    "train": (
        ["--epochs", "0", "--lr", "0.5", "--weight-decay", "0", "--multi-scale", "--no-flips"],
        ["--names", "n", "--validation", "v", "--resize", "crop", "--checkpoint", "c", "--threads", "2"],
    ),
}
REFUSED = {
    "camera": (["--confidence", "2"], ["--threads", "0"], ["--rotate", "45"], ["--line", "a"], ["--x"]),
    "drone": (["--mount", "1", "2"], ["--intrinsics", "1,1,1,1,1"], ["--send", "x"], ["--overlap", "nan"]),
    "chat": (["--top-k", "x"], ["--seed"], ["word"]),
    "train": (["--epochs", "1.5"], ["--resize", "x"], ["--lr", "fast"]),
}


def by_typer(name: str, words: list[str]) -> argparse.Namespace:
    """The options that the command gets."""
    command = typer.main.get_command(app).commands[name]
    bundle = [] if name == "train" else ["bundle"]
    return options_of(command.make_context(name, [*bundle, *words]))


@pytest.mark.parametrize("name", PARSERS)
def test_names_defaults_and_help_are_the_parsers(name):
    parser, command = PARSERS[name](name), typer.main.get_command(app).commands[name]
    assert isinstance(command, FromParser)
    command.get_params(typer.Context(command))
    expected = {action.dest: action.option_strings or [action.dest] for action in actions(parser)}
    assert {parameter.name: parameter.opts for parameter in command.found.values()} == expected
    for action in actions(parser):
        shown = command.found[action.dest]
        assert shown.required == action.required
        assert shown.hidden == (action.help == argparse.SUPPRESS)
        text = "" if shown.hidden else (action.help or "") % vars(action)
        assert text.lower() == shown.help.removesuffix(".").lower() and (text or shown.hidden)
    assert by_typer(name, NEEDED[name]) == parser.parse_args(NEEDED[name])


@pytest.mark.parametrize(("name", "words"), [(name, words) for name in SAID for words in SAID[name]])
def test_values_are_the_parsers(name, words):
    words = [*NEEDED[name], *words]
    assert by_typer(name, words) == PARSERS[name](name).parse_args(words)


@pytest.mark.parametrize(("name", "words"), [(name, words) for name in REFUSED for words in REFUSED[name]])
def test_what_the_parser_refuses_is_one_line(name, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, ParedownError)):
        PARSERS[name](name).parse_args([*NEEDED[name], *words])
    done = call(name, *([] if name == "train" else ["bundle"]), *NEEDED[name], *words)
    assert done.code == 2 and done.line().startswith("paredown: ")


@pytest.mark.parametrize("name", PARSERS)
def test_the_help_has_every_option_and_the_look_of_the_others(name):
    done, other = call(name, "--help"), call("run", "--help")
    for action in actions(PARSERS[name](name)):
        assert action.help == argparse.SUPPRESS or all(word in done.out for word in action.option_strings)
    for text in (done.out, other.out):
        assert text.startswith("Usage: ") and re.findall(r"^(\w+):$", text, re.MULTILINE)[-1] == "Options"
        assert max(map(len, text.splitlines())) <= 80


def test_the_trainers_module_is_the_same_command():
    code = "import runpy, sys\nsys.argv[1:] = ['--help']\nrunpy.run_module('%s', run_name='__main__')"
    done = python(code % "paredown.apps.detector.train")
    assert done.returncode == 0 and done.stdout.startswith("Usage: paredown train ")
    assert done.stdout.splitlines()[1:] == call("train", "--help").out.splitlines()[1:]
