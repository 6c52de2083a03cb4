"""Catalogue, downloads and rules as the stand-alone backend offers them to its pages."""

import dataclasses
import hashlib
import json
import time

import fault_server as faults
import pytest
import torch
from fault_server import FaultServer
from safetensors.torch import save

from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.errors import ConsentError, OptionError, RulesError, VaeNotFoundError
from sd_vae_kit.settings.sections import Settings, with_values
from sd_vae_kit.state import file_hash
from sd_vae_kit.vaes import gallery
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.rules import Rule, RulesFile, dump
from sd_vae_kit.web.catalogue_host import KnownFiles
from sd_vae_kit.web.catalogue_service import CatalogueService

NET = NetConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)


class Host:
    """The app that runs the service; a test changes `reason`, why files may not be written, and `tiny_folder`."""

    checkpoint = Checkpoint("model", None, FORMATS["sd1"])
    settings = with_values(Settings(), {"vae_kit_download_http": "loopback", "vae_kit_download_proxy": "direct"})
    active_vae = "small.safetensors"

    def __init__(self, folder, library):
        self.card_folders = (folder / "models", folder / "missing")
        self.vae_folder, self.library = folder / "VAE", library
        self.fixes = PrecisionFixesFile(folder / "needs.json")
        self.applied, self.reason, self.tiny_folder = [], "", folder / "VAE"

    def folder_for(self, known):
        return self.tiny_folder if known.kind == "tiny" else self.vae_folder

    def refresh(self):
        self.library.refresh()

    def apply_rules(self):
        self.applied.append(True)

    def forget_precision(self):
        return self.fixes.forget()

    def forbidden(self):
        return self.reason


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    return save(AutoencoderKL(KlConfig(NET, NET)).state_dict(), metadata={"family": "sd1"})


@pytest.fixture
def server(content):
    with FaultServer(content) as server:
        yield server


@pytest.fixture
def files(tmp_path, server, content):
    """A library over an empty folder, and a catalogue with three small files on the local server."""
    for name in ("VAE", "models"):
        (tmp_path / name).mkdir()
    library = Library([Folder(tmp_path / "VAE")], tmp_path / "cache.json")
    library.refresh()
    digest = hashlib.sha256(content).hexdigest()
    small = dataclasses.replace(
        catalogue().entries[0],
        name="Small",
        file="small.safetensors",
        url=server.address("small", faults.serve),
        mirrors=(),
        sha256=digest,
        size=len(content),
    )
    tiny = [
        dataclasses.replace(small, name=f"Tiny {part}", file=f"tiny_{part}.pth", kind="tiny", part=part)
        for part in ("encoder", "decoder")
    ]
    known = Catalogue([*tiny, small, *catalogue().entries])
    inspector = Inspector(FamilyFinder(library, tmp_path / "families.json", known))
    return KnownFiles(inspector, History(tmp_path / "history.json"))


@pytest.fixture
def host(tmp_path, files):
    return Host(tmp_path, files.library)


@pytest.fixture
def service(tmp_path, host, files):
    service = CatalogueService(host, files, RulesFile(tmp_path / "vae_rules.json"))
    yield service
    service.close()


def finished(service):
    end = time.monotonic() + 20
    *_, last = service.downloads.watch()
    assert time.monotonic() < end
    return last


def test_an_install_is_followed_to_its_end_and_the_list_knows_it(service, content):
    service.downloads.install("Small", False)
    last = finished(service)
    assert [line.text for line in last.lines] == ["Small is installed as small.safetensors; its hash is right."]
    row = service.gallery.rows()[0]
    assert (row.key, row.is_installed, row.is_active) == ("small.safetensors", True, True)
    assert row.digits == hashlib.sha256(content).hexdigest()[:10]
    with pytest.raises(OptionError, match="installed already"):
        service.downloads.install("small.safetensors", False)


def test_the_preview_shortcut_fetches_both_halves_for_the_family_in_use(service, tmp_path):
    assert service.downloads.tiny_label() == "SD 1.x / 2.x"
    assert service.downloads.install_tiny() == "Fetching Tiny encoder and Tiny decoder."
    finished(service)
    assert sorted(path.name for path in (tmp_path / "VAE").iterdir()) == ["tiny_decoder.pth", "tiny_encoder.pth"]


def test_what_a_pasted_picture_wants_leads_the_list(service):
    digits = catalogue().find("SDXL VAE 1.0").sha256[:10]
    line = f'The catalogue knows hash {digits}: it is "SDXL VAE 1.0"; it can be installed.'
    assert service.gallery.missing(digits) == ("SDXL VAE 1.0", line)
    assert service.gallery.is_missing("SDXL VAE 1.0")
    assert (service.gallery.rows()[0].name, service.gallery.rows()[0].used_by) == (
        "SDXL VAE 1.0",
        ("the pasted picture",),
    )
    assert service.gallery.missing("0123456789") == ("", "")
    assert service.gallery.rows()[0].used_by == ()


def test_without_consent_nothing_begins(service):
    with pytest.raises(ConsentError):
        service.downloads.install("vividReal VAE", False)
    assert service.downloads.installing().lines == ()


