"""One value in one JSON file: what becomes of damaged files, folders that cannot be written, and two writers."""

import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from sd_vae_kit.state import json_store, locks
from sd_vae_kit.state.json_store import JsonFormat, JsonStore


def decoded(content):
    numbers = content["numbers"]
    if not all(isinstance(number, int) for number in numbers.values()):
        raise TypeError("not a number")
    return dict(numbers)


FORM = JsonFormat(decoded, lambda numbers: {"numbers": numbers}, dict, version=("format", 1))
ASIDE = JsonFormat(
    decoded,
    lambda numbers: {"numbers": numbers},
    dict,
    damaged="{path} could not be read ({error}); the old file is {kept}.",
    sets_aside=True,
    indent=2,
)
DAMAGED = {
    "empty": "",
    "half a file": '{"format": 1, "numbers": {"a": 1',
    "not an object": "[1, 2]",
    "nothing": "null",
    "a key is missing": '{"format": 1}',
    "no version": '{"numbers": {"a": 1}}',
    "a wrong type": '{"format": 1, "numbers": {"a": "one"}}',
    "another wrong type": '{"format": 1, "numbers": 7}',
    "nested too deep": '{"format": 1, "numbers": ' + "[" * 100_000,
    "not UTF-8": b'{"format": 1, "numbers": {"\xff": 1}}',
}


def put(key, number):
    return lambda numbers: {**numbers, key: number}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "numbers.json"


def files_beside(path):
    return sorted(item.name for item in path.parent.iterdir())


