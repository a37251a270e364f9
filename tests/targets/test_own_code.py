"""Our own source files are found in a clone, in an editable install, and where a wheel was unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from paredown.targets.own_code import ROOMS, own_code

ROOT = Path(__file__).parents[2]
NAMES = ("__init__.py", "targets/errors.py", "targets/runners/*.py", "apps/detector/device/**/*.py")
DATA = (
    "py.typed", "targets/cards/host.toml", "targets/runners/executorch/run.cpp",
    "targets/emulated/wheels.txt",
    "targets/emulated/adbd_socket.c", "apps/detector/recipes/digits.toml",
    "apps/detector/darknet/cfgs/yolov2-nano.cfg", "apps/detector/web/decode.js",
    "apps/detector/web/index.html", "apps/chat/recipes/gemma3-tiny.toml", "apps/chat/tiny/model.safetensors",
)  # fmt: skip
#: Run where a wheel lies: what `own_code` finds there, one file a line.
ASKED = """
import sys
from paredown.targets.own_code import own_code
for name, path in own_code(sys.argv[1:]).items():
    print(name, path)
"""


def asked(folder: Path, *names: str) -> dict[str, Path]:
    """What a Python finds whose only paredown is the one in a folder."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASKED, *names], cwd=folder.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pairs = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: Path(path) for name, path in pairs}


def test_a_clone_has_them_under_the_package_s_name() -> None:
    found = own_code(NAMES)
    assert list(found) == sorted(found) and len(found) > 20
    assert found["paredown/targets/errors.py"] == ROOMS / "targets" / "errors.py"
    assert found["paredown/__init__.py"].samefile(ROOT / "paredown" / "__init__.py")
    for name, path in found.items():
        assert path.is_file() and name.startswith("paredown/") and path.name == Path(name).name
        assert path.samefile(ROOT / name)  # the links lead to the rooms
    device = {name for name in found if "/device/" in name}
    there = (ROOT / "apps" / "detector" / "device").rglob("*.py")
    assert device == {f"paredown/{path.relative_to(ROOT).as_posix()}" for path in there}


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="paredown has no targets/nothing.py"):
        own_code(["targets/errors.py", "targets/nothing.py"])
    with pytest.raises(FileNotFoundError, match=r"paredown has no targets/\*.nothing"):
        own_code(["targets/*.nothing"])
    with pytest.raises(FileNotFoundError, match="paredown has no targets"):
        own_code(["targets"])  # a folder is no file
    assert own_code([]) == {}


def test_an_editable_install_has_them_too(tmp_path: Path) -> None:
    """A finder that maps the package to the clone's folder of links, as setuptools' own does."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"""
import importlib.machinery, importlib.util, sys

class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "paredown":
            place = {str(ROOT / "paredown")!r}
            return importlib.util.spec_from_file_location(
                name, place + "/__init__.py", submodule_search_locations=[place]
            )
        return None

sys.meta_path.insert(0, Editable)
""")
    found = asked(tmp_path / "site", *NAMES)
    assert found.keys() == own_code(NAMES).keys()
    assert all(path.read_bytes() == (ROOT / name).read_bytes() for name, path in found.items())


# -- wheels --------------------------------------------------------------------------------------------------


def sources(folder: Path, links: bool) -> Path:
    """A copy of what git has; without links as an archive that was unpacked on another system has them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().strip("\0").split("\0"):
        source, target = ROOT / name, folder / name
        if name.startswith(("tests/", "docs/")) or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and links:
            target.symlink_to(source.readlink())
        elif source.is_symlink():
            target.write_text(str(source.readlink()))
        else:
            shutil.copy(source, target)
    return folder


def built(folder: Path, kind: str) -> Path:
    """The sdist or wheel that the build backend makes of sources."""
    code = (
        "import sys; from setuptools import build_meta; "
        f"build_meta.build_{kind}(sys.argv[1])"
    )  # fmt: skip
    out = folder.parent / f"{folder.name}-{kind}"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, out], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools")
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("the wheel is built of what git has")
    return built(sources(tmp_path_factory.mktemp("wheel") / "clone", links=True), "wheel")


@pytest.mark.slow
@pytest.mark.sample
def test_a_wheel_is_one_package_with_all_its_data(wheel: Path, tmp_path: Path) -> None:
    files = contents(wheel)
    assert {name.partition("/")[0] for name in files} == {"paredown", "paredown-0.1.0.dist-info"}
    assert {f"paredown/{name}" for name in DATA} <= files.keys()
    ours = [path.relative_to(ROOT) for room in ("apps", "calibration", "pipeline", "targets")
            for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    assert len(ours) > 200 and {f"paredown/{path.as_posix()}" for path in ours} <= files.keys()
    for name, data in files.items():
        if name.startswith("paredown/"):
            assert data == (ROOT / name).read_bytes(), name
    shipped = {name for name in files if name.endswith(".safetensors")}
    assert len(shipped) == sum(1 for room in ("apps",) for _ in (ROOT / room).rglob("*.safetensors"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    found = asked(tmp_path / "site", *NAMES)
    assert found.keys() == own_code(NAMES).keys()
    assert all(path.is_relative_to(tmp_path / "site" / "paredown") for path in found.values())


@pytest.mark.slow
@pytest.mark.sample
def test_sources_without_links_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    flat = sources(tmp_path / "flat", links=False)
    assert (flat / "paredown" / "apps").read_text() == "../apps"
    files, expected = contents(built(flat, "wheel")), contents(wheel)
    assert files.keys() == expected.keys()
    assert all(files[name] == expected[name] for name in files if not name.endswith("/RECORD"))


@pytest.mark.slow
@pytest.mark.sample
def test_an_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = built(sources(tmp_path / "clone", links=True), "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    files, expected = contents(built(folder, "wheel")), contents(wheel)
    assert files.keys() == expected.keys()
    assert all(files[name] == expected[name] for name in files if name.startswith("paredown/"))
