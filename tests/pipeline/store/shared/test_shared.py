"""Artefacts that machines share: what one made the other takes, whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from shared_stores import Failing

from paredown.pipeline.store.event import Event
from paredown.pipeline.store.shared.objects import Objects
from paredown.pipeline.store.shared.shared import MARKER, SharedStore, open_shared
from paredown.pipeline.store.shared.turn import Pace
from paredown.pipeline.store.stage import Stage, run_stage
from paredown.pipeline.store.store import MANIFEST, Store
from paredown.targets.errors import DeviceError, InputError

SAME = 1000 * b"the same in all"
QUICK = Pace(beat=0.05, stale=1.0, poll=(0.02, 0.05))


@dataclass(frozen=True)
class Params:
    number: int = 1


class Machine:
    """A machine with a store of its own."""

    def __init__(self, root: Path, url: str | None, strict: bool = True) -> None:
        self.lines: list[str] = []
        self.built = 0
        shared = None if url is None else open_shared(url, self.lines.append, strict=strict, pace=QUICK)
        self.store = Store(root, shared)
        self.events: list[Event] = []

    @property
    def shared(self) -> SharedStore:
        assert isinstance(self.store.shared, SharedStore)
        return self.store.shared

    def stage(self, number: int = 1, takes: float = 0.0) -> Stage:
        def build(out: Path, inputs: object) -> None:
            self.built += 1
            time.sleep(takes)
            (out / "sub").mkdir()
            (out / "a").write_bytes(b"of %d" % number)
            (out / "sub" / "b").write_bytes(SAME)
            (out / "empty").write_bytes(b"")

        return Stage("made", 1, Params(number), {}, build)

    def run(self, number: int = 1, takes: float = 0.0) -> tuple[str, dict[str, bytes]]:
        made = run_stage(self.store, self.stage(number, takes), self.events.append)
        return made.found, {path.name: path.read_bytes() for path in made.path.rglob("*") if path.is_file()}


def test_what_one_machine_made_the_other_takes_bit_for_bit(url, tmp_path):
    one, two, alone = (Machine(tmp_path / name, u) for name, u in (("1", url), ("2", url), ("3", None)))
    assert one.run()[0] == "missing"
    found, files = two.run()
    assert found == "shared" and two.built == 0 and two.events[-1].state == "reused"
    assert files == one.run()[1] == alone.run()[1]
    assert two.run()[0] == "present"
    assert one.lines == two.lines == []


def test_equal_files_are_uploaded_once(url, tmp_path):
    one = Machine(tmp_path / "1", url)
    one.run(1)
    before = one.shared.objects.moved["out"]
    one.run(2)
    manifest = (one.store.root / one.stage(2).key / MANIFEST).stat().st_size
    sent = one.shared.objects.moved["out"] - before
    assert manifest + len(b"of 2") <= sent < manifest + len(b"of 2") + len(SAME)


def test_what_was_made_before_there_was_a_shared_store_is_given_too(url, tmp_path):
    Machine(tmp_path / "1", None).run()
    assert Machine(tmp_path / "1", url).run()[0] == "present"
    assert Machine(tmp_path / "2", url).run()[0] == "shared"


def test_an_upload_that_was_cut_off_is_no_artefact(url, tmp_path):
    one, two = Machine(tmp_path / "1", url), Machine(tmp_path / "2", url)
    key = one.stage().key
    one.run()
    one.shared.objects.remove(f"artefacts/{key[:2]}/{key}.json")  # killed before its last file
    assert two.run()[0] == "missing" and two.built == 1 and two.lines == []
    assert Machine(tmp_path / "3", url).run()[0] == "shared"


@pytest.mark.parametrize("harm", ["other", "short", "gone", "manifest", "outside", "another"])
def test_what_is_damaged_there_is_built_again_and_mended(tmp_path, harm):
    url = str(tmp_path / "shared")
    one = Machine(tmp_path / "1", url)
    key = one.stage().key
    one.run()
    objects = Objects(url)
    name = f"artefacts/{key[:2]}/{key}.json"
    manifest = json.loads(objects.read(name))
    digest = manifest["files"]["a"]["sha256"]
    blob = f"files/{digest[:2]}/{digest}"
    if harm == "gone":
        objects.remove(blob)
    elif harm in ("other", "short"):
        objects.write(blob, b"of 2" if harm == "other" else b"of")
    elif harm == "manifest":
        objects.write(name, b"{")
    else:
        if harm == "outside":
            manifest["files"]["../../outside"] = manifest["files"].pop("a")
        else:
            manifest["key"] = 64 * "0"
        objects.write(name, json.dumps(manifest).encode())
    two = Machine(tmp_path / "2", url)
    found, files = two.run()
    assert found == "missing" and two.built == 1 and files["a"] == b"of 1"
    assert len(two.lines) == 1 and f"artefact {key[:12]} " in two.lines[0] and "made again" in two.lines[0]
    assert not (tmp_path / "outside").exists()
    three = Machine(tmp_path / "3", url)
    assert three.run()[0] == "shared" and three.lines == []


def test_two_machines_that_need_the_same_at_once_build_it_once(url, tmp_path):
    one, two = Machine(tmp_path / "1", url), Machine(tmp_path / "2", url)
    thread = threading.Thread(target=one.run, args=(1, 1.0))
    thread.start()
    while one.built == 0:
        time.sleep(0.01)
    assert two.run()[0] == "shared"
    thread.join()
    assert (one.built, two.built) == (1, 0)
    assert any("builds it, waiting" in event.detail for event in two.events)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "full"), "no space is left; free some space there; nothing more is written"),
        (
            PermissionError("denied"),
            "access is denied (denied); look at the keys and rights; nothing",
        ),
    ],
)
def test_a_store_that_takes_nothing_is_read_on_and_said_once(broken, tmp_path, error, said):
    Machine(tmp_path / "1", broken).run(1)
    two = Machine(tmp_path / "2", broken)
    Failing.writes = error
    assert [two.run(number)[0] for number in (2, 3, 1)] == ["missing", "missing", "shared"]
    assert len(two.lines) == 1 and said in two.lines[0]
    three = Machine(tmp_path / "3", broken)
    assert [three.run(number)[0] for number in (2, 1)] == ["missing", "shared"]


def test_a_store_that_goes_away_is_done_without(broken, tmp_path):
    one = Machine(tmp_path / "1", broken)
    one.run(1)
    Failing.writes = Failing.reads = ConnectionError("no route")
    two = Machine(tmp_path / "2", broken, strict=False)
    for machine in (one, two):
        assert machine.run(2)[0] == "missing" and machine.run(3)[0] == "missing"
        assert len(machine.lines) == 1
        assert machine.lines[0].endswith("whether the server runs; this run goes on without it")


def test_at_the_start_a_store_that_cannot_be_read_is_an_error(broken, tmp_path):
    Failing.reads = Failing.writes = ConnectionError("no route")
    with pytest.raises(DeviceError, match=r"--store failing://.*: cannot be reached \(no route\); look at"):
        open_shared(broken, pytest.fail)
    Failing.reads = None
    Failing.writes = FileNotFoundError("no")
    with pytest.raises(InputError, match="there is no such bucket or folder"):
        open_shared(broken, pytest.fail)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / MARKER).write_text('{"format": 2}')
    with pytest.raises(InputError, match="is no store of this version; give an empty folder"):
        open_shared(str(tmp_path), pytest.fail)


def test_a_full_disk_here_is_no_fault_of_the_store(url, tmp_path, monkeypatch):
    Machine(tmp_path / "1", url).run()
    two = Machine(tmp_path / "2", url)

    def full(name: str, path: Path) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(two.shared.objects, "read_file", full)
    with pytest.raises(InputError, match="the disk is full"):
        two.run()
    assert two.lines == []
