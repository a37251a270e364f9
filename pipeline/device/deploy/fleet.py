"""fleet.toml: devices and their groups, how many may fail and what happens then, what a release must hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from paredown.targets.address import parse_address
from paredown.targets.cards.card import Schema
from paredown.targets.cards.tomlfile import first_problem, nearest, place, read_toml
from paredown.targets.errors import InputError, UsageError

ALL = "all"
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NAME = r"^[a-z][a-z0-9\-]*$"
Word = Annotated[str, Field(pattern=_NAME)]


class FleetDevice(Schema):
    """One device."""

    name: Word
    """What tables call it."""
    address: str
    """`ssh://user@host[:port]`, `adb:SERIAL` or `local:`."""
    groups: tuple[Word, ...] = Field(default=(), strict=False)
    """Labels; a stage may name one."""
    target: str | None = None
    """The card that it is; a bundle for another one is not sent there. Unset = not checked here."""
    app_name: Word | None = None
    """Name of the app there; unset = that of the command."""
    arguments: tuple[str, ...] = Field(default=(), strict=False)
    """Options of the app on this device, after those of the command."""


class Policy(Schema):
    """How a rollout goes on."""

    failures: Annotated[int, Field(ge=0)] = 0
    """How many devices of a stage may fail."""
    then: Literal["stop", "go-on", "roll-back"] = "stop"
    """When more do: leave the others alone, go on all the same, or take the release back everywhere."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 8
    """Devices at a time."""


class HealthLimits(Schema):
    """What a release must hold in its health window."""

    restarts: Annotated[int, Field(ge=0)] = 1
    """After more of them the release before comes back."""
    errors: Annotated[int, Field(ge=0)] = 10
    """Likewise lines of its log that begin with `error`, `fatal` or `Traceback`."""
    hang: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a heartbeat after which the app is ended and started again."""


class Fleet(Schema):
    """All of it."""

    policy: Policy = Policy()
    """How a rollout goes on."""
    health: HealthLimits = HealthLimits()
    """What a release must hold."""
    device: tuple[FleetDevice, ...] = Field(strict=False, min_length=1)
    """The devices, in the order in which they come."""

    @model_validator(mode="after")
    def _distinct(self) -> Fleet:
        names = [each.name for each in self.device]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two devices are called `{twice}`")
        if ALL in {group for each in self.device for group in each.groups}:
            raise ValueError(f"no group can be called `{ALL}`")
        places = [(each.address, each.app_name) for each in self.device]
        if len(set(places)) < len(places):
            twice = next(address for address, app in places if places.count((address, app)) > 1)
            raise ValueError(f"{twice} is there twice; give each app there another app_name")
        return self


def load_fleet(path: Path) -> Fleet:
    """Reads a fleet.toml.

    Raises:
        InputError: it is missing or broken; the line names file and key.
    """
    tables, text = read_toml(path, "fleet")
    try:
        fleet = Fleet.model_validate(tables)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise InputError(problem, where=place(path, text, key)) from error
    for each in fleet.device:
        try:
            kind = parse_address(each.address).kind
        except UsageError as error:
            raise InputError(f"device {each.name}: {error}", where=path) from error
        if kind == "emulated":
            what = f"device {each.name}: an emulated board ends with its connection, and can keep no app"
            raise InputError(what, where=path, hint="give it an address of ssh, adb or local:")
    return fleet


def stages(devices: Sequence[FleetDevice], text: str) -> list[list[str]]:
    """Which devices come in which stage.

    Args:
        devices: in their order.
        text: comma-separated: a number of devices in all until the end of that stage, a group, or `all`.

    Returns:
        Names for each stage; a device comes once. Those that no stage names come in none.

    Raises:
        UsageError: there is no such group, or a stage has no device.
    """
    made: list[list[str]] = []
    groups = {group for each in devices for group in each.groups}
    for word in (part.strip() for part in text.split(",")):
        taken = {name for stage in made for name in stage}
        left = [each for each in devices if each.name not in taken]
        if re.fullmatch(r"[0-9]{1,9}", word):
            stage = left[: max(0, int(word) - len(taken))]
        elif word == ALL:
            stage = left
        elif word in groups:
            stage = [each for each in left if word in each.groups]
        else:
            guess = nearest(word, [*groups, ALL])
            hint = f"did you mean `{guess}`?" if guess else f"groups: {', '.join(sorted(groups)) or 'none'}"
            raise UsageError(f"`{word}` is no number of devices and no group", where="--stages", hint=hint)
        if not stage and left:
            hint = "numbers count the devices of the stages before too, as in 1,5,all"
            raise UsageError(f"stage `{word}` has no device", where="--stages", hint=hint)
        made += [[each.name for each in stage]] if stage else []
    return made


def seconds(text: str) -> float:
    """Reads a span of time: `90`, `60s`, `5m`, `1h`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in UNITS or float(match[1]) * UNITS[match[2]] > 7 * 86400:
        raise UsageError(f"`{text}` is no time up to a week", hint="write 90, 60s, 5m or 1h")
    return float(match[1]) * UNITS[match[2]]
