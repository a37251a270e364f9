from __future__ import annotations

import pytest

from paredown.apps.detector.device.frames.private import check_arguments, source_text
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit
ADDRESS = "rtsp://user:s3cret@camera/live"


def test_an_address_comes_from_a_file_of_ones_own(tmp_path):
    file = tmp_path / "camera"
    file.write_text(f"{ADDRESS}\nmore\n")
    file.chmod(0o600)
    assert source_text(f"@{file}") == ADDRESS
    assert source_text("0") == "0" and source_text(ADDRESS) == ADDRESS


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_read_is_refused(tmp_path, mode):
    file = tmp_path / "camera"
    file.write_text(ADDRESS)
    file.chmod(mode)
    with pytest.raises(InputError, match="others can read; chmod 600") as told:
        source_text(f"@{file}")
    assert "s3cret" not in str(told.value)


def test_no_file_and_an_empty_one_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot read the source's address: No such file"):
        source_text(f"@{tmp_path / 'none'}")
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(InputError, match="holds no address"):
        source_text(f"@{tmp_path / 'empty'}")


@pytest.mark.parametrize("argument", [ADDRESS, f"--source={ADDRESS}", "https://a:b@c/", "rtsp://:x@h"])
def test_a_device_gets_no_password_in_a_command_line(argument):
    with pytest.raises(UsageError, match="--source @FILE") as told:
        check_arguments(["--json", argument])
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("argument", ["rtsp://user@camera/live", "0", "a@b:c", "http://h:80/x@y", "--source"])
def test_what_holds_no_password_passes(argument):
    check_arguments([argument])
