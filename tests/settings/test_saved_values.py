"""Values are identifiers, labels are texts: what earlier versions saved is read, and a label may be reworded."""

import dataclasses
import json

import pytest

from sd_vae_kit.errors import SettingError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.settings import job, sections
from sd_vae_kit.settings.job import JOB_SPECS, JobChoices, JobTiling, job_from
from sd_vae_kit.settings.sections import SPEC_BY_KEY, SPECS, Settings, to_values, with_values
from sd_vae_kit.settings.spec import Choice
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone import paste
from sd_vae_kit.standalone.job import Img2Img, make_job

# What version 0.1 wrote for each choice, and its identifier now.
OLD_SETTINGS = {
    "sd_vae_encode_method": {"Full": "Full", "TAESD": "TAESD"},  # the host's own words
    "sd_vae_decode_method": {"Full": "Full", "TAESD": "TAESD"},
    "vae_kit_preview_method": {"TAESD": "taesd", "linear": "linear", "off": "off"},
    "vae_kit_download_http": {"never": "never", "loopback": "loopback", "always": "always"},
    "vae_kit_guard_wrong_family": {"warn": "warn", "refuse": "refuse", "off": "off"},
    "vae_kit_tiling_mode": {"Auto": "auto", "Always stream": "stream"},
    "vae_kit_precision_mode": {"Automatic": "auto", "Always fp32": "fp32", "Never": "never"},
}
OLD_JOB = {
    "tiling": {"As in Settings": "as_set", "Auto": "auto", "Always stream": "stream", "Off": "off"},
    "tiling_parts": {
        "As in Settings": "as_set",
        "Encode and decode": "both",
        "Encode only": "encode",
        "Decode only": "decode",
    },
}
SETTING_ROWS = [(key, old, new) for key, values in OLD_SETTINGS.items() for old, new in values.items()]
JOB_ROWS = [(name, old, new) for name, values in OLD_JOB.items() for old, new in values.items()]
WITH_CHOICES = [spec for spec in (*SPECS, *JOB_SPECS) if spec.choices]


def test_the_rows_are_all_choices_there_are():
    assert {spec.key for spec in SPECS if spec.choices} == OLD_SETTINGS.keys()
    assert {spec.name for spec in JOB_SPECS if spec.choices} == OLD_JOB.keys()
    for spec in WITH_CHOICES:
        old = OLD_SETTINGS.get(spec.key) or OLD_JOB[spec.name]
        assert sorted(spec.identifiers) == sorted(old.values()), spec.key


@pytest.mark.parametrize("spec", WITH_CHOICES, ids=lambda spec: spec.key)
def test_no_text_of_a_choice_means_two_things(spec):
    meanings = {}
    for text, identifier in [
        *spec.formerly.items(),
        *spec.labelled_choices,
        *((identifier, identifier) for identifier in spec.identifiers),
    ]:
        meanings.setdefault(text.casefold(), set()).add(identifier)
    assert all(len(found) == 1 for found in meanings.values()), meanings
    assert set(spec.formerly.values()) <= set(spec.identifiers)


@pytest.mark.parametrize(("key", "old", "new"), SETTING_ROWS)
def test_an_old_value_in_a_settings_file_is_read_and_its_identifier_is_written(tmp_path, key, old, new):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({key: old}), "utf-8")
    store = SettingsStore(path)
    assert store.warnings == []
    assert to_values(store.settings)[key] == new
    store.update({})
    assert json.loads(path.read_text("utf-8"))[key] == new


@pytest.mark.parametrize(("key", "old", "new"), SETTING_ROWS)
def test_an_old_value_may_still_be_set(key, old, new):
    assert to_values(with_values(Settings(), {key: old})) == to_values(with_values(Settings(), {key: new}))
    assert SPEC_BY_KEY[key].check(old.upper()) == new, "letter case aside"


