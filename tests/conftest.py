"""Shared by all tests: where the data of the figures lies, and one thread for torch."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings
from tiny_project import Tiny, call, make_project

from paredown.targets.host.garbage import look_less_often

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Where files are distributed over processes, they keep the order that is given below."""
    look_less_often()
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A session of unit tests does not import files that have none, nor the other one files of nothing else.

    Imports are most of what collecting takes: half a minute of torch, ExecuTorch and transformers.
    """
    asked = config.option.markexpr
    if collection_path.suffix != ".py" or "unit" not in asked:
        return None
    text = collection_path.read_text()
    if asked == "unit":
        return collection_path.name.startswith("test_") and "mark.unit" not in text or None
    return asked.endswith("not unit") and "\npytestmark = pytest.mark.unit\n" in text or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, then those of few tests, which take seconds each.

    What is left for the end is many and short: all processes are at work until then.
    """
    count = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, count[item.path]))


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell's background is deaf to Ctrl-C, nohup to a closed terminal: not so what the tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and labelled images that the figures are made with; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("the shared data of the figures is not on this machine")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _operators_once() -> None:
    """torch lists all of its operators in every export, a sixth of what ExecuTorch's lowering takes."""
    import torch._export.utils as utils

    listed = utils._collect_all_valid_cia_ops_for_namespace
    utils._collect_all_valid_cia_ops_for_namespace = functools.cache(listed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Property tests take a sixth of their examples, others each time: an export takes a tenth of a second.

    With PAREDOWN_EXAMPLES=all they take all of them.
    """
    function, key = getattr(item, "function", None), "_hypothesis_internal_use_settings"
    whole = getattr(function, key, None)
    if whole is None or os.environ.get("PAREDOWN_EXAMPLES") == "all":
        return (yield)
    setattr(function, key, settings(whole, max_examples=max(3, whole.max_examples // 6)))
    try:
        return (yield)
    finally:
        setattr(function, key, whole)


@pytest.fixture(autouse=True)
def _unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test of the marker `unit` must not do: it would take seconds."""
    if request.node.get_closest_marker("unit") is None:
        return
    import torch

    def refused(what: str) -> Callable[..., NoReturn]:
        def refuse(*arguments: object, **options: object) -> NoReturn:
            pytest.fail(f"{what} in a test that is marked `unit`", pytrace=True)

        return refuse

    monkeypatch.setattr(subprocess.Popen, "__init__", refused("a process is started"))
    monkeypatch.setattr(torch.export, "export", refused("torch.export.export is called"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A small network of a user's own with one finished run; copy what you change."""
    folder = tmp_path_factory.mktemp("tiny")
    made = Tiny(folder, tmp_path_factory.mktemp("runs"))
    done = call("run", make_project(folder), "--runs", made.runs)
    assert done.code == 0, done.err
    return made
