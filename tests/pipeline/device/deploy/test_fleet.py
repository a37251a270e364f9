"""fleet.toml: what it may say, which devices come in which stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from paredown.pipeline.device.deploy.fleet import Fleet, load_fleet, seconds, stages
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit
TWO = '[[device]]\nname = "a"\naddress = "ssh://pi@a"\n[[device]]\nname = "b"\naddress = "adb:1"\n'


def loaded(folder: Path, text: str) -> Fleet:
    (folder / "fleet.toml").write_text(text)
    return load_fleet(folder / "fleet.toml")


def test_what_is_not_said_is_usual(tmp_path: Path) -> None:
    fleet = loaded(tmp_path, TWO)
    assert [each.name for each in fleet.device] == ["a", "b"]
    assert (fleet.policy.failures, fleet.policy.then, fleet.health.restarts) == (0, "stop", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "`device` is missing"),
        (TWO.replace('"b"', '"a"'), "two devices are called `a`"),
        (
            TWO.replace("adb:1", "ssh://pi@a"),
            "ssh://pi@a is there twice; give each app",
        ),
        (TWO.replace("adb:1", "tcp:1"), "device b: `tcp:1` is no address of a device"),
        (TWO.replace("adb:1", "emulated:raspberry-pi-5"), "an emulated board ends with its connection"),
        (TWO + 'groups = ["all"]\n', "no group can be called `all`"),
        (TWO + 'groups = ["9"]\n', r"`device.1.groups.0 = \"9\"` is not accepted"),
        (TWO + '[policy]\nthen = "undo"\n', r"fleet.toml:8: `policy.then = \"undo\"` is not accepted"),
        (TWO + "[policy]\nfailures = -1\n", "`policy.failures = -1` is not accepted"),
        (TWO + "[health]\nhangs = 3\n", "unknown key `health.hangs`"),
        ("[[device]\n", "the fleet is not valid TOML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        loaded(tmp_path, text)


def fleet_of(*groups: str) -> Fleet:
    devices = [
        {"name": f"d{i}", "address": f"ssh://pi@d{i}", "groups": g.split()} for i, g in enumerate(groups)
    ]
    return Fleet.model_validate({"device": devices})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,3,all", [["d0"], ["d1", "d2"], ["d3", "d4"]]),
        ("far,all", [["d1", "d3"], ["d0", "d2", "d4"]]),
        ("near, 3", [["d2"], ["d0", "d1"]]),
        ("all", [["d0", "d1", "d2", "d3", "d4"]]),
        ("9,all", [["d0", "d1", "d2", "d3", "d4"]]),
        ("near,far", [["d2"], ["d1", "d3"]]),
    ],
)
def test_stages_count_what_came_before(text: str, expected: list[list[str]]) -> None:
    assert stages(fleet_of("", "far", "near", "far", "").device, text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,faar", "did you mean `far`"),
        ("2,2,all", "stage `2` has no device"),
        ("0,all", "stage `0` has no device"),
        ("-1", "`-1` is no number of devices and no group"),
        ("", "`` is no number"),
    ],
)
def test_a_stage_that_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stages(fleet_of("", "far", "").device, text)


def test_times() -> None:
    assert [seconds(text) for text in ("90", "60s", "5m", "1.5 h", "0")] == [90, 60, 300, 5400, 0]
    for text in ("", "m", "5 days", "-3s", "1e9", "9999999", "8h m"):
        with pytest.raises(UsageError, match="is no time up to a week"):
            seconds(text)