@pytest.mark.parametrize(("name", "old", "new"), JOB_ROWS)
def test_an_old_value_in_a_request_is_read(name, old, new):
    expected = JobChoices(tiling=JobTiling(**{name: new}))
    names = [spec.name for spec in JOB_SPECS]
    assert job_from([{name: old}]) == expected, "by name"
    assert job_from([None] * names.index(name) + [old]) == expected, "by place"
    assert job_from([], {name: old}) == expected, "from a cell of the X/Y/Z plot"
    assert getattr(make_job(Img2Img, {name: old, "picture": "a.png"}), name) == new, "from a form"
    assert getattr(dataclasses.replace(Img2Img(), **{name: old}).job_tiling, name) == new


@pytest.mark.parametrize(("name", "old", "new"), JOB_ROWS)
def test_an_old_picture_is_pasted(name, old, new):
    key = next(spec.infotext for spec in JOB_SPECS if spec.name == name)
    values, notes = paste.values_of(infotext.parse(f"a cat\nSteps: 2, Seed: 7, {key}: {old}"))
    assert (values[name], notes) == (new, [])


@pytest.mark.parametrize(("name", "new"), [(name, new) for name, _, new in JOB_ROWS])
def test_a_new_picture_holds_identifiers_and_is_pasted(name, new):
    written = job_from([{name: new}]).infotext()
    key = next(spec.infotext for spec in JOB_SPECS if spec.name == name)
    assert written == ({} if new == "as_set" else {key: new})
    text = "a cat\nSteps: 2, Seed: 7, Size: 64x64" + "".join(f", {key}: {value}" for key, value in written.items())
    values, notes = paste.values_of(infotext.parse(text))
    assert (values[name], notes) == (new, [])


def reworded(spec):
    """Every label is another text."""
    choices = tuple(Choice(identifier, f"In other words, {label}") for identifier, label in spec.choices)
    return dataclasses.replace(spec, choices=choices)


def swapped(spec):
    """Labels changed places: an old text now is another choice's label."""
    labels = [label for _, label in spec.choices]
    pairs = zip(spec.choices, [*labels[1:], labels[0]], strict=True)
    return dataclasses.replace(spec, choices=tuple(Choice(choice.identifier, label) for choice, label in pairs))


@pytest.fixture(params=[reworded, swapped])
def other_labels(request, monkeypatch):
    """Every label of every setting and job choice is reworded, for the readers as for the panels."""
    change = request.param
    specs = tuple(change(spec) if spec.choices else spec for spec in SPECS)
    monkeypatch.setattr(sections, "SPECS", specs)
    monkeypatch.setattr(sections, "SPEC_BY_KEY", {spec.key: spec for spec in specs})
    tiling = tuple(change(spec) if spec.choices else spec for spec in job.TILING_SPECS)
    monkeypatch.setattr(job, "TILING_SPECS", tiling)
    monkeypatch.setattr(job, "JOB_SPECS", (*job.VAE_SPECS, *tiling))
    monkeypatch.setattr(paste, "TILING_SPECS", tiling)
    return {spec.key: dict(spec.choices) for spec in (*specs, *tiling)}


@pytest.mark.parametrize("is_old", [True, False])
def test_a_reworded_label_breaks_no_saved_configuration(tmp_path, other_labels, is_old):
    for key, values in OLD_SETTINGS.items():
        for old, new in values.items():
            assert other_labels[key][new] not in (old, new) or len(values) == 1, "the label did change"
            path = tmp_path / f"{key} {new}.json"
            path.write_text(json.dumps({key: old if is_old else new}), "utf-8")
            store = SettingsStore(path)
            assert (to_values(store.settings)[key], store.warnings) == (new, [])


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize(("name", "old", "new"), JOB_ROWS)
def test_a_reworded_label_breaks_no_request_and_no_picture(other_labels, name, old, new, is_old):
    given = old if is_old else new
    assert getattr(job_from([{name: given}]).tiling, name) == new
    key = next(spec.infotext for spec in JOB_SPECS if spec.name == name)
    values, notes = paste.values_of(infotext.parse(f"a cat\nSteps: 2, Seed: 7, {key}: {given}"))
    assert (values[name], notes) == (new, [])


def test_what_was_never_a_value_is_refused_and_the_identifiers_are_named():
    with pytest.raises(SettingError, match=r"cannot be 'Sometimes'; choose one of as_set, auto, stream, off\."):
        job_from([{"tiling": "Sometimes"}])
