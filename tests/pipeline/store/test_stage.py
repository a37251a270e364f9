from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.pipeline.store.ledger import Ledger, draw, explain
from paredown.pipeline.store.stage import OPTIONAL, Stage, params_dict, plan, run_stage
from paredown.pipeline.store.store import MANIFEST, Store
from paredown.targets.errors import InputError

DATA = hashlib.sha256(b"images").hexdigest()


@dataclass(frozen=True)
class Inner:
    bits: int = 8


@dataclass(frozen=True)
class Params:
    observer: str = "minmax"
    images: int = 128
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()


def stage(name="calibrate", version=1, params=None, inputs=None, text="out") -> Stage:
    def build(folder: Path, inputs) -> None:
        (folder / "out.txt").write_text(text)

    return Stage(name, version, params or Params(), inputs or {"data": DATA}, build)


def tell(lines):
    return lambda event: lines.append(event.line())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / ".store")


def test_the_key_is_the_sha256_of_the_canonical_json():
    # written out by hand: sorted keys, no spaces
    text = (
        '{"inputs":{"data":"' + DATA + '"},"params":{"images":128,"inner":{"bits":8},"observer":"minmax",'
        '"sizes":[1,2]},"stage":"calibrate","version":1}'
    )
    assert stage().key == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_depends_on_everything_but_the_code_and_the_order_of_inputs():
    other = hashlib.sha256(b"other").hexdigest()
    keys = [
        stage().key,
        stage(name="lower").key,
        stage(version=2).key,
        stage(params=Params(images=64)).key,
        stage(params=Params(inner=Inner(4))).key,
        stage(inputs={"data": other}).key,
        stage(inputs={"data": DATA, "weights": other}).key,
        stage(inputs={"data": other, "weights": DATA}).key,
    ]
    assert len(set(keys)) == len(keys)
    assert stage(text="something else").key == stage().key
    assert stage(inputs={"weights": other, "data": DATA}).key == keys[6]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Anything:
    value: object


@given(json_values, json_values)
def test_keys_are_equal_exactly_where_the_json_of_the_parameters_is(one, two):
    first, second = stage(params=Anything(one)), stage(params=Anything(two))
    assert first.key == stage(params=Anything(one)).key
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (first.key == second.key) == same


@pytest.mark.parametrize("value", [Path("/data"), {1, 2}, b"x", float("nan"), float("inf"), object()])
def test_parameters_that_are_not_data_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        _ = stage(params=Anything(value)).key


def test_parameters_are_a_frozen_dataclass():
    @dataclass
    class Loose:
        value: int = 1

    for bad in (Loose(), {"value": 1}, Params, 3):
        with pytest.raises(TypeError):
            params_dict(bad)
    with pytest.raises(ValueError, match="input `data` is not a key"):
        _ = stage(inputs={"data": "images/train"}).key


def copy_of(folder: Path, out: Path) -> None:
    (out / "out.txt").write_bytes((folder / "out.txt").read_bytes())


def test_a_stage_runs_once_and_is_reused_then(store):
    lines = []
    first = run_stage(store, stage(), tell(lines))
    second = run_stage(store, stage(text="never written"), tell(lines))
    assert (first.reused, second.reused) == (False, True)
    assert (first.found, second.found) == ("missing", "present")
    assert first.path == second.path and (second.path / "out.txt").read_text() == "out"
    assert lines[0] == "calibrate: running" and lines[-1] == "calibrate: reused"
    assert json.loads((first.path / MANIFEST).read_text())["meta"] == stage().recipe()


def test_two_stores_hold_the_same_bytes(store, tmp_path):
    other = run_stage(Store(tmp_path / "other"), stage())
    mine = run_stage(store, stage())
    for name in ("out.txt", MANIFEST):
        assert (mine.path / name).read_bytes() == (other.path / name).read_bytes()


def test_a_flipped_bit_that_keeps_its_time_is_found_before_it_is_read(tmp_path):
    """As a disk's own fault: size and time say nothing, a run of another day hashes what it reads."""
    first = stage("a", text="before")
    then = Stage("b", 1, Params(), {"a": first}, lambda out, given: copy_of(given["a"], out))
    for each in (first, then):
        run_stage(Store(tmp_path), each)
    path = run_stage(Store(tmp_path), first).path / "out.txt"
    time_ns = path.stat().st_mtime_ns
    path.write_text("Before")
    os.utime(path, ns=(time_ns, time_ns))
    lines: list[str] = []
    store = Store(tmp_path)
    again = run_stage(store, first, tell(lines))
    assert not again.reused and (again.path / "out.txt").read_text() == "before"
    assert lines[0] == "a: running (damaged: out.txt has other bytes than were published)"
    assert run_stage(store, then).reused  # it is made of what the key says


