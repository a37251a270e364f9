"""One installed package, `paredown`, made of the repository's four rooms.

In the repository `paredown/` has a symbolic link to each room, which is what editors and type checkers
follow. Building does not need them: an archive that was unpacked without links installs just the same.
"""

from setuptools import find_packages, setup

ROOMS = ("apps", "calibration", "pipeline", "targets")

setup(
    packages=[
        "paredown",
        *(
            f"paredown.{name}"
            for room in ROOMS
            for name in (room, *(f"{room}.{sub}" for sub in find_packages(room)))
        ),
    ],
    package_dir={"paredown": "paredown", **{f"paredown.{room}": room for room in ROOMS}},
)
