"""A file is written whole or not at all."""

import stat
import sys

import pytest

from sd_vae_kit.state.atomic_write import atomic_write

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")


def test_the_new_file_takes_the_place_of_the_old_one_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old", "until it is complete"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_after_a_failure_the_old_file_is_there_and_nothing_is_left_behind(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"No such file"), atomic_write(tmp_path / "gone" / "a.json") as temporary:
        temporary.write_text("x")
    assert list(tmp_path.iterdir()) == []


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_permissions_are_kept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o640)
    with atomic_write(path, mode=0o600) as temporary:
        temporary.write_text("new")
    assert mode_of(path) == 0o640


@posix
def test_a_new_file_may_be_private_from_its_first_byte(tmp_path):
    path = tmp_path / "a.json"
    with atomic_write(path, mode=0o600) as temporary:
        temporary.write_text("secret")
        assert mode_of(temporary) == 0o600
    assert mode_of(path) == 0o600