def test_a_damaged_artefact_is_run_again_and_said_so(store):
    lines = []
    path = run_stage(store, stage()).path
    (path / "out.txt").write_text("ou")
    again = run_stage(store, stage(), tell(lines))
    assert not again.reused and (path / "out.txt").read_text() == "out"
    assert lines[0] == "calibrate: running (damaged: out.txt has 2 bytes instead of 3)"


class Run:
    """A run directory whose stages are calibrate -> lower, run again and again."""

    def __init__(self, store, run_dir):
        self.store, self.run_dir = store, run_dir

    def __call__(self, params=None, version=1, data=DATA, stop=False, lower_params=None):
        ledger = Ledger.start(self.run_dir)
        first = run_stage(self.store, stage(params=params, inputs={"data": data}), ledger=ledger)
        if not stop:
            second = stage("lower", version, lower_params or Params(), {"ranges": first.key})
            run_stage(self.store, second, ledger=ledger)
        return explain(*Ledger.read(self.run_dir))


@pytest.fixture
def run(store, tmp_path):
    return Run(store, tmp_path / "runs" / "digits" / "host")


def test_the_first_run_and_an_unchanged_one(run):
    assert run() == ["calibrate: ran: first run", "lower: ran: first run"]
    assert run() == ["calibrate: reused: nothing changed", "lower: reused: nothing changed"]
    assert run() == ["calibrate: reused: nothing changed", "lower: reused: nothing changed"]


def test_a_changed_parameter_and_what_follows_from_it(run):
    run()
    assert run(Params(images=64, inner=Inner(4))) == [
        "calibrate: ran: parameter images changed from 128 to 64; parameter inner.bits changed from 8 to 4",
        "lower: ran: input ranges changed because stage calibrate ran",
    ]
    # and back: both are still in the store
    assert run() == [
        "calibrate: reused: parameter images changed from 64 to 128; parameter inner.bits changed from 4 to 8"
        ": that artefact was in the store",
        "lower: reused: input ranges changed because stage calibrate gave another artefact"
        ": that artefact was in the store",
    ]


def test_a_changed_version_input_or_set_of_parameters(run):
    run()
    assert run(version=2)[1] == "lower: ran: stage version 1 became 2"
    other = hashlib.sha256(b"other images").hexdigest()
    assert run(data=other, version=2)[0] == "calibrate: ran: input data has other content"

    @dataclass(frozen=True)
    class Grown:
        observer: str = "minmax"
        seed: int = 0

    line = run(data=other, version=2, lower_params=Grown())[1]
    assert "new parameter seed = 0" in line and "parameter images (was 128) is gone" in line


def test_a_missing_and_a_damaged_artefact(run, store):
    run()
    key = json.loads((run.run_dir / "stages.json").read_text())[1]["key"]
    (store.root / key / "out.txt").write_text("x")
    assert run() == [
        "calibrate: reused: nothing changed",
        "lower: ran: its artefact was damaged: out.txt has 1 bytes instead of 3",
    ]
    for file in (store.root / key).iterdir():
        file.unlink()
    (store.root / key).rmdir()
    assert run()[1] == "lower: ran: its artefact was missing"


def test_another_runs_artefact_is_reused(run, store, tmp_path):
    run()
    assert Run(store, tmp_path / "elsewhere")() == [
        "calibrate: reused: another run had made the same artefact",
        "lower: reused: another run had made the same artefact",
    ]


def test_a_run_that_stopped_half_way_is_resumed(run):
    run()
    run(Params(images=64), stop=True)
    assert run(Params(images=64)) == [
        "calibrate: reused: nothing changed",
        "lower: ran: input ranges changed because stage calibrate gave another artefact",
    ]


def test_the_ledger_file_is_plain_json(run):
    run()
    document = json.loads((run.run_dir / "stages.json").read_text())
    assert [set(entry) for entry in document] == [
        {"name", "key", "version", "params", "inputs", "outcome", "found", "seconds"}
    ] * 2
    assert document[0]["params"] == dataclasses.asdict(Params()) | {"sizes": [1, 2]}
    assert document[1]["inputs"] == {"ranges": document[0]["key"]}


