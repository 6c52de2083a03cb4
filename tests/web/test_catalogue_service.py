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
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.rules import Rule, RulesFile, dump
from sd_vae_kit.web.catalogue_service import CatalogueService

NET = NetConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)


class Host:
    checkpoint = Checkpoint("model", None, FORMATS["sd1"])
    settings = with_values(Settings(), {"vae_kit_download_http": "loopback", "vae_kit_download_proxy": "direct"})


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    return save(AutoencoderKL(KlConfig(NET, NET)).state_dict(), metadata={"family": "sd1"})


@pytest.fixture
def server(content):
    with FaultServer(content) as server:
        yield server


@pytest.fixture
def applied():
    return []


@pytest.fixture
def forbidden():
    """Why files may not be written; a test changes it."""
    return [""]


@pytest.fixture
def service(tmp_path, server, content, applied, forbidden):
    vaes, models = tmp_path / "VAE", tmp_path / "models"
    vaes.mkdir()
    models.mkdir()
    library = Library([Folder(vaes)], tmp_path / "cache.json")
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
    service = CatalogueService(
        Host(),
        library,
        known,
        FamilyGuard(library, tmp_path / "families.json", known),
        RulesFile(tmp_path / "vae_rules.json"),
        History(tmp_path / "history.json"),
        folder=lambda known: vaes,
        cards=(models, tmp_path / "missing"),
        active=lambda: "small.safetensors",
        apply=lambda: applied.append(True),
        refresh=library.refresh,
        forbidden=lambda: forbidden[0],
        needs=PrecisionFixesFile(tmp_path / "needs.json"),
    )
    yield service
    service.close()


def finished(service):
    end = time.monotonic() + 20
    *_, last = service.watch()
    assert time.monotonic() < end
    return last


def test_an_install_is_followed_to_its_end_and_the_list_knows_it(service, content):
    service.install("Small", False)
    last = finished(service)
    assert [line.text for line in last.lines] == ["Small is installed as small.safetensors; its hash is right."]
    row = service.rows()[0]
    assert (row.key, row.is_installed, row.is_active) == ("small.safetensors", True, True)
    assert row.digits == hashlib.sha256(content).hexdigest()[:10]
    with pytest.raises(OptionError, match="installed already"):
        service.install("small.safetensors", False)


def test_the_preview_shortcut_fetches_both_halves_for_the_family_in_use(service, tmp_path):
    assert service.tiny_label() == "SD 1.x / 2.x"
    assert service.install_tiny() == "Fetching Tiny encoder and Tiny decoder."
    finished(service)
    assert sorted(path.name for path in (tmp_path / "VAE").iterdir()) == ["tiny_decoder.pth", "tiny_encoder.pth"]


def test_what_a_pasted_picture_wants_leads_the_list(service):
    digits = catalogue().find("SDXL VAE 1.0").sha256[:10]
    line = f'The catalogue knows hash {digits}: it is "SDXL VAE 1.0"; it can be installed.'
    assert service.missing(digits) == ("SDXL VAE 1.0", line)
    assert service.is_missing("SDXL VAE 1.0")
    assert (service.rows()[0].name, service.rows()[0].used_by) == ("SDXL VAE 1.0", ("the pasted picture",))
    assert service.missing("0123456789") == ("", "")
    assert service.rows()[0].used_by == ()


def test_without_consent_nothing_begins(service):
    with pytest.raises(ConsentError):
        service.install("vividReal VAE", False)
    assert service.installing().lines == ()


def test_verify_says_what_a_file_is_and_of_which_family(service):
    service.install("Small", False)
    finished(service)
    *running, last = service.verify("small.safetensors")
    assert [state.fraction for state in running] == [1.0, 1.0]
    assert all(state.is_running for state in running)
    message = last.lines[0]
    assert message.level == "info"
    assert message.text.endswith("Family: SD 1.x / 2.x (its hash is that of Small).")
    with pytest.raises(VaeNotFoundError, match=r"SDXL VAE 1\.0 is not installed"):
        next(service.verify("SDXL VAE 1.0"))


