"""A target card: what one device can do, as data read from TOML and checked before any work starts.

A card holds facts with their sources and no code; adding a device is adding a file to `targets/cards/`.
Figures that nobody measured on a device are not on its card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paredown.targets.cards.tomlfile import first_problem, nearest, place, read_toml
from paredown.targets.errors import DeviceError, InputError, UsageError

CARDS = Path(__file__).parent

RuntimeName = Literal["executorch", "litert", "onnxruntime", "openvino"]
DtypeName = Literal["float32", "float16", "int8"]
OpName = Literal[
    "conv2d", "depthwise_conv2d", "linear", "leaky_relu", "relu", "relu6", "max_pool2d", "add", "concat",
    "reorg", "mean", "pad", "reshape", "mul", "sub", "sigmoid", "tanh", "elu", "gelu",
    "conv_transpose2d", "softmax", "log_softmax", "normalize", "matmul", "constant",
]  # fmt: skip


class Schema(BaseModel):
    """The base of every checked table: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Budget(Schema):
    """What a result may cost; a limit that is not set is not checked, a broken one ends with code 3."""

    accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """The most the score may fall below the original network's, as a fraction (0.01 = one point of 100)."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """The median time of one inference on the target, in milliseconds."""
    instructions_m: Annotated[float, Field(gt=0)] | None = None
    """The instructions of one inference, in millions, as the target's emulated board counts them."""
    bundle_kib: Annotated[float, Field(gt=0)] | None = None
    """The size of the bundle file, in KiB."""
    memory_mib: Annotated[float, Field(gt=0)] | None = None
    """The peak resident memory of the process on the target, in MiB."""
    least_score: Annotated[float, Field(ge=0)] | None = None
    """The worst score that may ship, whatever the original network has (0.5 = mAP@50 of 50 %)."""
    least_class_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """The worst score of any class that may ship; unset = a class that is never found is a warning."""

    def over(self, default: Budget) -> Budget:
        """This budget where it sets a limit, `default` elsewhere (a recipe's over its card's)."""
        return Budget(**{**default.limits(), **self.limits()})

    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ChannelMultiple(Schema):
    """The multiple of channels that fills a kernel of this kind; 1 = any width is as good."""

    conv: int = Field(ge=1)
    """Spatial convolutions."""
    pointwise: int = Field(ge=1)
    """1x1 convolutions."""
    depthwise: int = Field(ge=1)
    """Depthwise convolutions."""
    linear: int = Field(ge=1)
    """Fully connected layers."""


class Pay(Schema):
    """What a saving in the weights buys on one runtime."""

    buys: Literal["time", "storage", "nothing"]
    """`time`: inferences get faster; `storage`: only the shipped bytes shrink; `nothing`: neither."""
    note: str = Field(min_length=1)
    """How that shows, with numbers where they were measured."""


class Pays(Schema):
    """What zeros and fewer bits buy on one runtime."""

    zeros: Pay
    """Zeros among the weights."""
    low_bits: Pay
    """Weights of fewer than 8 bits."""


class RuntimeCard(Schema):
    """One runtime on one device; it bears the name of the one whose files it reads: .pte, .tflite, .onnx."""

    edition: Literal["full", "micro", "js"] = "full"
    """Which build of it: `micro` = LiteRT Micro (TFLM), `js` = LiteRT.js (WebAssembly)."""
    delegate: Literal["xnnpack", "mlas", "openvino", "ethos-u", "coreml", "vulkan", "none"]
    """What executes the operators; `mlas`, `openvino` = the CPU part of ONNX Runtime and OpenVINO,
    `none` = the runtime's own kernels."""
    dtypes: tuple[DtypeName, ...] = Field(strict=False, min_length=1)
    """The arithmetic it executes on the delegate."""
    io: DtypeName | None = None
    """The only dtype of inputs and outputs that it takes; unset = the file's own."""
    ops: tuple[OpName, ...] = Field(strict=False, min_length=1)
    """The integer graph's operators that stay on the delegate; others fall back to slower kernels."""
    pays: Pays
    """What zeros and low bits buy."""
    int4: tuple[OpName, ...] = Field(default=(), strict=False)
    """Layers whose 4-bit weights the program holds in four bits: they stay on the delegate, no slower."""
    notes: tuple[str, ...] = Field(default=(), strict=False)
    """When an operator of `ops` leaves the delegate after all, and what it costs."""


class Reach(Schema):
    """How work gets to the device."""

    kind: Literal["local", "ssh", "adb", "none"]
    """`local` = this very machine."""
    text: str = Field(min_length=1)
    """What to tell a user who wants to reach it."""


