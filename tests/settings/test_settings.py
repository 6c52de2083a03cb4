"""Settings as data, and the store that keeps them."""

import dataclasses
import json
import stat
import sys
import threading

import pytest

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.sections import (
    SECTION_TITLES,
    SPEC_BY_KEY,
    SPECS,
    Settings,
    settings_from,
    spec_of,
    to_values,
    with_values,
)
from sd_vae_kit.settings.store import SettingsStore


def test_every_setting_has_a_sentence_a_unique_key_and_a_default_within_its_own_limits():
    keys = [spec.key for spec in SPECS]
    assert len(keys) == len(set(keys))
    for spec in SPECS:
        assert spec.help.endswith("."), spec.key
        assert len(spec.help) > 20, spec.key
        assert spec.check(spec.default) == spec.default, spec.key
        assert spec.control != "choice" or spec.choices, spec.key
        assert spec.control != "slider" or None not in (spec.minimum, spec.maximum, spec.step), spec.key


def test_every_section_has_a_title():
    assert set(SECTION_TITLES) == {section.name for section in dataclasses.fields(Settings)}


def test_values_and_settings_are_the_same_thing():
    changed = with_values(Settings(), {"sd_vae": "x.safetensors", "vae_kit_preview_every_steps": 3})
    assert changed.vae.sd_vae == "x.safetensors"
    assert with_values(Settings(), to_values(changed)) == changed


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vae_kit_preview_every_steps", 0, "between 1 and 20"),
        ("vae_kit_preview_every_steps", 2.5, "whole number"),
        ("vae_kit_preview_every_steps", "3", "needs a number"),
        ("vae_kit_preview_every_steps", True, "needs a number"),
        ("vae_kit_preview_every_steps", float("nan"), "needs a number"),
        ("vae_kit_preview_method", "fast", "taesd, linear, off"),
        ("vae_kit_saving_save_images", 1, "on or off"),
        ("sd_vae", 5, "needs text"),
        ("no_such_key", 5, "no setting 'no_such_key'"),
    ],
)
def test_a_wrong_value_is_refused_with_one_line_and_nothing_changes(tmp_path, key, value, words):
    store = SettingsStore(tmp_path / "settings.json")
    store.update({"sd_vae": "a.safetensors"})
    before = store.path.read_bytes()
    with pytest.raises(SettingError, match=words) as caught:
        store.update({"sd_vae": "b.safetensors", key: value})
    assert "\n" not in str(caught.value)
    assert store.settings.vae.sd_vae == "a.safetensors"
    assert store.path.read_bytes() == before


def test_a_whole_float_from_a_slider_becomes_an_int():
    assert with_values(Settings(), {"vae_kit_preview_every_steps": 4.0}).preview.every_steps == 4
    assert isinstance(spec_of("vae_kit_preview_every_steps").check(4.0), int)


def test_changes_survive_a_restart(tmp_path):
    path = tmp_path / "deep" / "settings.json"
    SettingsStore(path).update({"sd_vae": "ä b.safetensors"})
    assert SettingsStore(path).settings.vae.sd_vae == "ä b.safetensors"
    assert [p.name for p in path.parent.iterdir()] == ["settings.json"], "no temporary file is left"


def test_unknown_keys_are_kept_and_unfit_values_fall_back_with_a_warning(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"from_the_future": [1], "vae_kit_preview_every_steps": 99, "sd_vae": "a"}), "utf-8")
    store = SettingsStore(path)
    assert store.settings.preview.every_steps == 1
    assert "between 1 and 20" in store.warnings[0]
    store.update({"sd_vae": "b"})
    stored = json.loads(path.read_text("utf-8"))
    assert (stored["from_the_future"], stored["sd_vae"]) == ([1], "b")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_broken_file_is_set_aside_and_said(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    store = SettingsStore(path)
    assert store.settings == Settings()
    assert "settings.json.broken" in store.warnings[0]
    assert (tmp_path / "settings.json.broken").read_bytes() == content
    store.update({"sd_vae": "a"})
    assert SettingsStore(path).warnings == []


def test_a_folder_that_cannot_be_written_is_an_error_and_values_stay(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = SettingsStore(blocked / "settings.json")
    with pytest.raises(SettingError, match="not saved"):
        store.update({"sd_vae": "a"})
    assert store.settings == Settings()


def test_two_programs_keep_each_others_changes(tmp_path):
    first, second = SettingsStore(tmp_path / "settings.json"), SettingsStore(tmp_path / "settings.json")
    first.update({"sd_vae": "a"})
    second.update({"vae_kit_preview_every_steps": 5})
    assert second.settings == with_values(Settings(), {"sd_vae": "a", "vae_kit_preview_every_steps": 5})


def test_a_mistake_of_another_program_is_said_and_does_not_stop_a_change(tmp_path):
    store = SettingsStore(tmp_path / "settings.json")
    store.update({"sd_vae": "a"})
    store.path.write_text(json.dumps({"vae_kit_preview_every_steps": 99, "sd_vae": "b"}), "utf-8")
    assert store.update({"vae_kit_saving_folder": "y"}).vae.sd_vae == "b"
    assert store.warnings == [
        'settings.json: "Preview every N steps" is 99; it must lie between 1 and 20. The default is used.'
    ]


def test_threads_do_not_lose_each_others_changes(tmp_path):
    store = SettingsStore(tmp_path / "settings.json")
    changes = [{"sd_vae": "x"}, {"vae_kit_preview_every_steps": 7}, {"vae_kit_saving_folder": "y"}]
    threads = [threading.Thread(target=store.update, args=(change,)) for change in changes * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = with_values(Settings(), {k: v for change in changes for k, v in change.items()})
    assert store.settings == expected == SettingsStore(store.path).settings


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_new_file_is_for_its_owner_only_and_a_file_keeps_its_permissions(tmp_path):
    store = SettingsStore(tmp_path / "settings.json")
    store.update({"vae_kit_download_proxy": "http://user:password@proxy:3128"})
    assert stat.S_IMODE(store.path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR
    store.path.chmod(0o640)
    store.update({"sd_vae": "a"})
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o640


def test_the_table_of_settings_is_made_once_and_every_section_once_for_a_read(monkeypatch):
    made = []
    original = dataclasses.replace
    monkeypatch.setattr(dataclasses, "replace", lambda value, **new: made.append(type(value)) or original(value, **new))
    values = to_values(with_values(Settings(), {"sd_vae": "x"}))
    made.clear()
    settings = settings_from(values, lambda spec, error: pytest.fail(str(error)))
    assert settings.vae.sd_vae == "x"
    assert len(made) == len(SECTION_TITLES) + 1
    assert set(SPEC_BY_KEY) == {spec.key for spec in SPECS}
