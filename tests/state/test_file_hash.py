"""The sha256 of a file."""

import hashlib

import pytest

from sd_vae_kit.errors import Interrupted
from sd_vae_kit.state import file_hash
from sd_vae_kit.state.file_hash import file_sha256, hash_in_steps

DATA = bytes(range(256)) * 10


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hash, "BLOCK", 1000)
    found = tmp_path / "a.bin"
    found.write_bytes(DATA)
    return found


def test_it_is_that_of_the_bytes(path):
    assert file_sha256(path) == hashlib.sha256(DATA).hexdigest()


def test_an_empty_file_has_one_too(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert file_sha256(empty) == hashlib.sha256().hexdigest()
    assert list(hash_in_steps(empty)) == [(0, hashlib.sha256().hexdigest())]


def test_it_comes_in_steps(path):
    *steps, last = hash_in_steps(path)
    assert steps == [(1000, ""), (2000, ""), (2560, "")]
    assert last == (2560, hashlib.sha256(DATA).hexdigest())


def test_progress_is_shown_and_only_false_stops(path):
    seen = []
    file_sha256(path, lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2560), (2000, 2560), (2560, 2560)]
    with pytest.raises(Interrupted, match=r"hashing a\.bin was stopped"):
        file_sha256(path, lambda done, total: done < 2000)


def test_a_file_that_is_gone_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "gone")
