"""What paredown is installed from: versions with hashes, licences, an SBOM of a release, sizes.

    python bench/supply.py lock                  # requirements.lock, constraints.txt, table of licences
    python bench/supply.py sbom FILE             # CycloneDX of what requirements.lock installs
    python bench/supply.py sizes --record        # of the default installation and of each extra

`lock` asks pip what it would install for the documented installation, on this machine's Python and system;
the hashes are those of the files that pip chose, the licences what these say of themselves. `sizes` looks at
the environment that runs it, which has to have all extras.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from record import ROOT, Table, add_option, command, write

from paredown.pipeline.bundle.packed.sbom import document, licence_of, licence_text, package
from paredown.targets.host.host import package_version

LOCK, CONSTRAINTS, LICENCES = (
    ROOT / "requirements.lock",
    ROOT / "constraints.txt",
    ROOT / "docs" / "licences.md",
)
LINE = re.compile(r"([\w.-]+)==([\w.+!-]+)((?: --hash=sha256:[0-9a-f]{64})*)")
HEAD = "# Made by `python bench/supply.py lock`: {what}\n"
MIB = 1 << 20
#: Not measured: their packages are models of others, or tools of developers.
LEFT_OUT = ("all", "gemma", "test")


def asked(extras: str = "") -> list[dict[str, str]]:
    """What pip would install for paredown, without installing it: name, version, licence and hash."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            str(report),
            f".{extras}",
        ]
        subprocess.run([sys.executable, "-m", "pip", *command], cwd=ROOT, check=True)
        found = json.loads(report.read_text())["install"]
    return [
        {
            "name": re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower(),
            "version": each["metadata"]["version"].partition("+")[0],
            "licence": licence_text(
                each["metadata"].get("license_expression"),
                each["metadata"].get("license"),
                each["metadata"].get("classifier", ()),
            )
            or licence_of(each["metadata"]["name"]),  # older pips know no licence expressions
            "hash": each["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", ""),
        }
        for each in found
        if each["metadata"]["name"] != "paredown"
    ]


def lock() -> None:
    """Writes the files. Of torch, whose builds differ, hashes that were in the lock before stay."""
    known = {name: hashes for name, _, hashes in locked()} if LOCK.exists() else {}
    found = sorted(asked(), key=lambda each: each["name"])
    lines = []
    for each in found:
        hashes = {each["hash"]} | (set(known.get(each["name"], ())) if each["name"] == "torch" else set())
        words = [f"{each['name']}=={each['version']}", *(f"--hash=sha256:{h}" for h in sorted(hashes))]
        lines.append(" ".join(words))
    what = "pip install --require-hashes -r requirements.lock && pip install --no-deps ."
    LOCK.write_text(HEAD.format(what=what) + "\n".join(lines) + "\n")
    rows = [[each["name"], each["version"], each["licence"] or "not stated"] for each in found]
    write("licences", command(), ["package", "version", "licence"], rows)
    whole = sorted(asked("[test,docs]"), key=lambda each: each["name"])
    pins = [f"{each['name']}=={each['version']}" for each in whole]
    CONSTRAINTS.write_text(HEAD.format(what="pip install -c constraints.txt .") + "\n".join(pins) + "\n")
    print(f"{LOCK.name}: {len(lines)} packages; {CONSTRAINTS.name}: {len(pins)}")


def locked() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, version and hashes of each package of the lock."""
    for line in LOCK.read_text().splitlines():
        if match := LINE.fullmatch(line):
            name, version, hashes = match.groups()
            yield name, version, tuple(each.removeprefix("--hash=sha256:") for each in hashes.split())


def sbom(out: Path) -> None:
    """Writes the SBOM of a release."""
    parts = [
        package(name, version, None, hashes[0] if len(hashes) == 1 else None)
        for name, version, hashes in locked()
    ]
    out.write_bytes(document("paredown", package_version("paredown"), parts, {"licence": "Apache-2.0"}))
    print(f"{out}: {len(parts)} packages")


def sizes(record: str | None) -> None:
    """Tells what this environment's packages take: the default's, and what each extra adds to them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    notes = [
        "MiB of the installed files, with the packages that these need in turn. An extra's are those that it "
        "adds to the default installation."
    ]
    default = needed(config["options"]["install_requires"], ())
    with Table("install-size", ["installation", "packages", "MiB", "largest"], record, notes=notes) as table:
        for name in ("default", *(name for name in extras if name not in LEFT_OUT)):
            found = default if name == "default" else needed(extras[name], default)
            sized = {each: size_of(each) for each in found}
            largest = sorted(sized, key=lambda each: -sized[each])[:4]
            told = ", ".join(f"{each} {sized[each] / MIB:,.0f}" for each in largest)
            table.row(name, len(sized), f"{sum(sized.values()) / MIB:,.0f}", told)


def needed(requirements: str, before: Collection[str]) -> set[str]:
    """Packages that are installed for these, and for what they need in turn, but for some that are there."""
    found, waiting = set[str](), requirements.strip().splitlines()
    while waiting:
        each = Requirement(waiting.pop())
        name = canonicalize_name(each.name)
        if name not in found and name not in before and name != "paredown":
            found.add(name)
            more = metadata.requires(name) or []
            waiting += [line for line in more if _asked_for(line, each.extras)]
    return found


def _asked_for(line: str, extras: Collection[str]) -> bool:
    """Whether a package needs another one, with these extras of its own."""
    marker = Requirement(line).marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def size_of(name: str) -> int:
    """Bytes of an installed package's files."""
    found = metadata.distribution(name)
    files = [Path(str(found.locate_file(file))) for file in found.files or ()]
    return sum(file.stat().st_size for file in files if file.is_file())


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lock", "sbom", "sizes"))
    parser.add_argument("out", nargs="?", type=Path, help="file of the SBOM")
    add_option(parser)
    given = parser.parse_args(words)
    match given.what:
        case "lock":
            lock()
        case "sbom":
            sbom(given.out or Path("paredown.cdx.json"))
        case "sizes":
            sizes(given.record)


if __name__ == "__main__":
    main()
