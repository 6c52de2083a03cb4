"""The README says what is true: its tables come from the settings, its pictures exist, its links lead somewhere."""

import re
import sys

import pytest
from conftest import ROOT

from sd_vae_kit.settings.repairs import repair_specs
from sd_vae_kit.settings.sections import SECTION_TITLES, Spec, specs
from sd_vae_kit.webui.job_settings import job_specs

README = (ROOT / "README.md").read_text("utf-8")
ORDER = ("# VAE Kit", "## Install into A1111 or Forge", "## Try it alone", "## Test", "## What each control does")


def row(spec: Spec) -> str:
    """A setting's line in the README; to update the README, run `python tests/test_readme.py` and paste."""
    return f"| {spec.label}{f' ({spec.unit})' if spec.unit else ''} | {spec.help} |"


@pytest.mark.parametrize("spec", [*specs(), *repair_specs(), *job_specs()], ids=lambda spec: spec.key)
def test_every_setting_is_explained_in_its_own_words(spec):
    assert row(spec) in README


def test_every_section_of_settings_has_its_heading():
    assert all(f"**{title}**" in README for title in SECTION_TITLES.values())


def test_a_newcomer_reads_it_in_this_order():
    places = [README.index(heading) for heading in (*ORDER, "## Troubleshooting")]
    assert places == sorted(places)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", README))))
def test_every_link_and_picture_is_there(target):
    if "://" not in target:
        assert (ROOT / target).is_file()


def test_pictures_are_small_enough_to_load():
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 400_000] == []


if __name__ == "__main__":
    for title, listed in (
        *((title, [s for s in specs() if s.section == name]) for name, title in SECTION_TITLES.items()),
        ("Repairs", list(repair_specs())),
        ("Panel", list(job_specs())),
    ):
        lines = (f"\n**{title}**\n", "| setting | what it does |", "|---|---|", *map(row, listed))
        sys.stdout.write("\n".join(lines) + "\n")