class Emulate(Schema):
    """How the device is emulated where there is none."""

    cpu: str = ""
    """The emulator's CPU model; empty where there is nothing to emulate."""
    text: str = Field(min_length=1)
    """What emulation can and cannot say."""


class Microcontroller(Schema):
    """The memories of a device without an operating system: a program fits, or there is none."""

    sram_kib: int = Field(ge=1)
    """The SRAM that activations can have, in KiB."""
    flash_kib: int = Field(ge=1)
    """The flash that holds the program, in KiB."""
    board: str = Field(min_length=1)
    """Whose sizes these are."""


class Npu(Schema):
    """What Vela has to know of an Ethos-U and of the system around it."""

    accelerator: str = Field(pattern=r"^ethos-u\d+-\d+$")
    """Vela's `--accelerator-config`: the NPU and its multipliers."""
    system: str = Field(min_length=1)
    """Vela's `--system-config`: clock, and the memories' speed."""
    memory_mode: str = Field(min_length=1)
    """Vela's `--memory-mode`: what lies in which memory."""


class Target(Schema):
    """One device, as its card describes it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9\-]*$")
    """The card's name, as in `--target NAME`."""
    summary: str = Field(min_length=1)
    """One line for lists."""
    arch: Literal["native", "x86_64", "aarch64", "armv7", "armv7e-m", "armv8.1-m", "wasm32"]
    """The instruction set; `native` = whatever machine this runs on."""
    cpu: str = Field(min_length=1)
    """The core, in the vendor's or the emulator's name."""
    cores: int | None = Field(default=None, ge=1)
    """How many cores; unset = ask the machine."""
    memory_mib: int | None = Field(default=None, ge=1)
    """The memory of the smallest common variant, in MiB; unset = ask the machine."""
    microcontroller: Microcontroller | None = None
    """Its memories, where it is one."""
    npu: Npu | None = None
    """Its Ethos-U, where it has one."""
    export_only: bool = False
    """Files for it can be made, and nothing here can run them: no figure is ever shown as its own."""
    runtimes: Mapping[RuntimeName, RuntimeCard] = Field(min_length=1)
    """What can execute a network there."""
    weight_range: Literal[63, 127] | None = None
    """The largest weight code; 63 keeps x86 without VNNI exact and fast in .onnx programs; unset = 127."""
    channel_multiple: ChannelMultiple
    """Hardware-friendly widths, per kind of layer."""
    budget: Budget = Budget()
    """Limits for recipes that set none."""
    reach: Reach
    """How work gets there."""
    emulate: Emulate | None = None
    """How to emulate it; unset = nobody has shown how."""
    sources: tuple[str, ...] = Field(strict=False, min_length=1)
    """Where the card's facts come from."""

    def runtime(self, name: str) -> RuntimeCard:
        """One runtime of this device.

        Raises:
            UsageError: the device does not have it; the line lists those it has.
        """
        for known, runtime in self.runtimes.items():
            if known == name:
                return runtime
        raise UsageError(
            f"target {self.name} has no runtime `{name}`", hint=f"it has: {', '.join(sorted(self.runtimes))}"
        )

    def require_reachable(self) -> None:
        """Checks that some transport leads to the device.

        Raises:
            DeviceError: none does; the line says what can be done instead.
        """
        if self.reach.kind == "none":
            raise DeviceError(f"no transport leads there: {self.reach.text}", where=f"target {self.name}")


def list_cards(folder: Path = CARDS) -> tuple[Target, ...]:
    """Every card in a folder, by name.

    Raises:
        InputError: one of them is broken; the line names file and key.
    """
    return tuple(_read_card(path) for path in sorted(folder.glob("*.toml")))


def load_card(name_or_path: str | Path, folder: Path = CARDS) -> Target:
    """Reads one card, by name (`raspberry-pi-5`) or by path (anything ending in .toml or holding a slash).

    Raises:
        InputError: no card of that name (the line lists all of them and the nearest); or the file is missing
            or broken (the line names file and key).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return _read_card(Path(text).expanduser() if text.startswith("~") else Path(text))
    known = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if text in known:
        return _read_card(known[text])
    guess = nearest(text, known)
    raise InputError(
        f"unknown target `{text}`" + (f", did you mean `{guess}`?" if guess else ""),
        hint=f"known targets: {', '.join(known) or 'none'}; or give the path of a card, ./my-board.toml",
    )


def _read_card(path: Path) -> Target:
    tables, text = read_toml(path, "target card")
    try:
        return Target.model_validate(tables)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise InputError(problem, where=place(path, text, key)) from error
