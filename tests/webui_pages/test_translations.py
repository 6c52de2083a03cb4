"""Every sentence that a page shows is built from parts, and every run of its words has a translation."""

import ast
import json
from collections.abc import Iterator
from itertools import product

import pytest
from conftest import ROOT
from fake_a1111 import FakeA1111, installed
from sentence_words import words_of

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.ui.catalogue_list import CONSENT
from sd_vae_kit.ui.catalogue_markup import HEADS
from sd_vae_kit.vaes.choice import resolve
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.gallery_row import SHOWN
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.rules import Rule
from sd_vae_kit.wording import Sentence

LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))
FOUND = [
    Finding("sdxl", "hash", "SDXL VAE 1.0"),
    Finding("sdxl", "weights", "mine"),
    Finding("sdxl", "metadata"),
    Finding("sdxl", "behaviour"),
    Finding("sdxl", "channels"),
    Finding("sd3|flux", "undecided"),
]
OFFERS = [(("plain.safetensors",), ""), ((), "SD VAE ft-MSE 840k"), ((), "")]


@pytest.fixture
def host(monkeypatch, tmp_path):
    with installed(FakeA1111(tmp_path), monkeypatch) as fake:
        from sd_vae_kit.webui import callbacks
        from sd_vae_kit.webui.running import running

        callbacks.register()
        fake.start()
        fake.load_model("anything-v5")
        yield running()


def sentences(host, monkeypatch):
    """Everything the guard, the rules and a paste can say."""
    checkpoint = Checkpoint(
        "anything-v5", host.library.entries[0].path.parent / "anything-v5.safetensors", FORMATS["sd1"]
    )
    entry = host.library.get("other.safetensors")
    for offers, finding in product(OFFERS, FOUND):
        monkeypatch.setattr(host.files.guard, "_offers", lambda family, offers=offers: offers)
        yield host.files.guard._wrong(entry, finding, checkpoint).message
        yield host.files.guard._impossible(entry, checkpoint).message
    monkeypatch.setattr(host.files.guard.finder, "find", lambda *args: Finding("sd1|sdxl", "undecided"))
    yield host.files.guard.check(entry, checkpoint, host.settings.guard).message
    view = type("View", (), {"settings": host.settings, "checkpoint": checkpoint, "forced_vae": None})()
    for rule in (Rule("plain"), Rule("None"), Rule("plain", family="sd1", runs=("hires", "picture"))):
        yield resolve(view, host.library, rules=[rule], run="hires").reason
    model = host.registry.loaded.current
    for parameter in model.first_stage_model.parameters():
        parameter.data.zero_()
    host.report._has_no_vae.look_at(model)
    yield from host.report.without_weights(checkpoint, host.registry.active(), model)
    monkeypatch.setattr(host.files.guard, "standard", lambda family: entry)
    yield host.switch._decider.decide(model.sd_checkpoint_info.filename).reason


def test_no_sentence_of_guard_and_rules_is_without_a_translation_or_has_a_name_among_its_words(host, monkeypatch):
    names = [*(entry.name for entry in host.library.entries), "anything-v5", "SD VAE ft-MSE 840k", "SDXL"]
    said = list(sentences(host, monkeypatch))
    assert len(said) > 35
    assert all(isinstance(text, Sentence) for text in said)
    words = set().union(*map(words_of, said))
    assert len(words) > 20
    for path in LANGUAGES:
        assert words - json.loads(path.read_text("utf-8")).keys() == set()
    assert not [(text, name) for text in words for name in names if name in text]


# --- every template in the source ------------------------------------------------------------------------------------


def assigned(tree: ast.AST, name: str) -> list[ast.expr]:
    """What a name is given anywhere in a module."""
    found = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found.append(node.value)
    return found


