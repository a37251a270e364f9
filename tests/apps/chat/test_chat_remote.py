"""A chat on a device with the terminal here: through the lines between them, on this machine as a device."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_program import chat_folder

from paredown.apps.chat.device.chat import parser
from paredown.apps.chat.device.generation.session import Done, Forgot, Text
from paredown.apps.chat.device.generation.stats import Stats
from paredown.apps.chat.device.serve import Server, from_json
from paredown.apps.chat.remote import on_device
from paredown.targets.address import open_device
from paredown.targets.devices.errors import ExitStatusError
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.own_code import own_code

HELPERS = Path(__file__).parents[2] / "helpers"
#: What a board needs of ours; the model comes from the tests.
DEVICE_FILES = (
    "__init__.py", "apps/__init__.py", "apps/chat/__init__.py", "targets/__init__.py", "targets/errors.py",
    *(f"apps/chat/device/{name}.py" for name in (
        "__init__", "chat", "generation/*", "language_model", "serve", "terminal", "tokens/*",
    )),
)  # fmt: skip


@pytest.fixture(autouse=True)
def any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' model is code of nobody's version."""
    monkeypatch.setattr("paredown.pipeline.device.language.unpacked.require_known_code", lambda bundle: None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Of the members that a real one has, with the tests' model in place of a runtime's."""
    folder = chat_folder(tmp_path_factory.mktemp("bundle"))
    members = {name: path.read_bytes() for name, path in own_code(DEVICE_FILES).items()}
    members |= {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    members |= {
        f"{name}.py": (HELPERS / f"{name}.py").read_bytes() for name in ("chat_model", "chat_program")
    }
    members["paredown/apps/chat/device/models.py"] = b"from chat_program import open_model as open_model\n"
    members["large.bin"] = bytes(3 << 20)
    members["model.tflite"] = members["model.pte"] = b"the tests' model needs none"
    manifest = SimpleNamespace(
        language=[
            SimpleNamespace(runtime="litert", file="model.tflite"),
            SimpleNamespace(runtime="executorch", file="model.pte"),
        ]
    )
    text = (folder / "manifest.json").read_bytes()
    return SimpleNamespace(members=members, text=text, manifest=manifest, path="x.paredown")


def changed(bundle, name, data):
    """The bundle with another member, or without one."""
    members = {**bundle.members, name: data}
    if data is None:
        del members[name]
    return SimpleNamespace(**{**vars(bundle), "members": members})


def options(*words):
    return parser("chat").parse_args(["--temperature=0", *words])


@pytest.fixture(scope="module")
def python3(tmp_path_factory):
    """This Python under the name that boards have for it."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python3").chmod(0o755)
    return str(folder)


