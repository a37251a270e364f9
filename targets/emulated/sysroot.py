"""The files of an emulated board: an arm64 Debian userland with Python and LiteRT, made from packages.

No root and no maintainer scripts: packages are downloaded by an apt of its own state, which checks Debian's
signatures, and unpacked. Every package, with version and sha256, is listed in the sysroot's packages.txt.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import key_of, made_once
from paredown.targets.host.tools import output_of, tool

SUITE = "bookworm"  # has the Python that the wheels are for
PACKAGES = (
    "busybox-static", "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libbz2-1.0", "libexpat1", "libffi8",
    "liblzma5", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal",
)  # fmt: skip
#: Beside them on a board that is reached over adb; of Android's own from a newer suite, which has version 34.
BACKPORTS = "bookworm-backports"
ADBD_PACKAGES = (
    *(f"{name}/{BACKPORTS}"
      for name in ("adbd", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog")),
    "libbrotli1", "libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "libprotobuf32", "libsystemd0",
    "libzstd1",
)  # fmt: skip
WHEELS = Path(__file__).with_name("wheels.txt")
SITE_PACKAGES = "usr/local/lib/python3.11/dist-packages"  # where `pip install` puts them on Debian
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
SHARE = "usr/share"
#: Half of the bytes: translations, character sets, and an accelerator for graphics cards.
UNNEEDED = (
    SHARE,
    "usr/lib/aarch64-linux-gnu/gconv",
    f"{SITE_PACKAGES}/ai_edge_litert/libLiteRtWebGpuAccelerator.so",
)
FOLDERS = ("dev", "etc", "home/pi", "opt/paredown", "proc", "root", "sbin", "tmp", "usr/sbin")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EMULATOR = ("proot", "qemu-aarch64")
EMULATOR_PACKAGES = "proot qemu-user"
LISTING = "packages.txt"
#: Imported once while the sysroot is made: it shows that all is there, and leaves bytecode for later starts.
IMPORTS = "import argparse, ctypes, hashlib, json, lzma, runpy, numpy, ai_edge_litert.interpreter"


def sysroot(cache: Path, say: Callable[[str], None]) -> Path:
    """The sysroot, made on first use: about 45 MB of downloads, 115 MB on disk.

    Args:
        cache: the folder to keep it in.
        say: told what is being done, a line at a time.

    Raises:
        DeviceError: a program of this system is missing (the line names its package), or a download fails.
    """
    for program in EMULATOR:
        tool(program, EMULATOR_PACKAGES)
    key = key_of(*PACKAGES, *UNNEEDED, *FOLDERS, SUITE, IMPORTS, WHEELS.read_bytes())

    def make(folder: Path) -> None:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        say(f"emulated boards: getting {len(PACKAGES)} Debian packages for arm64 (once)")
        listing = [*_unpack(folder, PACKAGES, SUITE), *_wheels()]
        say("emulated boards: getting numpy and LiteRT for arm64 (once)")
        _install_wheels(folder)
        for name in UNNEEDED:
            path = folder / name
            rmtree(path) if path.is_dir() else path.unlink()
        say("emulated boards: first start (once)")
        _finish(folder)
        _list(folder, listing)

    return made_once(cache / "sysroots" / f"arm64-{key}", make)


def adb_sysroot(cache: Path, say: Callable[[str], None]) -> Path:
    """The sysroot with Debian's adbd: another 3 MB of downloads and 11 MB on disk.

    Args:
        cache: the folder to keep both in.
        say: told what is being done, a line at a time.

    Raises:
        DeviceError: as `sysroot`.
    """
    base = sysroot(cache, say)
    key = key_of(base.name, *ADBD_PACKAGES)

    def make(folder: Path) -> None:
        say(f"emulated boards: getting {len(ADBD_PACKAGES)} Debian packages for adb (once)")
        linked(base, folder)
        (folder / "run").mkdir()
        listing = (folder / LISTING).read_text().splitlines()
        listing += _unpack(folder, ADBD_PACKAGES, SUITE, BACKPORTS)
        rmtree(folder / SHARE)
        _list(folder, listing)

    return made_once(cache / "sysroots" / f"arm64-adb-{key}", make)


def linked(base: Path, root: Path) -> None:
    """Makes a copy of links, which costs nothing: nobody may write into files that are there already."""
    copytree(base, root, symlinks=True, copy_function=os.link, dirs_exist_ok=True)


def emulated(root: Path, cpu: str, plugin: str = "") -> list[str]:
    """The start of a command line that runs a program in a sysroot, every program it starts included.

    Args:
        root: the sysroot.
        cpu: one of QEMU's CPU models.
        plugin: of QEMU's, by its path in the sysroot.

    Raises:
        DeviceError: the emulator is not installed.
    """
    proot, qemu = (tool(program, EMULATOR_PACKAGES) for program in EMULATOR)
    qemu += f" -cpu {cpu}"
    if plugin:
        qemu += f" -plugin {plugin}"
    command = [proot, "-q", qemu, "-r", str(root), "-w", "/home/pi"]
    devices = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
    return command + [word for path in devices for word in ("-b", path)]


def _unpack(folder: Path, packages: Sequence[str], *suites: str) -> list[str]:
    """Gets packages and takes them apart; returns their lines of the listing."""
    unpack = tool("dpkg-deb", "dpkg")
    if not KEYRING.is_file():
        raise DeviceError("Debian's keys are not installed", hint="apt-get install debian-archive-keyring")
    with TemporaryDirectory(dir=folder.parent) as scratch:
        files = _download(Path(scratch), packages, suites)
        for file in files:
            output_of([unpack, "--extract", file, folder], f"unpacking {file.name}")
        return [_entry(file) for file in files]


def _download(scratch: Path, packages: Sequence[str], suites: Sequence[str]) -> list[Path]:
    """The packages' files, by name, checked by apt against Debian's signatures."""
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    archive = f"deb [arch=arm64 signed-by={KEYRING}] {_mirror()}"
    (scratch / "sources.list").write_text("".join(f"{archive} {suite} main\n" for suite in suites))
    options = {
        "Dir::State": scratch, "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status", "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": scratch / "sources.list", "Dir::Etc::sourceparts": "-",
        "APT::Architecture": "arm64", "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "3",
    }  # fmt: skip
    apt: list[str | Path] = [tool("apt-get", "apt"), "--quiet=2"]
    apt += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    output_of([*apt, "update"], "getting Debian's package lists")
    output_of([*apt, "download", *packages], "getting Debian's packages", cwd=scratch / "packages")
    return sorted((scratch / "packages").glob("*.deb"))


def _mirror() -> str:
    """Where this machine's own apt gets Debian from."""
    command = [tool("apt-get", "apt"), "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(REPO_URI)"]
    for line in output_of(command, "asking apt for its sources").splitlines():
        origin, component, uri = line.split("|")
        if (origin, component) == ("Debian", "main"):
            return uri
    raise DeviceError(
        "this machine's apt knows no Debian archive, which emulated boards are made from",
        hint="add one to its sources and run `apt-get update`",
    )


def _install_wheels(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--require-hashes", "--requirement", str(WHEELS), "--target", str(folder / SITE_PACKAGES)]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    output_of(command, "getting the wheels for arm64")


def _finish(folder: Path) -> None:
    """What the packages' maintainer scripts would do, and a first start."""
    (folder / "usr/bin/python3").symlink_to("python3.11")
    run = emulated(folder, "cortex-a53")  # any core will do
    output_of([*run, "/bin/busybox", "--install", "-s"], "the first start of the emulated board")
    python = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "/usr/bin/python3"]
    output_of([*run, *python, "-c", IMPORTS], "the first start of the emulated board")


def _list(folder: Path, lines: Sequence[str]) -> None:
    (folder / LISTING).unlink(missing_ok=True)  # it may be a link to that of another sysroot
    (folder / LISTING).write_text("".join(f"{line}\n" for line in lines))


def _entry(package: Path) -> str:
    name, version, _ = unquote(package.stem).split("_")
    return f"{name} {version} sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}"


def _wheels() -> list[str]:
    lines = [line for line in WHEELS.read_text().splitlines() if not line.startswith("#")]
    return [line.replace("==", " ").replace("--hash=", "") for line in lines]
