"""The list of known VAEs: every entry is sound, and an entry is found by whatever users call it."""

import json
import re
from urllib.parse import urlsplit

import pytest

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.errors import OptionError, VaeNotFoundError
from sd_vae_kit.vaes.catalogue import DATA, SIZE_LIMITS, Catalogue, catalogue, read_catalogue, with_own_entries

ENTRIES = catalogue().entries
FOREIGN = {
    "eq-sdxl", "wan2.1", "wan2.2", "qwen-image", "qwen-image-2.1", "hunyuan-image-2.1", "ltx2", "ltx2.3",
}  # fmt: skip
PLAIN_FILE = re.compile(r"[\w][\w.-]*\.(safetensors|ckpt|pt|pth)")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_entry_is_sound(entry):
    assert entry.family in FORMATS or (entry.family in FOREIGN and not entry.can_run)
    assert entry.kind in SIZE_LIMITS
    assert entry.part in ("both", "encoder", "decoder")
    assert entry.kind == "tiny" or entry.part == "both" or not entry.can_run
    assert entry.file is None or PLAIN_FILE.fullmatch(entry.file)
    assert entry.url is None or entry.file is not None
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.git_blob_sha1 is None or re.fullmatch("[0-9a-f]{40}", entry.git_blob_sha1)
    assert (entry.verified == 0) == (entry.sha256 is None)
    assert entry.size is None or 0 < entry.size <= SIZE_LIMITS[entry.kind]
    assert entry.note.endswith(".")
    assert 20 < len(entry.note) <= 110
    assert "\n" not in entry.note
    assert entry.licence
    assert entry.fp16_safe in (None, True, False)
    assert len(set(entry.names)) == len(list(entry.names))


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.url], ids=lambda e: e.name)
def test_every_address_is_https_and_carries_no_login(entry):
    for url in entry.urls:
        parts = urlsplit(url)
        assert (parts.scheme, parts.username, parts.fragment) == ("https", None, "")
        assert parts.hostname
    assert len(set(entry.urls)) == len(entry.urls)


def test_names_files_and_hashes_are_unique():
    for field in ("name", "file", "sha256"):
        values = [getattr(e, field) for e in ENTRIES if getattr(e, field)]
        assert len(values) == len({value.lower() for value in values}), field


def test_an_entry_without_a_hash_or_with_an_unclear_licence_wants_consent():
    assert all(entry.cautions for entry in ENTRIES if entry.sha256 is None)
    leaked = catalogue().find("nai.vae.pt")
    assert any("licence" in caution for caution in leaked.cautions)
    assert catalogue().find("SD VAE ft-MSE 840k").cautions == ()


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "flux2"])
def test_every_family_has_a_standard_vae_that_can_be_installed_with_a_check(family):
    standard = catalogue().standard(family)
    assert standard.family == family
    assert standard.can_install
    assert not standard.cautions


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "flux2", "sana"])
def test_every_family_has_a_taesd_pair_with_both_hashes(family):
    encoder, decoder = catalogue().tiny_pair(family)
    assert (encoder.part, decoder.part) == ("encoder", "decoder")
    for half in (encoder, decoder):
        assert half.family == family
        assert half.can_install
        assert half.git_blob_sha1
        assert "v1.2" not in half.name


def test_a_family_without_standard_or_pair_has_none():
    assert catalogue().standard("wan2.1") is None
    assert catalogue().tiny_pair("eq-sdxl") is None


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("SD VAE ft-MSE 840k", "SD VAE ft-MSE 840k"),
        ("sd vae ft-mse  840K", "SD VAE ft-MSE 840k"),
        ("vae-ft-mse-840000-ema-pruned.ckpt", "SD VAE ft-MSE 840k (ckpt)"),
        ("MoistMix.vae.pt", "kl-f8-anime2 (Waifu Diffusion 1.4 VAE)"),
        ("Anything-V3.0.vae.pt", "NovelAI animevae / orangemix / Anything VAE"),
        ("735e4c3a44", "SD VAE ft-MSE 840k"),
        ("735E4C3A447A3255760D7F86845F09F937809BAA529C17370D83E4C3758F3C75", "SD VAE ft-MSE 840k"),
        ("235745af8d", "SDXL VAE fp16 fix (LDM layout)"),
        ("sdxl_vae.safetensors", "SDXL VAE 1.0"),  # its own file name; the fix's is only an alias
    ],
)
def test_an_entry_is_found_by_name_file_alias_and_hash(called, name):
    assert catalogue().find(called).name == name


