"""The README is short, in a newcomer's order, and what it links to is there."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
MOST_WORDS, MOST_BYTES = 1300, 400_000
ORDER = (
    "# VAE Kit",
    "## What it does, in three pictures",
    "## What ran where",
    "## Install into a web UI",
    "## Try it alone",
    "## Test",
    "## Where to read on",
    "## Troubleshooting",
)


def section(heading: str) -> str:
    return re.split(r"^## ", README, flags=re.MULTILINE)[[*ORDER].index(heading)]


def test_it_can_be_read_in_a_few_minutes():
    assert len(README.split()) <= MOST_WORDS


def test_a_newcomer_reads_it_in_this_order():
    places = [README.index(heading) for heading in ORDER]
    assert places == sorted(places)


def test_it_says_what_it_does_in_three_pictures():
    assert len(re.findall(r"!\[[^\]]+\]\(docs/images/", section(ORDER[1]))) == 3
    assert README.count("![") == 3


def test_what_never_ran_is_said_first():
    rows = [line for line in section(ORDER[2]).splitlines() if line.startswith("| ")]
    assert "never" in rows[1]
    assert not any("never" in row for row in rows[2:])


def test_first_success_takes_four_lines_and_troubleshooting_ten():
    assert re.findall(r"^(\d)\. ", section(ORDER[3]), flags=re.MULTILINE) == ["1", "2", "3", "4"]
    rows = [line for line in section(ORDER[7]).splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 10


def test_pictures_are_small_enough_to_load():
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert len(pictures) > 10
    assert [picture.name for picture in pictures if picture.stat().st_size > MOST_BYTES] == []


def test_every_picture_is_shown_somewhere():
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert [picture.name for picture in (ROOT / "docs" / "images").iterdir() if picture.name not in pages] == []
