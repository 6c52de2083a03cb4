"""Sentences that know their parts."""

import copy
import json
import pickle
from dataclasses import asdict, dataclass

import pytest
from sentence_words import words_of

from sd_vae_kit.ui.markup import marked
from sd_vae_kit.wording import NOTHING, Piece, Sentence, pieces_of

SAID = Sentence.of("{} has {} channels; {}.", "a.pt", 16, Sentence.of("choose {}", "b.pt"))


def test_a_sentence_is_its_text():
    assert SAID == "a.pt has 16 channels; choose b.pt."
    assert json.dumps(SAID) == '"a.pt has 16 channels; choose b.pt."'
    assert str(ValueError(SAID)) == f"{SAID}" == "a.pt has 16 channels; choose b.pt."
    assert not NOTHING


def test_names_and_numbers_are_apart_from_words_and_a_nested_sentence_brings_its_own():
    assert [(piece.text, piece.is_words) for piece in SAID.pieces] == [
        ("a.pt", False),
        (" has ", True),
        ("16", False),
        (" channels; ", True),
        ("choose ", True),
        ("b.pt", False),
        (".", True),
    ]
    assert words_of(SAID) == {"has", "channels;", "choose"}
    assert pieces_of("plain") == (Piece("plain"),)


def test_a_name_with_braces_stays_a_name():
    assert Sentence.of("{} is here.", "{}{0}") == "{}{0} is here."


def test_names_are_joined_with_words():
    joined = Sentence.joined(" or ", ["a", "b", "c"])
    assert joined == "a or b or c"
    assert words_of(joined) == {"or"}


def test_too_few_values_are_a_mistake():
    with pytest.raises(TypeError, match="2 values"):
        Sentence.of("{} and {}", "a")
    with pytest.raises(TypeError, match="2 values"):
        Sentence.of("{} and {}", "a", "b", "c")


def test_copies_keep_the_pieces():
    @dataclass(frozen=True)
    class Holder:
        said: Sentence

    for again in (copy.deepcopy(SAID), pickle.loads(pickle.dumps(SAID)), asdict(Holder(SAID))["said"]):
        assert again == SAID
        assert again.pieces == SAID.pieces


def test_html_sets_names_apart_and_escapes_everything_and_keeps_spaces_outside_of_the_words():
    said = Sentence.of("{} has {} {} of <it>, {}.", "a.pt", 16, '"<x>"', "b")
    assert marked(said) == (
        "<b>a.pt</b> <span>has</span> <b>16</b> <b>&quot;&lt;x&gt;&quot;</b> <span>of &lt;it&gt;,</span> <b>b</b>."
    )
    assert marked("a <plain> text") == "a &lt;plain&gt; text"
