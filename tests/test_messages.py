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
    # the app always knows the files of its library, which say what to install
    "There is no TAESD encoder for {} here; choose {}.": "There is no TAESD {} for {} here; {}.",
    # descriptions of the HTTP API, which are sentences now
    '"sd1", "sdxl", "sd3", "flux" ...; "sd1|sdxl" where undecided': (
        'The model family: "sd1", "sdxl", "sd3", "flux", "flux2" or "sana". It is "sd1|sdxl" if the file does not say '
        "which of the two."
    ),
    '"whole", or in bands: "stream", "stream-lean", "stream-host"': (
        '"whole" if the picture was processed at once; "stream", "stream-lean" or "stream-host" if it was processed in '
        "bands to save memory. The result is the same."
    ),
    "bands of the layer that was cut into most of them": (
        "The number of bands in the layer that was cut into most of them."
    ),
    "base64 of a PNG": "A PNG file in base64.",
    "base64 of a PNG, JPEG, WebP ... file": ("The picture file (PNG, JPEG, WebP or another common format) in base64."),
    "base64 of a safetensors file as `encode` gives it": "A safetensors file in base64, such as /encode returns.",
    "base64 of a safetensors file with the tensor `latent` and its metadata": (
        "A safetensors file in base64, with one tensor named `latent` and the metadata that /decode uses."
    ),
    "how the last picture was decoded": "How the last picture was {}: plan, bands, memory in MiB, time in seconds.",
    "how the last picture was encoded": "How the last picture was {}: plan, bands, memory in MiB, time in seconds.",
    "latent space, where the file does not tell": (
        'The model family whose latent space you want, such as "sdxl", if the file does not say it.'
    ),
    "name in the list": "The name of the VAE file, as /list gives it; the ending may be left out.",
    "why the file cannot be used; empty if it can": "Why the file cannot be used. Empty if it can.",
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
