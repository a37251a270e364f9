"""What paredown is installed from: versions with hashes, licences, an SBOM of a release, sizes.

    python bench/supply.py lock                  # requirements.lock, constraints.txt, table of licences
    python bench/supply.py sbom FILE             # CycloneDX of what requirements.lock installs
    python bench/supply.py sizes [ENV] --record  # of the default installation and of each extra; long

`lock` asks pip what it would install for the documented installation, on this machine's Python and system;
the hashes are those of the files that pip chose, the licences what these say of themselves.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
PIPS = ("pip", "setuptools")  # of every environment


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


def sizes(environment: Path, record: str | None) -> None:
    """Installs each extra beside the default, and takes it away again.

    Args:
        environment: with the default installation alone; made where it is not there.
        record: see `Table`.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = [name for name in config["options.extras_require"] if name not in LEFT_OUT]
    notes = ["MiB of the installed files. An extra's are those that it adds to the default installation."]
    pip = [str(environment / "bin" / "python"), "-m", "pip"]
    if not environment.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([*pip, "install", "--quiet", "."], cwd=ROOT, check=True)
    before = installed(pip[0])
    with Table("install-size", ["installation", "packages", "MiB", "largest"], record, notes=notes) as table:
        table.row("default", *_told({name: size for name, size in before.items() if name not in PIPS}))
        for name in extras:
            subprocess.run([*pip, "install", "--quiet", f".[{name}]"], cwd=ROOT, check=True)
            added = {each: size for each, size in installed(pip[0]).items() if each not in before}
            table.row(name, *_told(added))
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *added], check=True)


def _told(sizes: Mapping[str, int]) -> tuple[int, str, str]:
    largest = sorted(sizes, key=lambda each: -sizes[each])[:4]
    told = ", ".join(f"{each} {sizes[each] / MIB:,.0f}" for each in largest)
    return len(sizes), f"{sum(sizes.values()) / MIB:,.0f}", told


def installed(python: str) -> dict[str, int]:
    """Bytes of each package's files in an environment."""
    code = (
        "import json\nfrom importlib import metadata\nfound = {}\n"
        "for each in metadata.distributions():\n"
        "    files = [each.locate_file(file) for file in each.files or ()]\n"
        "    found[each.metadata['Name'].lower()] = sum(f.stat().st_size for f in files if f.is_file())\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lock", "sbom", "sizes"))
    parser.add_argument("out", nargs="?", type=Path, help="file of the SBOM, or folder of an environment")
    add_option(parser)
    given = parser.parse_args(words)
    match given.what:
        case "lock":
            lock()
        case "sbom":
            sbom(given.out or Path("paredown.cdx.json"))
        case "sizes":
            sizes(given.out or Path("build/size"), given.record)


if __name__ == "__main__":
    main()
