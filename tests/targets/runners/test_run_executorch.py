"""The ExecuTorch runner, built for this machine, and the building itself."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata

import pytest
from needs import needs
from runner_contract import ROOT, RunnerContract

from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import cache_folder
from paredown.targets.runners import executorch_build


@pytest.fixture(scope="module")
def built():
    needs("g++", "g++")
    return executorch_build.build("native", cache_folder())


class TestRunner(RunnerContract):
    name, other = "executorch", "litert"

    @pytest.fixture
    def runner(self, built):
        return (str(built / "run"),)

    def test_the_version_is_that_of_the_wheel(self, runner, folder):
        assert self.report(runner, folder)["version"] == metadata.version("executorch")

    def test_the_runtimes_own_complaint_is_part_of_the_line(self, runner, folder):
        data = (folder / "model").read_bytes()
        (folder / "model").write_bytes(data[:-100])
        done = self.call(runner, folder)
        assert done.returncode == 4
        assert "File size is too small" in done.stderr


def test_it_links_no_torch(built):
    linked = subprocess.run(["ldd", built / "run"], capture_output=True, text=True, check=True).stdout
    assert "libexecutorch_backend_xnnpack.so" in linked and "not found" not in linked
    assert "libtorch" not in linked and "libc10" not in linked


def test_it_is_built_once(built, monkeypatch):
    monkeypatch.setattr(executorch_build, "_compile", lambda *_: pytest.fail("built again"))
    assert executorch_build.build("native", cache_folder()) == built


def test_another_source_is_another_build(built, tmp_path, monkeypatch):
    source = tmp_path / "run.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(executorch_build, "SOURCE", source)
    with pytest.raises(DeviceError, match=r"building the ExecuTorch runner failed"):
        executorch_build.build("native", tmp_path)
    assert list((tmp_path / "executorch").iterdir()) == []


@pytest.mark.parametrize(
    ("arch", "package"), [("native", "g++"), ("aarch64", "g++-aarch64-linux-gnu")], ids=["native", "aarch64"]
)
def test_a_missing_compiler_is_named_with_its_package(arch, package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(executorch_build.platform, "machine", lambda: "x86_64")
    with pytest.raises(DeviceError, match=rf"is not installed; apt-get install {re.escape(package)}$"):
        executorch_build.build(arch, tmp_path)


@pytest.mark.parametrize("listing", ["runners/executorch/wheels.txt", "emulated/wheels.txt"])
def test_boards_get_the_versions_that_this_machine_has(listing):
    lines = (ROOT / "targets" / listing).read_text().splitlines()
    pins = [line.split(" ")[0] for line in lines if not line.startswith("#")]
    assert pins and set(pins) <= set((ROOT / "constraints.txt").read_text().split())