def test_two_stages_of_one_name_are_refused(store, tmp_path):
    ledger = Ledger.start(tmp_path)
    run_stage(store, stage(), ledger=ledger)
    run_stage(store, stage(), ledger=ledger)  # of a second plan in the same run: it is the very same
    with pytest.raises(ValueError, match="two stages of one run are called calibrate"):
        run_stage(store, stage(version=2), ledger=ledger)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"3",
        b'[{"name": "x"}]',
        b"\xff",
        b"null",
        b'[{"name":1,"key":"k","version":1,"params":{},"inputs":{},"outcome":"built","found":"","seconds":1}]',
        b'[{"name":"n","key":"k","version":1,"params":[],"inputs":{},"outcome":"built","found":"","seconds":1}]',
        b'[{"name":"n","key":"k","version":1,"params":{},"inputs":[1],"outcome":"built","found":"","seconds":1}]',
    ],
)
def test_a_broken_ledger_is_an_error_to_read_and_no_obstacle_to_a_new_run(run, content):
    run()
    (run.run_dir / "stages.json").write_bytes(content)
    with pytest.raises(InputError, match="cannot read the ledger") as raised:
        Ledger.read(run.run_dir)
    assert "\n" not in str(raised.value)
    assert all("reused" in line for line in run())


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(InputError, match="is no run directory"):
        Ledger.read(tmp_path)


# -- plans ---------------------------------------------------------------------------------------------------


def made_from(name: str, **sources: Stage | str) -> Stage:
    """A stage whose file is the names of what it was made from."""

    def build(folder: Path, inputs) -> None:
        (folder / "out.txt").write_text(
            f"{name}({','.join((p / 'out.txt').read_text() for p in inputs.values())})"
        )

    return Stage(name, 1, Params(), sources or {"data": DATA}, build)


def test_a_plan_has_each_stage_once_and_after_its_inputs():
    a, b = made_from("a"), made_from("b")
    c = made_from("c", left=b, right=a)
    d = made_from("d", left=a, right=c)
    assert [stage.name for stage in plan([d, c])] == ["a", "b", "c", "d"]
    assert [stage.name for stage in plan([c, d])] == ["b", "a", "c", "d"]
    assert plan([]) == ()


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=12))
def test_any_plan_is_in_a_running_order(links):
    made: list[Stage] = []
    for index, chosen in enumerate(links):
        made.append(made_from(f"s{index}", **{f"r{i}": made[i] for i in chosen if i < index}))
    order = [stage.name for stage in plan([made[-1]])]
    places = {name: place for place, name in enumerate(order)}
    assert order[-1] == made[-1].name and len(order) == len(places)
    for stage in made:
        if stage.name in places:
            assert all(places[source.name] < places[stage.name] for source in stage.sources.values())


def test_two_stages_of_one_name_are_no_plan():
    with pytest.raises(ValueError, match="two stages of one run are called a"):
        plan([made_from("a"), made_from("a", data=hashlib.sha256(b"other").hexdigest())])


def test_a_build_sees_the_folders_of_what_it_declares(store):
    a = made_from("a")
    b = made_from("b", source=a, data=DATA)
    for each in plan([b]):
        path = run_stage(store, each).path
    assert (path / "out.txt").read_text() == "b(a())"


def test_what_is_read_beside_the_inputs_must_be_what_they_are_made_from(store):
    a, other = made_from("a"), made_from("other", data=hashlib.sha256(b"other").hexdigest())
    b = made_from("b", source=a)
    seen = []

    def build(folder: Path, inputs) -> None:
        seen.extend(sorted(inputs))
        (folder / "out.txt").write_text("c")

    c = Stage("c", 1, Params(), {"source": b}, build, {"first": a})
    assert c.key == Stage("c", 1, Params(), {"source": b}, build).key
    for each in plan([c]):
        run_stage(store, each)
    assert seen == ["first", "source"]
    with pytest.raises(ValueError, match="reads `x`, which none of its inputs is made from"):
        Stage("c", 1, Params(), {"source": b}, build, {"x": other})


def test_a_missing_input_is_named(store):
    with pytest.raises(InputError, match="the artefact of stage a was removed or damaged meanwhile"):
        run_stage(store, made_from("b", source=made_from("a")))


@dataclass(frozen=True)
class Sometimes:
    runtime: str
    context: int | None = dataclasses.field(default=None, metadata=OPTIONAL)
    limit: int | None = None


def test_an_optional_parameter_is_no_part_of_the_key_where_it_is_none():
    assert params_dict(Sometimes("litert")) == {"runtime": "litert", "limit": None}
    assert params_dict(Sometimes("litert", 0)) == {"runtime": "litert", "context": 0, "limit": None}


def test_a_ledger_is_drawn(store, tmp_path):
    ledger = Ledger.start(tmp_path / "run")
    a = made_from("a")
    for each in plan([made_from("c", left=made_from("b", source=a), right=a)]):
        run_stage(store, each, ledger=ledger)
    assert draw(Ledger.read(tmp_path / "run")[0]) == ["a <- [data]", "    b <- a", "        c <- b, a"]