def literals(node: ast.expr, tree: ast.AST) -> Iterator[str]:
    """The texts that an expression can be: a literal, a choice of literals, or a name or table that holds some."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*literals(body, tree), *literals(orelse, tree))
        case ast.Dict(values=values):
            yield from (text for value in values for text in literals(value, tree))
        case ast.Subscript(value=table):
            yield from literals(table, tree)
        case ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, default]):
            yield from (*literals(table, tree), *literals(default, tree))
        case ast.Name(id=name):
            given = assigned(tree, name)
            assert given, f"{name} is no literal"
            yield from (text for value in given for text in literals(value, tree))
        case _:
            raise AssertionError(f"line {node.lineno}: {ast.unparse(node)} is no literal")


def templates(source: str) -> Iterator[str]:
    """The first argument of every `Sentence.of`."""
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    yield from (t for call in calls if ast.unparse(call.func) == "Sentence.of" for t in literals(call.args[0], tree))


def test_every_template_of_the_package_is_translated():
    """`Sentence.of` is given literals only, so that no name can stand among the words."""
    found = {text for path in (ROOT / "sd_vae_kit").rglob("*.py") for text in templates(path.read_text("utf-8"))}
    assert len(found) > 40
    words = {part.strip() for text in found for part in text.split("{}") if any(map(str.isalpha, part))}
    for path in LANGUAGES:
        translated = json.loads(path.read_text("utf-8"))
        assert words - translated.keys() == set(), path.name
        assert all(translated[text].strip() for text in words)


def test_a_template_that_is_no_literal_is_found():
    assert list(templates('WORDS = {"a": "{} is a", "b": "{} is b"}\nSentence.of(WORDS[x], n)')) == [
        "{} is a",
        "{} is b",
    ]
    assert list(templates('Sentence.of("yes {}" if a else "no {}", n)')) == ["yes {}", "no {}"]
    with pytest.raises(AssertionError):
        list(templates("Sentence.of(text)"))
    with pytest.raises(AssertionError):
        list(templates('Sentence.of(f"{name} is here.")'))


# --- pasting ---------------------------------------------------------------------------------------------------------


def test_what_a_paste_says_is_translated(host):
    from sd_vae_kit.webui.missing_vae import message
    from sd_vae_kit.webui.running import catalogue_service

    known = host.api.inspector.finder.catalogue.find("SDXL VAE 1.0")
    html = message(host, {"VAE": "<theirs>.pt", "VAE hash": known.sha256[:10]})
    assert "<b>&lt;theirs&gt;.pt</b>" in html
    assert 'data-vae-kit-entry="SDXL VAE 1.0"' in html
    host.library.sha256(host.library.get("plain.safetensors"))
    renamed = message(host, {"VAE": "plain.safetensors", "VAE hash": "0123456789"})
    assert "another file than the one of that name here" in renamed
    assert "data-vae-kit-entry" not in renamed
    assert message(host, {"VAE": "plain.safetensors"}) == message(host, {"VAE": "None"}) == message(host, {}) == ""
    _, line = catalogue_service().gallery.missing(known.sha256)
    assert words_of(line) <= json.loads(LANGUAGES[0].read_text("utf-8")).keys()
    assert line == f'The catalogue knows hash {known.sha256}: it is "SDXL VAE 1.0"; it can be installed.'


def test_a_pasted_hash_finds_the_file_under_its_name_here(host):
    from sd_vae_kit.webui.missing_vae import name_by_hash

    digits = host.library.sha256(host.library.get("plain.safetensors"))[:10]
    parameters = {"VAE": "theirs.pt", "VAE hash": digits}
    name_by_hash(host, parameters)
    assert parameters["VAE"] == "plain.safetensors"
    for untouched in ({"VAE": "theirs.pt", "VAE hash": "0123456789"}, {"VAE": "theirs.pt"}, {"VAE hash": digits}, {}):
        before = dict(untouched)
        name_by_hash(host, untouched)
        assert untouched == before


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_the_tabs_own_words_are_translated(path):
    translated = json.loads(path.read_text("utf-8"))
    own = {CONSENT, *SHOWN[2:], *HEADS[-2:]}
    assert own <= translated.keys()