def written(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_without_a_file_the_value_is_empty_and_no_file_appears(path):
    assert JsonStore(path, FORM).value == {}
    assert not path.parent.exists()


def test_a_change_is_there_after_a_restart_and_nothing_else_is_in_the_folder(path):
    store = JsonStore(path, FORM)
    assert store.update(put("a", 1)) == store.value == {"a": 1}
    assert JsonStore(path, FORM).value == {"a": 1}
    assert json.loads(path.read_text()) == {"format": 1, "numbers": {"a": 1}}
    assert files_beside(path) == ["numbers.json"]


def test_without_a_path_it_remembers_as_long_as_it_lives():
    store = JsonStore(None, FORM)
    assert store.remember(put("a", 1))
    assert store.reload() == {"a": 1}
    store.clear()
    assert store.value == {}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_warning_and_is_written_anew(path, content, caplog):
    written(path, content)
    store = JsonStore(path, FORM)
    assert store.value == store.reload() == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "said once"
    assert caplog.messages[0].startswith(f"the cache {path} is damaged and is made anew: ")
    assert "\n" not in caplog.messages[0]
    store.update(put("a", 1))
    assert JsonStore(path, FORM).value == {"a": 1}


@pytest.mark.parametrize("content", [text for name, text in DAMAGED.items() if name != "no version"])
def test_a_damaged_file_of_the_user_is_set_aside(path, content):
    written(path, content)
    warnings = []
    store = JsonStore(path, ASIDE, warnings.append)
    assert store.value == {}
    assert len(warnings) == 1
    assert warnings[0].endswith("the old file is numbers.json.broken.")
    kept = path.with_name("numbers.json.broken")
    assert kept.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    store.update(put("a", 1))
    assert files_beside(path) == ["numbers.json", "numbers.json.broken"]


def test_a_file_of_another_version_counts_as_not_there(path, caplog):
    written(path, '{"format": 2, "figures": []}')
    store = JsonStore(path, FORM)
    assert store.value == {}
    assert not caplog.records
    store.update(put("a", 1))
    assert JsonStore(path, FORM).value == {"a": 1}


def test_a_mark_at_the_beginning_does_no_harm(path):
    written(path, b"\xef\xbb\xbf" + b'{"format": 1, "numbers": {"a": 1}}')
    assert JsonStore(path, FORM).value == {"a": 1}


def test_names_that_are_no_text_are_kept(path):
    name = os.fsdecode(b"\xff.safetensors") if sys.platform != "win32" else "\udcff.safetensors"
    JsonStore(path, FORM).update(put(name, 1))
    assert JsonStore(path, FORM).value == {name: 1}


def failing(*args, **kwargs):
    raise OSError(errno.EIO, "the disk failed")


def test_a_file_that_cannot_be_read_is_a_warning(path, monkeypatch, caplog):
    written(path, '{"format": 1, "numbers": {"a": 1}}')
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", failing)
        store = JsonStore(path, FORM)
        assert store.value == {}
    assert "the disk failed" in caplog.text
    assert path.exists()


def test_a_file_that_cannot_be_looked_at_leaves_what_is_known_and_warns_once(path, monkeypatch, caplog):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    monkeypatch.setattr(json_store.FileStamp, "of", failing)
    assert store.reload() == store.reload() == {"a": 1}
    assert len(caplog.records) == 1


@pytest.fixture
def unwritable(tmp_path):
    """A folder that nobody can write to, root included."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "numbers.json"


def test_a_change_that_cannot_be_written_is_an_error_and_not_made(unwritable):
    store = JsonStore(unwritable, FORM)
    with pytest.raises(OSError, match=r"file"):
        store.update(put("a", 1))
    assert store.value == {}


def test_what_cannot_be_written_is_remembered_and_logged(unwritable, caplog):
    store = JsonStore(unwritable, FORM)
    assert not store.remember(put("a", 1))
    assert store.value == {"a": 1}
    assert "cannot be written" in caplog.text


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(path):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            store.update(put("a", 2))
    finally:
        path.parent.chmod(0o700)
    assert JsonStore(path, FORM).value == {"a": 1}


def test_a_full_disk_leaves_the_old_file(path, monkeypatch, caplog):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    original = Path.write_text

    def half(self, text, *args):
        original(self, text[:5], *args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match=r"No space left"):
        store.update(put("a", 2))
    assert store.value == {"a": 1}
    assert files_beside(path) == ["numbers.json"]
    assert not store.remember(put("a", 2))
    assert store.value == {"a": 2}
    monkeypatch.setattr(Path, "write_text", original)
    assert store.remember(put("b", 3))
    assert "No space left" in caplog.text


def test_an_error_in_the_change_changes_nothing(path):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    with pytest.raises(ZeroDivisionError):
        store.update(lambda numbers: {"a": 1 // 0})
    assert JsonStore(path, FORM).value == store.value == {"a": 1}
    assert files_beside(path) == ["numbers.json"]


def test_a_value_that_is_not_json_leaves_the_old_file(path):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    with pytest.raises(TypeError):
        store.update(put("b", {1}))
    assert JsonStore(path, FORM).value == store.value == {"a": 1}


def test_two_stores_keep_each_others_changes(path):
    first, second = JsonStore(path, FORM), JsonStore(path, FORM)
    first.update(put("a", 1))
    assert second.value == {}, "it has not looked"
    assert second.update(put("b", 2)) == {"a": 1, "b": 2}
    assert first.value == {"a": 1}
    assert first.reload() == {"a": 1, "b": 2}


def test_a_file_that_is_deleted_is_an_empty_value(path):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    path.unlink()
    assert store.value == {"a": 1}, "it has not looked"
    assert store.update(put("b", 2)) == {"b": 2}
    store.clear()
    assert store.value == {}
    assert not path.exists()
    store.clear()


def test_a_file_that_another_program_damages_leaves_what_is_known(path, caplog):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    path.write_text("half")
    assert store.update(put("b", 2)) == {"a": 1, "b": 2}
    assert JsonStore(path, FORM).value == {"a": 1, "b": 2}
    assert len(caplog.records) == 1


def test_an_unchanged_file_is_not_read_again(path, monkeypatch):
    store = JsonStore(path, FORM)
    store.update(put("a", 1))
    monkeypatch.setattr(Path, "read_text", failing)
    assert store.reload() == {"a": 1}
    assert store.update(put("b", 2)) == {"a": 1, "b": 2}


def test_threads_lose_nothing(path):
    store = JsonStore(path, FORM)

    def work(name):
        for number in range(20):
            store.update(put(f"{name}{number}", number))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(JsonStore(path, FORM).value) == 80


WRITER = """
    import sys
    from pathlib import Path
    from sd_vae_kit.state.json_store import JsonFormat, JsonStore
    form = JsonFormat(lambda content: content["numbers"], lambda numbers: {"numbers": numbers}, dict)
    store = JsonStore(Path(sys.argv[1]), form)
    for number in range(60):
        store.update(lambda numbers: {**numbers, f"{sys.argv[2]}{number}": number})
    print("done")
"""


def test_two_programs_lose_nothing(path):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for writer in writers:
        out, err = writer.communicate(timeout=60)
        assert (out, err, writer.returncode) == ("done\n", "", 0)
    assert len(json.loads(path.read_text())["numbers"]) == 120
    assert files_beside(path) == ["numbers.json"]


def test_a_program_that_stopped_with_the_lock_does_not_stop_the_others(path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.05)
    path.parent.mkdir()
    tried = []
    original = locks.take
    monkeypatch.setattr(locks, "take", lambda descriptor: tried.append(descriptor) or original(descriptor))
    with locks.locked(path):
        JsonStore(path, FORM).update(put("a", 1))
    assert len(tried) > 1
    assert JsonStore(path, FORM).value == {"a": 1}
    assert files_beside(path) == ["numbers.json"]


def test_a_file_system_without_locks_is_written_all_the_same(path, monkeypatch):
    def no_locks(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "take", no_locks)
    JsonStore(path, FORM).update(put("a", 1))
    assert JsonStore(path, FORM).value == {"a": 1}
