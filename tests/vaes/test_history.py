"""Which checkpoints were used with which VAE."""

import json
from pathlib import Path

import pytest

from sd_vae_kit.vaes import history
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.history import History


def entry(name="a.safetensors", sha256="ab" * 32):
    return Entry(name=name, path=Path("/vaes") / name, size=1, mtime_ns=2, state="ok", sha256=sha256)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "data" / "history.json"


def test_the_latest_comes_first_and_survives_a_restart(file):
    days = iter(["2026-11-20", "2026-11-21", "2026-11-22"])
    first = History(file, lambda: next(days))
    for checkpoint in ("one", "two", "one"):
        first.note(entry(), checkpoint)
    assert History(file).checkpoints_of(Path("/vaes/a.safetensors"), None) == ("one", "two")
    assert json.loads(file.read_text("utf-8"))["version"] == 1


def test_a_file_that_moved_is_recognised_by_its_hash(file):
    History(file).note(entry(), "one")
    assert History(file).checkpoints_of(Path("/elsewhere/b.safetensors"), "ab" * 32) == ("one",)
    assert History(file).checkpoints_of(Path("/elsewhere/b.safetensors"), "cd" * 32) == ()
    assert History(file).checkpoints_of(Path("/elsewhere/b.safetensors"), None) == ()


def test_a_pair_is_written_once_a_day(file):
    uses = History(file, lambda: "2026-11-22")
    uses.note(entry(), "one")
    stamp = file.stat().st_mtime_ns, file.stat().st_ino
    uses.note(entry(), "one")
    uses.note(entry(sha256=None), "one")  # not hashed yet after a restart
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == stamp


def test_the_oldest_pairs_are_forgotten(file, monkeypatch):
    monkeypatch.setattr(history, "KEPT", 3)
    uses = History(file)
    for checkpoint in "abcde":
        uses.note(entry(), checkpoint)
    assert uses.checkpoints_of(entry().path, None) == ("e", "d", "c")


def test_it_may_be_deleted_at_any_time(file):
    uses = History(file)
    uses.note(entry(), "one")
    file.unlink()
    assert uses.checkpoints_of(entry().path, None) == ()
    uses.note(entry(), "two")
    assert History(file).checkpoints_of(entry().path, None) == ("two",)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "uses": []}', '{"version": 1, "uses": [{"vae": 1}]}', '{"version": 1}']
)
def test_a_damaged_file_is_made_anew(file, text):
    file.parent.mkdir()
    file.write_text(text, "utf-8")
    uses = History(file)
    assert uses.checkpoints_of(entry().path, None) == ()
    uses.note(entry(), "one")
    assert History(file).checkpoints_of(entry().path, None) == ("one",)


def test_a_folder_that_cannot_be_written_is_only_logged(tmp_path, caplog):
    (tmp_path / "data").write_text("a file")
    uses = History(tmp_path / "data" / "history.json")
    uses.note(entry(), "one")
    assert "cannot be written" in caplog.text
