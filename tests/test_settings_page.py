"""docs/settings.md is made from the settings: every control is there, in its own words."""

import pytest
from conftest import ROOT

from sd_vae_kit.settings.job import JOB_SPECS
from sd_vae_kit.settings.repairs import REPAIR_SPECS
from sd_vae_kit.settings.sections import SECTION_TITLES, SPECS
from tools.settings_page import PAGE, page, shown, values

TEXT = PAGE.read_text("utf-8")
EVERY = [*SPECS, *REPAIR_SPECS, *JOB_SPECS]


def test_the_page_is_what_the_settings_say():
    assert page() == TEXT, "run `python -m tools.settings_page`"


def test_there_are_settings():
    assert len(EVERY) > 40


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.key)
def test_every_setting_is_explained_in_its_own_words(spec):
    assert f"| {spec.label} | {spec.help} |" in TEXT
    assert f"`{spec.name if spec.section == 'job' else spec.key}`" in TEXT
    assert shown(spec, spec.default) in TEXT


@pytest.mark.parametrize("spec", [spec for spec in EVERY if spec.control == "choice"], ids=lambda spec: spec.key)
def test_every_choice_is_named_as_it_is_shown_and_as_it_is_saved(spec):
    assert len(spec.choices) > 1
    for choice in spec.choices:
        assert choice.label in values(spec)
        assert choice.identifier in values(spec)


def test_every_section_has_its_heading():
    assert all(f"## {title}\n" in TEXT for title in (*SECTION_TITLES.values(), "Repairs", "One job"))


def test_the_page_is_linked_from_the_readme():
    assert "(docs/settings.md)" in (ROOT / "README.md").read_text("utf-8")