def test_verifying_a_large_file_says_how_far_it_is(service, tmp_path, monkeypatch):
    (tmp_path / "VAE" / "large.safetensors").write_bytes(bytes(1000))
    service._library.refresh()
    monkeypatch.setattr(file_hash, "BLOCK", 10)
    *running, last = service.verify("large.safetensors")
    fractions = [state.fraction for state in running]
    assert fractions == sorted(fractions)
    assert 20 <= len(fractions) <= 51
    assert last.lines[0].text.startswith("large.safetensors is not in the catalogue; all of it could be read")


def test_where_writing_is_forbidden_nothing_is_written_and_one_line_says_why(service, forbidden, server, tmp_path):
    forbidden[0] = "Not here."
    assert service.notice() == "Not here."
    actions = (
        lambda: service.install("Small", True),
        service.install_tiny,
        lambda: service.save_rules(dump(())),
        lambda: service.reveal("x"),
    )
    for action in actions:
        with pytest.raises(OptionError, match=r"Not here\."):
            action()
    assert server.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VAE", "models"]
    assert service.rows()
    assert service.explain("", "picture") == []


def test_checkpoints_that_were_used_with_a_file_are_listed(service):
    service.install("Small", False)
    finished(service)
    service._history.note(service._library.get("small.safetensors"), "model")
    assert service.rows()[0].used_by == ("model",)


def test_tiny_files_in_a_folder_of_their_own_are_listed_and_verified(service, tmp_path, content):
    folder = tmp_path / "VAE-taesd"
    folder.mkdir()
    service._libraries = (service._library, Library([Folder(folder)], tmp_path / "tiny.json"))
    service._installer = type(service._installer)(
        lambda known: folder, lambda: Host.settings.download, service._installed
    )
    service.install("Tiny decoder", False)
    finished(service)
    row = next(row for row in service.rows() if row.key == "tiny_decoder.pth")
    assert (row.is_installed, row.digits) == (True, hashlib.sha256(content).hexdigest()[:10])
    *_, last = service.verify("tiny_decoder.pth")
    assert "byte for byte" in last.lines[0].text
    with pytest.raises(OptionError, match="installed already"):
        service.install("tiny_decoder.pth", False)


def test_reveal_names_the_path_where_no_file_manager_is(service, monkeypatch, tmp_path):
    service.install("Small", False)
    finished(service)
    monkeypatch.setattr(gallery, "reveal_command", lambda path: ["/no/such/program"])
    message = service.reveal("small.safetensors")
    assert (message.level, str(tmp_path / "VAE" / "small.safetensors") in message.text) == ("warning", True)


def test_rules_are_saved_applied_and_explained(service, applied):
    text = dump((Rule("xl", family="sdxl"), Rule("a")))
    assert service.save_rules(text).text == "2 rules saved to vae_rules.json."
    assert applied == [True]
    assert service.rules_text() == text
    lines = service.explain(text, "picture")
    assert [(line.number, line.decides) for line in lines] == [(1, False), (2, True)]
    with pytest.raises(RulesError):
        service.save_rules("{")
    assert service.rules_text() == text


def test_cards_are_appended_to_the_text_and_not_saved(service, tmp_path):
    (tmp_path / "models" / "a.ckpt").write_bytes(b"")
    (tmp_path / "models" / "a.json").write_text(json.dumps({"vae": "x.pt"}), "utf-8")
    text, message = service.import_cards("")
    assert message.text == "1 rule from 1 card; Save keeps them."
    assert '"x.pt"' in text
    assert not (tmp_path / "vae_rules.json").exists()


def test_a_broken_rules_file_does_not_hide_the_list(service, tmp_path):
    (tmp_path / "vae_rules.json").write_text("{", "utf-8")
    assert service.rows()


def test_what_vaes_needed_in_half_precision_is_forgotten(service, tmp_path, forbidden):
    PrecisionFixesFile(tmp_path / "needs.json").put("abc", "decoder", PrecisionFixes({"decoder.conv_in": 4}))
    forbidden[0] = "Not here."
    with pytest.raises(OptionError, match=r"^Not here\.$"):
        service.forget_precision()
    forbidden[0] = ""
    assert service.forget_precision().text == "Forgotten: what 1 encoder or decoder needed."
    assert not (tmp_path / "needs.json").exists()
    assert service.forget_precision().text == "There was nothing to forget."
