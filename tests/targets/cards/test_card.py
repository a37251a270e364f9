from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.targets.cards.card import CARDS, Budget, Target, list_cards, load_card
from paredown.targets.errors import DeviceError, InputError, ParedownError, UsageError
from paredown.targets.host.host import (
    Machine,
    cpu_name,
    int8_instructions,
    package_version,
    package_versions,
    this_machine,
)

BOARDS = {"raspberry-pi-3": "cortex-a53", "raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}


def test_every_card_loads_under_its_file_name():
    cards = list_cards()
    assert [card.name for card in cards] == [path.stem for path in sorted(CARDS.glob("*.toml"))]
    for card in cards:
        assert card == load_card(card.name) == load_card(CARDS / f"{card.name}.toml")


@pytest.mark.parametrize("name", ["host", *BOARDS, "android-arm64"])
def test_machines_with_an_operating_system_have_both_runtimes_and_pay_in_storage(name):
    card = load_card(name)
    extra = {"onnxruntime", "openvino"} if name == "host" else set()
    assert set(card.runtimes) == {"executorch", "litert"} | extra and card.microcontroller is None
    for runtime in card.runtimes.values():
        assert "int8" in runtime.dtypes and "conv2d" in runtime.ops and runtime.edition == "full"
        # measured: neither pays in time on either runtime
        assert runtime.pays.zeros.buys == runtime.pays.low_bits.buys == "storage"


@pytest.mark.parametrize(("name", "cpu"), BOARDS.items())
def test_boards_are_the_emulated_cores_and_say_how_to_be_reached(name, cpu):
    card = load_card(name)
    assert (card.cpu, card.arch, card.cores) == (cpu, "aarch64", 4)
    assert card.emulate is not None and card.emulate.cpu == cpu
    assert f"--device emulated:{name}" in card.emulate.text and "--device ssh://" in card.reach.text
    card.require_reachable()


@pytest.mark.parametrize("name", ["cortex-m4", "ethos-u85-256", "browser", "iphone"])
def test_where_no_transport_leads_the_line_says_what_to_do_instead(name):
    card = load_card(name)
    with pytest.raises(DeviceError, match=f"target {name}: no transport leads there: ") as raised:
        card.require_reachable()
    assert card.reach.text in str(raised.value) and raised.value.exit_code == 5


def test_what_can_only_be_exported_has_no_way_there():
    exported = {card.name for card in list_cards() if card.export_only}
    assert exported == {"android-vulkan", "iphone"}
    for name in exported:
        card = load_card(name)
        assert card.reach.kind == "none" and card.emulate is None and "litert" not in card.runtimes


def test_an_npu_belongs_to_a_microcontroller_and_executes_int8():
    for card in list_cards():
        on_npu = [name for name, runtime in card.runtimes.items() if runtime.delegate == "ethos-u"]
        assert bool(on_npu) == (card.npu is not None)
        for name in on_npu:
            assert card.microcontroller is not None and card.runtimes[name].dtypes == ("int8",)
        for runtime in card.runtimes.values():
            assert (runtime.edition == "micro") == (card.microcontroller is not None)


def test_the_host_is_reachable_and_native():
    host = load_card("host")
    host.require_reachable()
    assert (host.arch, host.memory_mib) == ("native", None)


def test_an_unknown_target_lists_all_and_the_nearest():
    with pytest.raises(InputError) as raised:
        load_card("rasberry-pi-5")
    line = str(raised.value)
    assert "did you mean `raspberry-pi-5`?" in line and raised.value.exit_code == 4
    assert all(name in line for name in ("host", *BOARDS))
    with pytest.raises(InputError) as raised:
        load_card("")
    assert "did you mean" not in str(raised.value)


def test_an_unknown_runtime_lists_those_there_are():
    assert load_card("host").runtime("litert").delegate == "xnnpack"
    with pytest.raises(UsageError, match="no runtime `onnx`.*executorch, litert"):
        load_card("host").runtime("onnx")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "conv = 16",
            "conv = 0",
            "`channel_multiple.conv = 0` is not accepted: .*greater than or equal to 1",
        ),
        ("conv = 16", 'conv = "16"', '`channel_multiple.conv = "16"` is not accepted: .*valid integer'),
        ("conv = 16", "conv = true", "`channel_multiple.conv = true` is not accepted"),
        ("conv = 16\n", "", "`channel_multiple.conv` is missing"),
        ("conv = 16", "conf = 16", "`channel_multiple.conv` is missing"),
        (
            "[reach]",
            '[npu]\naccelerator = "u55"\nsystem = "s"\nmemory_mode = "m"\n[reach]',
            '`npu.accelerator = "u55"` is not accepted',
        ),
        ('kind = "ssh"', 'kind = "usb"', "`reach.kind = \"usb\"` .*'local', 'ssh', 'adb' or 'none'"),
        ('arch = "aarch64"', 'arch = "aarch64"\nspeed = 3', "unknown key `speed`"),
        ("[runtimes.litert]", "[runtimes.onnx]", "runtimes.onnx"),
        ('buys = "storage"', 'buys = "money"', "'time', 'storage' or 'nothing'"),
    ],
)
def test_a_broken_card_names_file_line_and_key(tmp_path, old, new, expected):
    text = (CARDS / "raspberry-pi-5.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=expected) as raised:
        load_card(path)
    assert str(raised.value).startswith(str(path)) and raised.value.exit_code == 4
    assert "\n" not in str(raised.value)


def test_the_line_number_is_that_of_the_key(tmp_path):
    lines = (CARDS / "host.toml").read_text().splitlines()
    at = lines.index("depthwise = 16")
    lines[at] = "depthwise = -1"
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"mine.toml:{at + 1}: "):
        load_card(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"name = ", "not valid TOML"),
        (b"", "is missing"),
        (b"name = 1979-05-27", "name"),
    ],
)
def test_a_file_that_is_no_card(tmp_path, content, expected):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        load_card(str(path))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such target card file"):
        load_card("./nowhere.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        load_card(tmp_path / "folder.toml")
    with pytest.raises(InputError):
        load_card("a\0b.toml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40), at=st.integers(0, 10**6), cut=st.integers(0, 40))
def test_mangled_cards_load_or_fail_with_one_line(tmp_path, data, at, cut):
    original = (CARDS / "host.toml").read_bytes()
    at %= len(original)
    path = tmp_path / "mine.toml"
    path.write_bytes(original[:at] + data + original[at + cut :])
    try:
        assert isinstance(load_card(path), Target)
    except ParedownError as error:
        assert isinstance(error, InputError) and "\n" not in str(error)


def test_a_recipes_budget_goes_over_the_cards():
    card, recipe = Budget(latency_ms=5, bundle_kib=100), Budget(latency_ms=2.5)
    assert recipe.over(card).limits() == {"latency_ms": 2.5, "bundle_kib": 100}
    assert Budget().over(Budget()).limits() == {}


def test_cards_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_card("host").name = "other"


def test_this_machine_agrees_with_the_system():
    machine = this_machine()
    unbound = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    cores = int(subprocess.run(["nproc"], env=unbound, capture_output=True, text=True, check=True).stdout)
    assert machine.cores == cores
    assert (
        machine.arch
        == subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    )
    assert machine.cpu and machine.memory_mib > 0
    assert Machine.from_dict(json.loads(json.dumps(machine.to_dict()))) == machine
    assert machine.cpu in machine.line() and "\n" not in machine.line()


def test_versions_are_the_installed_ones():
    numpy = pytest.importorskip("numpy")
    assert dict(package_versions())["numpy"] == numpy.__version__
    assert package_versions(("no-such-package-of-ours",)) == ()
    assert package_version("no-such-package-of-ours") == "not installed"


@pytest.mark.parametrize("found", ["2.13.0+cpu", "2.13.0+cu130", "2.13.0"])
def test_a_version_is_that_of_every_build(monkeypatch: pytest.MonkeyPatch, found: str):
    monkeypatch.setattr("paredown.targets.host.host.metadata.version", lambda package: found)
    assert package_version("torch") == "2.13.0"


def test_int8_instructions_are_named_and_of_this_architecture_alone():
    intel = "flags\t\t: fpu avx2 amx_int8 avx512_vnni\n"
    assert int8_instructions(intel, "x86_64") == "avx2 avx512_vnni amx_int8"
    assert int8_instructions(intel, "aarch64") == ""  # an emulated board shows the machine below
    assert int8_instructions("Features\t: fp asimd asimddp i8mm\n", "aarch64") == "asimd asimddp i8mm"


@pytest.mark.parametrize(
    ("arch", "instructions", "saturates"),
    [("x86_64", "avx2", True), ("x86_64", "avx2 avx_vnni", False), ("x86_64", "", False),
     ("aarch64", "asimd", False)],
)  # fmt: skip
def test_sums_saturate_on_an_x86_known_to_have_no_vnni(arch, instructions, saturates):
    machine = replace(this_machine(), arch=arch, instructions=instructions)
    assert machine.saturates is saturates
    assert Machine.from_dict(machine.to_dict()) == machine
    assert "instructions" not in machine.identity()  # keys of stages stay what they were
    assert not instructions or f"({instructions})" in machine.line()


@pytest.mark.parametrize(("name", "most"), [("x86-avx2", 63), ("x86-vnni", None), ("intel-nuc", None)])
def test_x86_cards_have_four_runtimes_and_say_how_large_a_weight_code_may_be(name, most):
    card = load_card(name)
    assert card.arch == "x86_64" and set(card.runtimes) == {"executorch", "litert", "onnxruntime", "openvino"}
    assert card.weight_range == most and card.sources


def test_cpu_names_of_x86_and_of_a_pi():
    assert cpu_name("processor\t: 0\nmodel name\t: AMD EPYC\n", "x") == "AMD EPYC"
    pi = "processor\t: 0\nCPU part\t: 0xd0b\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    assert cpu_name(pi, "") == "Raspberry Pi 5 Model B Rev 1.0"
    assert cpu_name("", "arm") == "arm" and cpu_name("", "") == "unknown CPU"


@pytest.mark.parametrize(
    "change", [{"cores": "2"}, {"cores": True}, {"extra": 1}, {"versions": {"torch": 2}}]
)
def test_facts_of_the_wrong_shape_are_refused(change):
    with pytest.raises(ValueError, match="machine"):
        Machine.from_dict({**this_machine().to_dict(), **change})


def test_reading_cards_and_facts_imports_nothing_heavy():
    code = (
        "import sys; from paredown.targets.cards.card import list_cards\n"
        "from paredown.targets.host.host import this_machine\n"
        "list_cards(); this_machine();"
        "print([name for name in ('torch', 'executorch', 'litert_torch', 'cv2') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sources_of_every_card_are_given():
    for path in CARDS.glob("*.toml"):
        sources = tomllib.loads(path.read_text())["sources"]
        assert any("our measurements" in source for source in sources)
        assert any(source.startswith("channel_multiple") for source in sources)
