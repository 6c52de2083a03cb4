"""No message is lost or reworded unseen: what was said at commit f256706 is said today, or a table has the change.

tests/data/messages_at_f256706.json is what `python -m tools.message_list --json` printed there, before the files moved
into rooms.
"""

import ast
import json

import pytest
from conftest import ROOT

from tools.message_list import gone, messages, segments, templates

BEFORE = json.loads((ROOT / "tests" / "data" / "messages_at_f256706.json").read_text("utf-8"))
OPTION_REMOVED = "the option, which could do nothing but refuse, is gone: argparse says that there is none"
# Message of f256706: what is said instead, word by word, or why nothing has to be said any more.
REPLACED = {
    "--ckpt is not possible yet: this version makes pictures with its demo model only. Start without it; the VAE "
    "inside a checkpoint can be used by putting the file into models/VAE.": OPTION_REMOVED,
}
REASONS = {OPTION_REMOVED}


@pytest.fixture(scope="module")
def today() -> list[str]:
    return [message.text for message in messages(ROOT)]


def before() -> list[str]:
    return sorted({text for texts in BEFORE.values() for text in texts})


def test_both_lists_are_there(today):
    assert len(before()) > 600
    assert len(today) > 600
    assert "holds no VAE of its own" in "\n".join(today)


def test_every_message_is_still_said_or_replaced(today):
    assert [text for text in gone(before(), today) if text not in REPLACED] == []


def test_the_table_names_only_messages_that_are_gone_and_words_that_are_there(today):
    assert set(REPLACED) - set(gone(before(), today)) == set()
    assert gone([text for text in REPLACED.values() if text not in REASONS], today) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise VaeError(f'{name} is not a VAE; choose another.')", ["{} is not a VAE; choose another."]),
        ("say('one ' + kind + ' of ' f'{n} is enough')", ["one {} of {} is enough"]),
        (
            "def f():\n    'Nobody reads this sentence.'\n    return 'but this one here is read'",
            ["but this one here is read"],
        ),
        ("notify('Wrong, ' if x else 'two words')", []),
        ("LAYOUT = 'decoder.up.{i}.block'; WORDS = re.compile(r'no words \\d but a pattern')", []),
    ],
)
def test_messages_are_found_in_code(source, found):
    assert list(templates(ast.parse(source))) == found


@pytest.mark.parametrize(
    ("now", "is_gone"),
    [
        ("the file {} was refused: it is a LoRA", False),
        ("the file\nwas refused: it is a LoRA", False),  # put together from parts
        ("the file {} was refused: it is no VAE", True),
        ("{} is a LoRA", True),
    ],
)
def test_a_reworded_message_counts_as_gone(now, is_gone):
    assert bool(gone(["the file {} was refused: it is a LoRA"], now.split("\n"))) == is_gone


def test_what_is_compared_are_words():
    assert segments("{}: the file {} of 3 is damaged ({}).") == ["the file", "of 3 is damaged"]
