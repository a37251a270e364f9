"""The races' planning: which are run, in which environments, with which words; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit
BENCH = Path(__file__).parents[2] / "bench"
GIVEN = {
    "zoo": ["ZOO"], "cifar": ["CIFAR"], "gguf": ["published=g.gguf"], "text": ["test.txt"],
    "program": ["a=a.pte", "b=b.tflite"], "weights": ["w"], "bundle": ["b.paredown"],
    "litertlm": ["m.litertlm"],
}  # fmt: skip


@pytest.fixture(scope="module")
def race() -> ModuleType:
    spec = importlib.util.spec_from_file_location("race", BENCH / "race.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def started(race: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started; each ends well, but for a bench named versus_ptq."""
    found: list[list[str]] = []

    def run(words: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        found.append(words)
        if "venv" in words:
            (Path(words[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(words, int("versus_ptq.py" in str(words)))

    monkeypatch.setattr(race.subprocess, "run", run)
    return found


def test_every_bench_is_there_and_has_the_options_that_it_is_given(race: ModuleType, tmp_path: Path) -> None:
    for name, each in race.RACES.items():
        text = (BENCH / each.bench[0]).read_text()
        _, words = race.commands(name, GIVEN, tmp_path, record=True)
        for word in words:
            assert not word.startswith("--") or word == "--record" or f'"{word}"' in text, (name, word)
        assert "add_option(parser)" in text


def test_a_peer_asked_from_outside_is_told_to_the_bench(race: ModuleType, tmp_path: Path) -> None:
    install, bench = race.commands("gemma", GIVEN, tmp_path, ["--threads", "2"], record=True)
    python = str(race.environment(race.RACES["gemma"], tmp_path) / "bin" / "python")
    assert install[:4] == [python, "-m", "pip", "install"] and install[-3:] == ["xllamacpp", "gguf", "numpy"]
    assert bench[0] == sys.executable and bench[bench.index("--peers") + 1] == python
    assert [bench[at + 1] for at, word in enumerate(bench) if word == "--program"] == GIVEN["program"]
    assert bench[bench.index("--tokenizer") + 1] == "g.gguf" and bench[-3:] == ["--threads", "2", "--record"]


def test_a_peer_of_our_process_has_us_behind_it(
    race: ModuleType, tmp_path: Path, started: list[list[str]]
) -> None:
    assert race.main(["torch-pruning-yolo", "--peers", str(tmp_path), "--", "--steps", "3"]) == 0
    folder = race.environment(race.RACES["torch-pruning-yolo"], tmp_path)
    venv, pip, bench = started
    assert venv[1:3] == ["-m", "venv"] and pip[-1] == "torch-pruning"
    assert bench[0] == pip[0] == str(folder / "bin" / "python") and bench[-3:] == ["yolo", "--steps", "3"]
    (path,) = folder.glob("lib/python*/site-packages/ours.pth")
    assert "site.addsitedir(" in path.read_text()


def test_an_environment_is_made_once(race: ModuleType, tmp_path: Path, started: list[list[str]]) -> None:
    words = ["torch-pruning", "torch-pruning-yolo", "--cifar", str(tmp_path), "--peers", str(tmp_path)]
    assert race.main(words) == race.main(words) == 0
    assert [words[1:3] == ["-m", "venv"] for words in started].count(True) == 1
    (race.environment(race.RACES["torch-pruning"], tmp_path) / race.DONE).write_text("another")
    race.main(words[:1] + words[2:])
    assert [words[1:3] == ["-m", "venv"] for words in started].count(True) == 2


def test_one_that_fails_does_not_stop_the_rest(
    race: ModuleType, tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ptq", "torch-pruning-yolo", "--zoo", str(tmp_path), "--peers", str(tmp_path)]
    assert race.main(words) == 1
    assert "yolo" in started[-1] and capsys.readouterr().err == "failed: ptq\n"


def test_without_names_those_are_run_that_can_be(
    race: ModuleType, tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert race.main(["--plan", "--peers", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert not started and not list(tmp_path.iterdir())
    assert "x86: " in told and "ptq: left out, it needs --zoo" in told
    assert "gemma: left out, it needs --program, --gguf" in told
    assert race.chosen([], GIVEN) == list(race.RACES)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ptq"], "race.py: ptq needs --zoo"),
        (["ludo"], "race.py: no race `ludo`; there are x86, gemma,"),
        (["ptq", "--zoo", "nowhere"], "race.py: ptq: there is no nowhere"),
        (["gemma", "--program", "a=b.pte", "--gguf", "c=d.gguf"], "gemma: there is no a=b.pte, no c=d.gguf"),
    ],
)
def test_what_cannot_be_run_is_one_line(race: ModuleType, words: list[str], line: str) -> None:
    with pytest.raises(SystemExit, match=line):
        race.main(words)