def test_verify_says_what_a_file_is_and_of_which_family(service):
    service.downloads.install("Small", False)
    finished(service)
    *running, last = service.files.verify("small.safetensors")
    assert [state.fraction for state in running] == [1.0, 1.0]
    assert all(state.is_running for state in running)
    message = last.lines[0]
    assert message.level == "info"
    assert message.text.endswith("Family: SD 1.x / 2.x (its hash is that of Small).")
    with pytest.raises(VaeNotFoundError, match=r"SDXL VAE 1\.0 is not installed"):
        next(service.files.verify("SDXL VAE 1.0"))


def test_verifying_a_large_file_says_how_far_it_is(service, files, tmp_path, monkeypatch):
    (tmp_path / "VAE" / "large.safetensors").write_bytes(bytes(1000))
    files.library.refresh()
    monkeypatch.setattr(file_hash, "BLOCK", 10)
    *running, last = service.files.verify("large.safetensors")
    fractions = [state.fraction for state in running]
    assert fractions == sorted(fractions)
    assert 20 <= len(fractions) <= 51
    assert last.lines[0].text.startswith("large.safetensors is not in the catalogue; all of it could be read")


def test_where_writing_is_forbidden_nothing_is_written_and_one_line_says_why(service, host, server, tmp_path):
    host.reason = "Not here."
    assert service.notice() == "Not here."
    actions = (
        lambda: service.downloads.install("Small", True),
        service.downloads.install_tiny,
        lambda: service.rules.save(dump(())),
        lambda: service.files.reveal("x"),
    )
    for action in actions:
        with pytest.raises(OptionError, match=r"Not here\."):
            action()
    assert server.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VAE", "models"]
    assert service.gallery.rows()
    assert service.rules.explain("", "picture") == []


def test_checkpoints_that_were_used_with_a_file_are_listed(service, files):
    service.downloads.install("Small", False)
    finished(service)
    files.history.note(files.library.get("small.safetensors"), "model")
    assert service.gallery.rows()[0].used_by == ("model",)


def test_tiny_files_in_a_folder_of_their_own_are_listed_and_verified(host, files, tmp_path, content):
    host.tiny_folder = tmp_path / "VAE-taesd"
    host.tiny_folder.mkdir()
    apart = dataclasses.replace(files, tiny=Library([Folder(host.tiny_folder)], tmp_path / "tiny.json"))
    service = CatalogueService(host, apart, RulesFile(tmp_path / "vae_rules.json"))
    service.downloads.install("Tiny decoder", False)
    finished(service)
    row = next(row for row in service.gallery.rows() if row.key == "tiny_decoder.pth")
    assert (row.is_installed, row.digits) == (True, hashlib.sha256(content).hexdigest()[:10])
    *_, last = service.files.verify("tiny_decoder.pth")
    assert "byte for byte" in last.lines[0].text
    with pytest.raises(OptionError, match="installed already"):
        service.downloads.install("tiny_decoder.pth", False)


def test_reveal_names_the_path_where_no_file_manager_is(service, monkeypatch, tmp_path):
    service.downloads.install("Small", False)
    finished(service)
    monkeypatch.setattr(gallery, "reveal_command", lambda path: ["/no/such/program"])
    message = service.files.reveal("small.safetensors")
    assert (message.level, str(tmp_path / "VAE" / "small.safetensors") in message.text) == ("warning", True)


def test_rules_are_saved_applied_and_explained(service, host):
    text = dump((Rule("xl", family="sdxl"), Rule("a")))
    assert service.rules.save(text).text == "2 rules saved to vae_rules.json."
    assert host.applied == [True]
    assert service.rules.text() == text
    lines = service.rules.explain(text, "picture")
    assert [(line.number, line.decides) for line in lines] == [(1, False), (2, True)]
    with pytest.raises(RulesError):
        service.rules.save("{")
    assert service.rules.text() == text


def test_cards_are_appended_to_the_text_and_not_saved(service, tmp_path):
    (tmp_path / "models" / "a.ckpt").write_bytes(b"")
    (tmp_path / "models" / "a.json").write_text(json.dumps({"vae": "x.pt"}), "utf-8")
    text, message = service.rules.import_cards("")
    assert message.text == "1 rule from 1 card; Save keeps them."
    assert '"x.pt"' in text
    assert not (tmp_path / "vae_rules.json").exists()


def test_a_broken_rules_file_does_not_hide_the_list(service, tmp_path):
    (tmp_path / "vae_rules.json").write_text("{", "utf-8")
    assert service.gallery.rows()


def test_what_vaes_needed_in_half_precision_is_forgotten(service, host, tmp_path):
    PrecisionFixesFile(tmp_path / "needs.json").put("abc", "decoder", PrecisionFixes({"decoder.conv_in": 4}))
    host.reason = "Not here."
    with pytest.raises(OptionError, match=r"^Not here\.$"):
        service.forget_precision()
    host.reason = ""
    assert service.forget_precision().text == "Forgotten: what 1 encoder or decoder needed."
    assert not (tmp_path / "needs.json").exists()
    assert service.forget_precision().text == "There was nothing to forget."
