"""The command: one line for every mistake, the right exit code, JSON where asked, help without imports."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_project import ROOT, call, copy_project, copy_runs, paredown, python, start

from paredown.apps.cli.group import ORDER, PANELS
from paredown.pipeline.recipe.file import recipe_keys
from paredown.targets.cards.card import list_cards

HEAVY = (
    "torch",
    "numpy",
    "cv2",
    "rich",
    "executorch",
    "ai_edge_litert",
    "paredown.pipeline.run.run",
    "sklearn",
)


def imported(*arguments: str) -> set[str]:
    """Which heavy packages a command imports, in a process of its own."""
    code = (
        "import sys\nfrom paredown.apps.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        f"finally: print('imported', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


# -- help, versions, lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("validate", "--help"), ("--version",)]
)
def test_help_imports_nothing_heavy(arguments):
    assert imported(*arguments) == set()


def test_the_help_is_grouped_and_no_line_is_cut():
    shown = call("--help").out
    titles = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert titles == ["Options", *PANELS]
    listed = re.findall(r"^  (\w+)  +(\S.*)$", shown.partition(f"{PANELS[0]}:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(ORDER)
    assert all(line.endswith(".") and "..." not in line for _, line in listed)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("paredown ru", {"run"}),
        ("paredown run aer", {"aerial"}),
        ("paredown run digits --target rasp", {"raspberry-pi-5"}),
        ("paredown camera x --rot", {"--rotate"}),
        ("paredown camera x --rotate 9", {"90"}),
    ],
)
def test_a_shell_completes_commands_recipes_targets_and_options(words, expected):
    code = "from paredown.apps.cli.main import app; app(prog_name='paredown')"
    asked = {"_PAREDOWN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), **asked},
        capture_output=True, text=True,
    )  # fmt: skip
    assert expected <= set(done.stdout.split()), done.stderr


def test_the_schema_describes_every_key():
    document = json.loads(call("schema").out)
    sections = {name: document["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
                for name, part in document["properties"].items()}  # fmt: skip
    for *section, key in recipe_keys():
        table = sections[section[0]] if section else document
        assert table["properties"][key]["description"], (section, key)
    assert document["additionalProperties"] is False and document["$schema"].startswith("https://")
    assert not imported("schema") & {"torch", "cv2"}


def test_a_dry_run_prints_every_key_set_or_not(tiny, tmp_path):
    given = ("run", tiny.recipe, "--runs", tmp_path / "runs", "--dry-run", "--set", "squantize.layers={a=4}",
             "--set", "squantize.weight_bits=4")  # fmt: skip
    text = call(*given).out
    recipe, _, plan = text.rpartition("\n\n")
    assert plan.startswith("trace ") and "would run" in plan
    assert tomllib.loads(recipe) == json.loads(call(*given, "--json").out)["recipe"]
    assert "# macs =  # unset: Multiply-accumulates to keep, as a share of the network's.\n" in recipe
    for key in recipe_keys():
        assert re.search(
            rf"^(# {key[-1]} =  # unset: \S|{key[-1]} = |\[(\w+\.)*{key[-1]}\])", recipe, re.M
        ), key


def test_targets_lists_every_card_and_imports_no_torch(tiny):
    done = call("targets")
    assert done.code == 0 and all(card.name in done.out for card in list_cards())
    document = json.loads(call("targets", "--json").out)
    assert [card["name"] for card in document] == [card.name for card in list_cards()]
    assert not imported("targets") & {"torch", "cv2", "executorch", "ai_edge_litert"}


def test_explain_imports_no_torch(tiny):
    assert not imported("explain", str(tiny.run)) & {"torch", "cv2", "executorch", "ai_edge_litert"}


def test_no_command_is_help_and_unknown_things_are_usage():
    assert "Make a bundle:" in (call().out + call().err)
    for arguments in (("fly",), ("run",), ("run", "x", "--flag"), ("validate", "x", "--limit", "0")):
        done = call(*arguments)
        assert done.code == 2 and "Traceback" not in done.err and done.out == ""


def test_unknown_recipes_and_overrides_are_usage(tiny):
    done = call("run", "digit")
    assert done.code == 2 and "did you mean `digits`?" in done.line()
    done = call("run", tiny.recipe, "--set", "bench.runs")
    assert done.code == 2 and "is not key=value" in done.line()


# -- bad input: one clear line, exit code 4, nothing half-written --------------------------------------------


def rewrite(name: str, change):
    """Breaks one file of the project."""

    def breaks(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return breaks


def nan_weights(data: bytes) -> bytes:
    values = bytearray(data)
    values[-4:] = np.float32(np.nan).tobytes()
    return bytes(values)


class Reducer:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploited",)


def hostile_pickle(folder: Path) -> None:
    (folder / "evil.pt").write_bytes(pickle.dumps({"x": Reducer()}))
    torch.save({"x": Reducer()}, folder / "evil.pth")


def flat_images(folder: Path) -> None:
    for index, path in enumerate(sorted((folder / "images" / "train").iterdir())):
        cv2.imwrite(str(path), np.full((72, 96, 3), 20 * index, np.uint8))


def unlabelled(folder: Path) -> None:
    for path in (folder / "labels" / "test").iterdir():
        path.unlink()


def emptied(folder: Path) -> None:
    for path in (folder / "images" / "train").iterdir():
        path.unlink()


BAD = {
    "truncated weights": (rewrite("tiny.weights", lambda d: d[:-4]), (), "tiny.weights: holds .* bytes"),
    "extended weights": (rewrite("tiny.weights", lambda d: d + b"1234"), (), "tiny.weights: holds .* bytes"),
    "odd weights": (rewrite("tiny.weights", lambda d: d[:-3]), (), "tiny.weights: holds .* bytes"),
    "empty weights": (rewrite("tiny.weights", lambda d: b""), (), "tiny.weights: holds 0 bytes"),
    "NaN weights": (rewrite("tiny.weights", nan_weights), (), "NaN or infinite"),
    "unknown section": (rewrite("tiny.cfg", lambda d: d + b"\n[yolo]\n"), (), r"tiny.cfg:\d+: .*yolo"),
    "garbage cfg": (rewrite("tiny.cfg", lambda d: bytes(range(256))), (), "tiny.cfg"),
    "empty cfg": (rewrite("tiny.cfg", lambda d: b""), (), "tiny.cfg"),
    "pickle": (hostile_pickle, ("weights=evil.pt",), "evil.pt: not a torch checkpoint of tensors only"),
    "torch pickle": (hostile_pickle, ("weights=evil.pth",), "evil.pth: not a torch checkpoint of tensors"),
    "unknown weights": (None, ("weights=tiny.cfg",), "tiny.cfg"),
    "weights are a folder": (None, ("weights=./images",), "images"),
    "missing weights": (None, ("weights=none.weights",), "none.weights: no such file or folder"),
    "empty folder": (emptied, (), "images/train: .*no images"),
    "label-less data": (unlabelled, (), "images/test: no labels"),
    "label out of range": (rewrite("labels/test/0.txt", lambda d: b"2" + d[1:]), (), r"test/0.txt:1: .*2"),
    "malformed label": (rewrite("labels/test/1.txt", lambda d: d + b"0 x y\n"), (), r"test/1.txt:3: "),
    "NaN label": (rewrite("labels/test/1.txt", lambda d: b"0 nan .5 .1 .1\n"), (), r"test/1.txt:1: "),
    "truncated image": (rewrite("images/test/1.png", lambda d: d[:200]), (), "images/test/1.png"),
    "empty image": (rewrite("images/train/2.png", lambda d: b""), (), "images/train/2.png"),
    "too few names": (rewrite("tiny.names", lambda d: b"square\n"), (), "1 class names for a network of 2"),
    "binary names": (rewrite("tiny.names", lambda d: b"\xff\xfe\x00"), (), "tiny.names"),
    "class count": (
        rewrite("tiny.cfg", lambda d: d.replace(b"classes=2", b"classes=3").replace(b"=14", b"=16")),
        (),
        "2 class names for a network of 3 classes",
    ),
    "constant images": (flat_images, (), "is of one colour only"),
    "unknown key": (
        rewrite("tiny.toml", lambda d: d + b"rums = 5\n"), (),
        r"tiny.toml:\d+: unknown key `bench.rums`; did you mean `runs` in .bench.?",
    ),
    "unknown key by --set": (None, ("bnech.runs=3",), "did you mean .bench.?"),
    "wrong type": (None, ("bench.runs=many",), "bench.runs"),
    "binary recipe": (rewrite("tiny.toml", lambda d: bytes(range(256))), (), "the recipe is not UTF-8"),
    "empty recipe but for data": (rewrite("tiny.toml", lambda d: d[:50]), (), "tiny.toml"),
    "missing names": (None, ("data.names=absent",), "absent: no such file"),
    "test is a file": (None, ("data.test=tiny.names",), "tiny.names"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_result(tiny, tmp_path, monkeypatch, name):
    change, overrides, expected = BAD[name]
    recipe = copy_project(tiny, tmp_path / "mine")
    monkeypatch.chdir(recipe.parent)
    if change:
        change(recipe.parent)
    settings_ = [word for override in overrides for word in ("--set", override)]
    light = ("--set", 'lower.runtimes=["litert"]')
    done = call("run", recipe, "--runs", tmp_path / "runs", *light, *settings_)
    assert done.code == 4, done.err
    *stages, line = done.err.splitlines()
    assert line.startswith("paredown: ") and done.out == ""
    assert all(": done in " in stage for stage in stages)
    assert re.search(expected, line), line
    assert not list((tmp_path / "runs").rglob("*.paredown")) and not list(
        (tmp_path / "runs").rglob("figures.json")
    )
    assert not list((tmp_path / "runs").glob(".store/.tmp/*"))
    assert not Path("exploited").exists()


@pytest.mark.parametrize("target", ["raspberry-pi-6", "nothing", "", "./absent.toml", "."])
def test_unknown_targets_list_the_known_ones(tiny, tmp_path, target):
    done = call("run", tiny.recipe, "--target", target, "--runs", tmp_path / "runs")
    assert done.code == 4, done.err
    if target.endswith("toml"):
        assert "no such target card file" in done.line()
    else:
        assert all(card.name in done.line() for card in list_cards())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", ["./absent.toml", "x/y", ".toml"])
def test_recipes_that_are_not_there(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    done = call("run", recipe)
    assert done.code in (2, 4) and done.line()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_recipe(tiny, tmp_path):
    (tmp_path / "a.toml").mkdir()
    assert "cannot read the recipe: Is a directory" in call("run", tmp_path / "a.toml").line()


def test_explain_of_what_is_no_run(tiny, tmp_path):
    for folder in (tmp_path, tmp_path / "absent", tiny.recipe):
        done = call("explain", folder)
        assert done.code == 4 and "is no run directory" in done.line()
    for text in ("", "{", "[1]", '[{"name": 3}]', "\0"):
        (tmp_path / "stages.json").write_text(text)
        done = call("explain", tmp_path)
        assert done.code == 4 and "cannot read the ledger" in done.line()


# -- JSON ----------------------------------------------------------------------------------------------------


def test_errors_are_json_too(tiny, tmp_path):
    for arguments in (("run", "x/absent.toml"), ("validate", "absent"), ("explain", tmp_path)):
        done = call(*arguments, "--json")
        document = json.loads(done.out)
        assert done.code == document["exit_code"] == 4
        assert done.err == f"paredown: {document['error']}\n"


def test_run_prints_one_document_on_stdout_and_words_on_stderr(tiny, tmp_path):
    done = paredown("run", tiny.recipe, "--runs", copy_runs(tiny, tmp_path / "runs"), "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    keys = {
        "run",
        "bundle",
        "preview",
        "report",
        "figures",
        "budget",
        "over_budget",
        "verdict",
        "notes",
        "checks",
    }
    assert set(document) == keys and document["checks"] == []
    assert document["figures"] and all(
        Path(document[name]).is_file() for name in ("bundle", "preview", "report")
    )
    in_file = sorted(json.dumps(f, sort_keys=True) for f in tiny.figures())
    assert sorted(json.dumps(f, sort_keys=True) for f in document["figures"]) == in_file
    assert len(done.err.splitlines()) == 18 and "{" not in done.err


# -- pipes, signals, fuzz ------------------------------------------------------------------------------------


def test_a_reader_that_leaves_and_a_full_disk_behind_stdout():
    for more in ((), ("--json",)):
        read, write = os.pipe()
        os.close(read)
        arguments = [sys.executable, "-m", "paredown.apps.cli.main", "targets", *more]
        left = subprocess.run(arguments, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (left.returncode, left.stderr) == (1, "")
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(arguments, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 4
        assert done.stderr == "paredown: standard output: No space left on device\n"


def test_an_interrupt_is_130_and_one_line(tiny, tmp_path):
    process = start("run", tiny.recipe, "--runs", tmp_path / "runs", "--set", 'lower.runtimes=["litert"]')
    assert process.stderr.readline().startswith("trace: done")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1].startswith("paredown: interrupted; run the same command again")
    assert "Traceback" not in err
    assert not list((tmp_path / "runs").glob(".store/.tmp/*"))


WORDS = st.one_of(
    st.sampled_from([
        "run", "validate", "explain", "targets", "--json", "--set", "--target", "--runs", "--dry-run",
        "--smoke", "--device", "--limit", "--times", "host", "digits", "bench.runs=1", "=", "a=b", "-1",
        "data.format=yolo", "lower.runtimes=[]", "budget.latency_ms=nan", "local:", "ssh://x", "", "--", "-h",
        "/dev/null", ".", "/",
    ]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=6))
def test_no_arguments_make_a_traceback(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    if "run" in words:
        words = [*words, "--dry-run"]  # what is fuzzed are the words, not the runs
    done = call(*words)
    assert done.code in (0, 2, 3, 4, 5), done.err
    assert "Traceback" not in done.err
    if done.code > 2:
        assert done.err.startswith("paredown: ") and len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