def test_a_name_of_several_files_is_an_error_that_lists_them():
    with pytest.raises(VaeNotFoundError, match=r"2 different files.*Kolors.*|.*different files") as caught:
        catalogue().find("diffusion_pytorch_model.safetensors")
    assert '"Kolors VAE fp32"' in str(caught.value)


def test_an_unknown_name_is_an_error_with_a_hint():
    with pytest.raises(VaeNotFoundError, match=r"'clearvae'.*did you mean 'ClearVAE 1\.0'.*--list"):
        catalogue().find("clearvae")


@pytest.mark.parametrize("digits", ["", None, "735e", "zzzzzzzzzz", "0123456789"])
def test_no_hash_too_few_digits_or_an_unknown_hash_finds_nothing(digits):
    assert catalogue().by_hash(digits) is None


def test_a_beginning_that_fits_two_hashes_finds_nothing():
    first, second = ENTRIES[0], ENTRIES[1]
    twins = [
        type(first)(**{**vars(first), "sha256": "ab" * 32}),
        type(second)(**{**vars(second), "sha256": "ab" * 31 + "00"}),
    ]
    assert Catalogue(twins).by_hash("ab" * 5) is None
    assert Catalogue(twins).by_hash("ab" * 32) is twins[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema=2), "schema 2"),
        (lambda data: data["entries"][0].pop("licence"), "licence"),
        (lambda data: data["entries"][0].update(surprise=1), "surprise"),
    ],
)
def test_a_catalogue_of_another_shape_is_refused(change, words):
    data = json.loads(DATA.read_text("utf-8"))
    change(data)
    with pytest.raises(ValueError, match=words):
        read_catalogue(json.dumps(data))


def test_the_names_the_issue_asks_for_are_there():
    text = " ".join(name for entry in ENTRIES for name in entry.names)
    for word in ("ft-MSE", "ft-EMA", "kl-f8-anime", "kl-f8-anime2", "Waifu Diffusion", "NovelAI", "orangemix"):
        assert word in text
    for word in ("Anything", "Color101", "ClearVAE", "SDXL VAE 1.0", "fp16 fix", "SD3", "FLUX.1", "taesd", "taef1"):
        assert word in text


def test_the_users_own_entries_come_first_and_may_replace(tmp_path):
    data = json.loads(DATA.read_text("utf-8"))
    mine = {**data["entries"][0], "note": "My own copy of it, from the shelf.", "url": "https://example.org/x"}
    new = {**data["entries"][0], "name": "Mine", "file": "mine.safetensors", "sha256": "ab" * 32}
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({"schema": 1, "standard": {"sd1": "Mine"}, "entries": [mine, new]}), "utf-8")
    found = with_own_entries(path)
    assert [entry.name for entry in found.entries[:2]] == [mine["name"], "Mine"]
    assert len(found.entries) == len(ENTRIES) + 1
    assert found.find(mine["name"]).note.startswith("My own")
    assert found.standard("sd1").name == "Mine"
    assert found.standard("sdxl") == catalogue().standard("sdxl")


def test_without_own_entries_the_catalogue_is_as_it_comes_and_a_broken_file_is_said(tmp_path):
    path = tmp_path / "catalogue.json"
    assert with_own_entries(path) is catalogue()
    for content in ("{", "[]", '{"schema": 1}', '{"schema": 1, "standard": {}, "entries": [3]}', "[" * 100_000):
        path.write_text(content, "utf-8")
        with pytest.raises(OptionError, match=r"is not a catalogue .*docs/catalogue\.md"):
            with_own_entries(path)
