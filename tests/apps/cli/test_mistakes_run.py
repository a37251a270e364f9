"""Mistakes that people make with runs, devices, cameras and pages: one helpful line and exit code each."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny_project import call

GOLDEN = Path(__file__).parents[2] / "golden" / "format-4" / "detector.paredown"
AGAIN = "copy it again, or make it again with `paredown run`"
NO_BUNDLE = "not a bundle, or truncated or damaged"
FORMS = "write `local:`, `ssh://user@host[:port]`, `adb:SERIAL`, `emulated:NAME`"
IMAGES = ".bmp, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp"
SOURCE = "a source is a camera's number, picamera, a file, a folder, or a URL as rtsp://host/path"
SCHEMES = "rtsp, rtsps, rtmp, http, https, udp, tcp, srt"
#: What is typed after `paredown`, the exit code, the line on standard error after `paredown: `.
MISTAKES = (
    # runs
    ("runn digits", 2, "No such command 'runn'. Did you mean 'run'?; see `paredown --help`"),
    ("run digit", 2, "unknown recipe `digit`, did you mean `digits`?; known recipes: ..."),
    ("run digits --target raspberry", 4,
     "unknown target `raspberry`, did you mean `raspberry-pi-5`?; known targets: ..."),
    ("run digits --target iphone", 2,
     'target iphone is export-only; use "paredown export RECIPE --target iphone"'),
    ("run digits --set prune.mac=0.5", 4,
     "--set prune.mac=0.5: unknown key `prune.mac`; did you mean `macs` in [prune]?"),
    ("run digits --set prune.macs=2", 4,
     "--set prune.macs=2: `prune.macs = 2` is not accepted: it must be less than or equal to 1"),
    ("run digits --set bench", 2, "--set bench: is not key=value; write for example --set bench.runs=20"),
    ("run digits --set budget.least_score=-1", 4,
     "--set budget.least_score=-1: `budget.least_score = -1` is not accepted: "
     "it must be greater than or equal to 0"),
    ("run gemma3-tiny --set budget.least_class_score=0.5", 2,
     "recipe: key `budget.least_class_score` is for image networks; this recipe is of language models; "
     "leave it out"),
    ("run digits --set about.usage=x", 4,
     "--set about.usage=x: unknown key `about.usage`; did you mean `use` in [about]?"),
    ("run digits --limit 0", 2,
     "--limit: Input should be greater than or equal to 1; see `paredown run --help`"),
    ("run none.toml", 4, "none.toml: no such recipe file"),
    ("run digits --device lokal:", 2, f"`lokal:` is no address of a device; {FORMS}"),
    ("explain empty", 4, "empty: is no run directory: it has no stages.json"),
    ("targets --jsn", 2, "No such option: --jsn (Possible options: --json); see `paredown targets --help`"),
    # bundles and devices
    ("validate none.paredown", 4,
     "none.paredown: cannot read this bundle: No such file or directory; "
     "`paredown run RECIPE` makes one in runs/RECIPE/TARGET"),
    ("validate run", 4,
     "run: cannot read this bundle: Is a directory; give the file, run/bundle.paredown"),
    ("validate empty.paredown", 4, f"empty.paredown: empty (0 bytes); {AGAIN}"),
    ("validate half.paredown", 4, f"half.paredown: {NO_BUNDLE} (5000 bytes); {AGAIN}"),
    ("validate d.paredown --data nowhere", 4,
     "nowhere: no such folder; --data names the folder of the recipe's files"),
    ("validate d.paredown --device ssh://", 2,
     "`ssh://` is no address of an ssh server; write ssh://user@host[:port]"),
    ("validate d.paredown --device ssh://pi:secret@board", 2,
     "an address with a password; log in with a key: `ssh-copy-id user@host`"),
    ("validate d.paredown --device usb:1", 2, f"`usb:1` is no address of a device; {FORMS}"),
    ("validate d.paredown --times 0", 2,
     "--times: Input should be greater than or equal to 1; see `paredown validate --help`"),
    ("bench d.paredown --minutes -1", 2,
     "--minutes: Input should be greater than or equal to 0; see `paredown bench --help`"),
    ("bench d.paredown --device simulated:", 2,
     "nothing of a microcontroller is timed here; `paredown validate` scores it"),
    ("deploy d.paredown --device ssh://nobody@127.0.0.1:1 -- --source 0", 5,
     "ssh://nobody@127.0.0.1:1: cannot be reached: ...; "
     "the machine is there, and nothing listens on that port"),
    ("deploy d.paredown --device local: --app kamera -- --source 0", 2,
     "--app: no app is called `kamera`; there are camera, drone"),
    ("deploy d.paredown --device local:", 2,
     "--app camera: the following arguments are required: --source; --help lists the options"),
    ("deploy d.paredown --device local: --name My_App -- --source 0", 2,
     "`My_App` is no name of an app; small letters, digits and dashes"),
    ("stop --device local: --name ghost", 5, "local: no app called ghost was deployed here"),
    # reports
    ("report empty", 4,
     "empty: has no report.json; give the folder of one target, as runs/digits/host; "
     "an older run has to be run again"),
    ("report none", 4, "none: no such run or bundle; runs lie in runs/RECIPE/TARGET"),
    ("report empty --compare", 2, "--compare: needs two runs or bundles; name another one"),
    ("report empty run --out x.html", 2,
     "--out: is one page, and 2 are asked for; add --compare, or leave --out out"),
    ("unpack d.paredown --out run", 2, "run: is there already and not empty; give --out a new folder"),
    # cameras
    ("camera d.paredown", 2, "Missing option '--source'; see `paredown camera --help`"),
    ("camera d.paredown --source 77", 5,
     "77: no such camera (/dev/video77); ...; a Raspberry Pi's own camera is --source picamera"),
    ("camera d.paredown --source none.mp4", 4, f"none.mp4: no such file or folder; {SOURCE}"),
    ("camera d.paredown --source film.mp4", 4,
     "film.mp4: no picture can be read from this file; FFmpeg finds none: it is no video, or cut off (an "
     "MP4's index is at its end)"),
    ("camera d.paredown --source empty", 4, f"empty: no image in this folder ({IMAGES})"),
    ("camera d.paredown --source rtps://x", 2, f"`rtps://x` is no source; URLs begin with {SCHEMES}"),
    ("camera d.paredown --source picamera:x", 2,
     "--source: `picamera:x` is no camera; write picamera or picamera:1"),
    ("camera d.paredown --source gst:", 2,
     "--source: `gst:` names no pipeline; write gst:v4l2src device=/dev/video0"),
    ("camera d.paredown --source pipe:no-such-program", 5,
     "cannot start no-such-program: No such file or directory; it has to be installed, and "
     "in PATH"),
    ("camera d.paredown --source 0 --rotate 45", 2,
     "--rotate: `45` is none of 0, 90, 180, 270; see `paredown camera --help`"),
    ("camera d.paredown --source 0 --confidence 2", 2,
     "--confidence: `2` is not a number from 0 to 1; see `paredown camera --help`"),
    ("camera half.paredown --source 0", 4, f"half.paredown: {NO_BUNDLE} (5000 bytes); {AGAIN}"),
    ("drone d.paredown --source 0", 2, "Missing option '--mavlink'; see `paredown drone --help`"),
    # pages
    ("serve empty", 4, "empty: no page here; make one with `paredown web BUNDLE --out site/`"),
    ("serve site --port 99999", 2,
     "--port: Input should be less than or equal to 65535; see `paredown serve --help`"),
    ("web d.paredown --out run", 2, "run: holds something that is no page; give --out a new folder"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as people have them."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copy(GOLDEN, folder / "d.paredown")
    (folder / "run").mkdir()
    shutil.copy(GOLDEN, folder / "run" / "bundle.paredown")
    (folder / "half.paredown").write_bytes(GOLDEN.read_bytes()[:5000])
    (folder / "empty.paredown").touch()
    (folder / "empty").mkdir()
    (folder / "film.mp4").write_text("no film")
    return folder


@pytest.mark.parametrize(("typed", "code", "line"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_one_helpful_line(folder, monkeypatch, tmp_path, typed, code, line):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = call(*shlex.split(typed))
    assert done.code == code and done.out == ""
    pattern = re.escape(f"paredown: {line}\n").replace(re.escape("..."), "[^\n]*")
    assert re.fullmatch(pattern, done.err), done.err
    assert len(done.err) < 400


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 50 and len({typed for typed, _, _ in MISTAKES}) == len(MISTAKES)
