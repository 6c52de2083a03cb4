"""A1111's "parameters" text: written, read back, and read from whatever a file may hold."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_vae_kit.pictures.infotext import Infotext, build, parse, parse_fields

EXAMPLE = """\
a photograph of a cup, (steam:1.2)
on a table
Negative prompt: blurry,
low quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, VAE hash: 735e4c3a44, VAE: "a, b: c.safetensors", \
Denoising strength: 0.75, TI hashes: "easy: c74b4e810b, more: 1a", Version: v1.10.1"""

LINE = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n")).map(str.strip)
PROMPT = st.lists(LINE.filter(lambda line: not line.startswith("Negative prompt:"))).map(
    lambda ls: "\n".join(ls).strip()
)
KEY = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_ \-/]{0,20}[A-Za-z0-9_\-/]\Z")
VALUE = st.text(st.characters(blacklist_categories=("Cs",)))


def test_a_text_written_by_a1111_is_taken_apart():
    info = parse(EXAMPLE)
    assert info.prompt == "a photograph of a cup, (steam:1.2)\non a table"
    assert info.negative_prompt == "blurry,\nlow quality"
    assert list(info.fields)[:4] == ["Steps", "Sampler", "Schedule type", "CFG scale"]
    assert info.fields["Size"] == "512x768"
    assert info.fields["VAE"] == "a, b: c.safetensors"
    assert info.fields["TI hashes"] == "easy: c74b4e810b, more: 1a"
    assert info.fields["Version"] == "v1.10.1"


def test_the_same_text_is_written():
    info = parse(EXAMPLE)
    assert build(info.prompt, info.negative_prompt, info.fields) == EXAMPLE


def test_numbers_are_written_as_they_are():
    assert build("", "", {"Steps": 20, "CFG scale": 7.5, "Seed": -1}) == "Steps: 20, CFG scale: 7.5, Seed: -1"


@given(PROMPT, PROMPT, st.dictionaries(KEY, VALUE, min_size=3, max_size=8))
def test_what_was_built_is_parsed_back(prompt, negative_prompt, fields):
    assert parse(build(prompt, negative_prompt, fields)) == Infotext(prompt, negative_prompt, fields)


@given(st.text())
def test_any_text_can_be_parsed(text):
    info = parse(text)
    assert isinstance(info.prompt, str)
    assert parse(build(info.prompt, info.negative_prompt, info.fields)).fields == info.fields


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain name.safetensors", "plain name.safetensors"),
        ("a,b", '"a,b"'),
        ("C: drive", '"C: drive"'),
        ("two\nlines", '"two\\nlines"'),
        ('"quoted"', '"\\"quoted\\""'),
        (" outer spaces ", '" outer spaces "'),
        ("", '""'),
        ("Größe 図", "Größe 図"),
        ("back\\slash, comma", '"back\\\\slash, comma"'),
    ],
)
def test_values_are_quoted_where_they_would_be_cut(value, written):
    text = build("", "", {"Steps": 1, "VAE": value, "Seed": 2})
    assert text == f"Steps: 1, VAE: {written}, Seed: 2"
    assert parse(text).fields["VAE"] == value


@pytest.mark.parametrize("key", ["", "x", "a,b", "a:b", "line\nbreak", " VAE", "VAE "])
def test_a_key_that_could_not_be_read_back_is_refused(key):
    with pytest.raises(ValueError, match="infotext key"):
        build("", "", {key: 1})


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        ("only words, and more words", {}),
        ("(a) Steps: 20, junk, Seed: 1", {"Steps": "20", "Seed": "1"}),
        ('VAE: "never closed, Seed: 1', {"VAE": '"never closed', "Seed": "1"}),
        ('VAE: "bad \\q escape", Seed: 1', {"VAE": '"bad \\q escape"', "Seed": "1"}),
        ('VAE: "a" b, Seed: 1', {"VAE": '"a" b', "Seed": "1"}),
        ("Seed: 1, Seed: 2", {"Seed": "2"}),
        ("VAE:, Seed: 1", {"VAE": "", "Seed": "1"}),
        (",,:,::,", {}),
    ],
)
def test_damaged_fields_are_read_as_far_as_they_go(line, fields):
    assert parse_fields(line) == fields


def test_a_last_line_with_two_fields_belongs_to_the_prompt_as_in_a1111():
    assert parse("note: this, that: too") == Infotext("note: this, that: too")


@pytest.mark.parametrize("text", ["a" * 300_000, 'k:"' * 100_000, "a: " * 100_000, '"' * 300_000, "\\" * 300_000])
def test_long_garbage_is_read_in_linear_time(text):
    began = time.process_time()
    parse(text)
    assert time.process_time() - began < 2
