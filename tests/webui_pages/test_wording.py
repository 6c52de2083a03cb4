"""Sentences of the guard and of the rules come in pieces, and every piece has its translation."""

import json
from itertools import product

import pytest
from conftest import ROOT
from fake_a1111 import FakeA1111, installed

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.ui import catalogue_tab
from sd_vae_kit.vaes.choice import resolve
from sd_vae_kit.vaes.guard import Finding
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.rules import Rule

LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))
PUNCTUATION = {".", ",", "", "(", ")"}
FOUND = [
    Finding("sdxl", "hash", "SDXL VAE 1.0"),
    Finding("sdxl", "weights", "mine"),
    Finding("sdxl", "file"),
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
        monkeypatch.setattr(host.guard, "_offers", lambda family, offers=offers: offers)
        yield host.guard._wrong(entry, finding, checkpoint).message
        yield host.guard._impossible(entry, checkpoint).message
    monkeypatch.setattr(host.guard, "identify", lambda *args: Finding("sd1|sdxl", "undecided"))
    yield host.guard.check(entry, checkpoint, host.settings.guard).message
    view = type("View", (), {"settings": host.settings, "checkpoint": checkpoint, "forced_vae": None})()
    for rule in (Rule("plain"), Rule("None"), Rule("plain", family="sd1", runs=("hires", "picture"))):
        yield resolve(view, host.library, rules=[rule], run="hires").reason
    model = host.model
    host._blank.add(model)
    yield from host._without_weights(checkpoint, host.active(), model)
    monkeypatch.setattr(host.guard, "standard", lambda family: entry)
    yield host.decide(model.sd_checkpoint_info.filename).reason


def test_no_piece_is_without_a_translation(host, monkeypatch):
    from sd_vae_kit.webui.wording import pieces

    names = [*(entry.name for entry in host.library.entries), "anything-v5"]
    said = list(sentences(host, monkeypatch))
    assert len(said) > 35
    words = {part.strip() for text in said for tag, part in pieces(text, names) if tag == "span"} - PUNCTUATION
    for path in LANGUAGES:
        assert words - json.loads(path.read_text("utf-8")).keys() == set()


def test_what_a_paste_says_is_translated(host):
    from sd_vae_kit.webui.missing_vae import message
    from sd_vae_kit.webui.wording import pieces

    known = host.known.find("SDXL VAE 1.0")
    html = message(host, {"VAE": "<theirs>.pt", "VAE hash": known.sha256[:10]})
    assert "<b>&lt;theirs&gt;.pt</b>" in html
    assert 'data-vae-kit-entry="SDXL VAE 1.0"' in html
    host.library.sha256(host.library.get("plain.safetensors"))
    renamed = message(host, {"VAE": "plain.safetensors", "VAE hash": "0123456789"})
    assert "another file than the one of that name here" in renamed
    assert "data-vae-kit-entry" not in renamed
    assert message(host, {"VAE": "plain.safetensors"}) == message(host, {"VAE": "None"}) == message(host, {}) == ""
    _, line = host.catalogue.missing(known.sha256)
    words = {part for tag, part in pieces(line) if tag == "span"}
    assert {word.strip() for word in words} <= json.loads(LANGUAGES[0].read_text("utf-8")).keys() | PUNCTUATION


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


def test_names_and_numbers_are_set_apart_and_escaped():
    from sd_vae_kit.webui.wording import marked

    assert marked('a.pt has 16 "<x>" of a.ptx', ["a.pt"]) == (
        "<b>a.pt</b><span> has </span><b>16</b><span> </span><b>&quot;&lt;x&gt;&quot;</b><span> of a.ptx</span>"
    )


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_the_tabs_own_words_are_translated(path):
    translated = json.loads(path.read_text("utf-8"))
    own = {catalogue_tab.CONSENT, *catalogue_tab.SHOWN[2:], *catalogue_tab.HEADS[-2:]}
    assert own <= translated.keys()