@pytest.fixture
def device(python3, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{python3}:{os.environ['PATH']}")
    with open_device("local:") as device:
        yield device


def told(events):
    *events, done = events
    return "".join(event.text for event in events if isinstance(event, Text)), done


def test_a_chat_on_a_device(device, bundle):
    with on_device(bundle, device, options()) as chat:
        assert (Path(device.workspace) / "large.bin").stat().st_size == 3 << 20
        assert chat.description == "chat; context of 256 tokens; on local"
        text, done = told(chat.answer("the device é漢\n\x1b[0m \U0001f600"))
        assert (text, done.why) == ("the device é漢\n\x1b[0m \U0001f600", "end")
        assert done.stats.decode_s > 0 and done.stats.decoded == done.stats.answer_tokens
        first = done.stats.prompt_tokens
        assert told(chat.answer("the device"))[0] == "the device"
        chat.reset()
        with pytest.raises(InputError, match="local: the prompt is empty"):
            told(chat.answer(" "))
        with pytest.raises(InputError, match="too long: the context of 256"):
            told(chat.answer("x" * 1_000_000))
        _, done = told(chat.answer("the device é漢\n\x1b[0m \U0001f600"))
        assert done.stats.prompt_tokens == first


def test_an_interrupted_answer_ends_there_too(device, bundle, monkeypatch):
    monkeypatch.setenv("WAY", "endless")
    monkeypatch.setenv("CONTEXT", "100000")
    with on_device(bundle, device, options()) as chat:
        asked = itertools.count()
        text, done = told(chat.answer("go", lambda: next(asked) > 20))
        assert done.why == "interrupted" and text.startswith("and on")
        _, done = told(chat.answer("go", lambda: True))  # that one is interrupted, not the one before
        assert done.why == "interrupted"


def test_an_emulated_device_tells_no_times(device, bundle):
    device.emulated = True
    with on_device(bundle, device, options()) as chat:
        _, done = told(chat.answer("x"))
    assert done.stats.answer_tokens == 1 and done.stats.prefill_s is done.stats.decode_s is None


def test_what_is_wrong_there_is_said_here(device, bundle):
    broken = changed(bundle, "app.json", b"{}")
    with pytest.raises(InputError, match=r"^local: .*app\.json: damaged: not what the manifest says$"):
        with on_device(broken, device, options()):
            pass


def test_a_board_that_lacks_a_module(device, bundle):
    broken = changed(bundle, "paredown/apps/chat/device/tokens/tokens.py", None)
    with pytest.raises(
        ExitStatusError, match=r"status 1: .*No module named 'paredown\.apps\.chat\.device\.tokens\.tokens'"
    ):
        with on_device(broken, device, options()):
            pass


def test_a_program_there_that_says_something_else(device, bundle):
    for says, found in ((b"print('hello')", "says nothing that can be read"), (b"", "ended by itself")):
        odd = changed(bundle, "paredown/apps/chat/device/chat.py", says)
        with pytest.raises(DeviceError, match=f"^local: the chat.* {found}"):
            with on_device(odd, device, options()):
                pass


def test_only_the_runtime_that_is_asked_for_is_brought(device, bundle):
    with on_device(bundle, device, options("--runtime=litert")) as chat:
        assert told(chat.answer("x"))[0] == "x"
    assert (Path(device.workspace) / "model.tflite").exists()
    assert not (Path(device.workspace) / "model.pte").exists()
    with pytest.raises(UsageError, match=r"x\.paredown: no program for coreml; it has one for litert"):
        with on_device(bundle, device, options("--runtime=coreml")):
            pass


class Fixed:
    """A chat that says what it is given."""

    description = "fixed"

    def __init__(self, events):
        self.events = events

    def answer(self, text, cancelled):
        return iter(self.events)

    def reset(self):
        self.events = []


def test_every_event_crosses_the_line_as_it_is():
    events = [Text("é\n\u2028\x00"), Forgot(3), Done("stop", Stats(5, 4, 3, 2.0, 1.0, 0.5))]
    replies = io.StringIO()
    server = Server(replies)
    requests = ['{"prompt": "x", "number": 1}', '{"reset": true}', '{"prompt": "x", "number": 2}']
    assert server.serve(lambda: Fixed(events), requests) == 0
    hello, *lines = replies.getvalue().splitlines()
    assert replies.getvalue().isascii() and json.loads(hello) == {"hello": "fixed"}
    assert [from_json(json.loads(line)) for line in lines] == events


def test_lines_that_are_no_requests_are_answered_by_an_error():
    """A login shell's greeting, half a line, JSON of another kind: what comes after them is answered."""
    events = [Done("stop", Stats(5, 4, 3, 2.0, 1.0, 0.5))]
    strange = [
        "Welcome to the board",
        '{"prompt": ',
        "[]",
        "null",
        '{"number": 1}',
        '{"prompt": 1, "number": 2}',
    ]
    replies = io.StringIO()
    assert Server(replies).serve(lambda: Fixed(events), [*strange, '{"prompt": "x", "number": 3}']) == 0
    _, *lines = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert [line.get("exit_code") for line in lines] == [4] * len(strange) + [None]
    assert all("no request" in line["error"] for line in lines[:-1]) and lines[-1]["done"] == "stop"


def test_a_reader_that_left_ends_it_quietly():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    assert Server(Gone()).serve(lambda: Fixed([]), ['{"prompt": "x", "number": 1}']) == 1


def test_a_model_that_cannot_be_opened_is_told_with_its_exit_code():
    replies = io.StringIO()

    def fails():
        raise InputError("no runtime here")

    assert Server(replies).serve(fails, []) == 4
    assert json.loads(replies.getvalue()) == {"error": "no runtime here", "exit_code": 4}
