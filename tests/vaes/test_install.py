"""Installing in the background, and the list of installed and known VAEs."""

import dataclasses
import hashlib
import time
from pathlib import Path

import fault_server as faults
import pytest
import torch
from fault_server import FaultServer
from safetensors.torch import save

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.errors import ConsentError, DownloadError
from sd_vae_kit.settings.sections import DownloadSettings
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.gallery import compare, read_again, reveal_command, rows, used_by
from sd_vae_kit.vaes.gallery_row import filtered
from sd_vae_kit.vaes.install import Installer
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.rules import Rule

SETTINGS = DownloadSettings(http="loopback", proxy="direct")
NET = NetConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    return save(AutoencoderKL(KlConfig(NET, NET)).state_dict(), metadata={"family": "sd1"})


def verify(entry, known):
    *_, (_, digits) = read_again(entry)
    return compare(entry, digits, known)


@pytest.fixture
def server(content):
    with FaultServer(content) as server:
        yield server


def known(content, url, **changes):
    digest = hashlib.sha256(content).hexdigest()
    values = {"name": "Small", "file": "small.safetensors", "url": url, "sha256": digest, "size": len(content)}
    return dataclasses.replace(catalogue().entries[0], **{**values, "mirrors": (), "aliases": (), **changes})


@pytest.fixture
def library(tmp_path):
    (tmp_path / "VAE").mkdir()
    library = Library([Folder(tmp_path / "VAE")], tmp_path / "cache.json")
    library.refresh()
    return library


@pytest.fixture
def installer(library, tmp_path):
    return Installer(lambda known: tmp_path / "VAE", lambda: SETTINGS, lambda path: library.refresh())


def ended(installer):
    end = time.monotonic() + 20
    while installer.is_running and time.monotonic() < end:
        installer.wait(0.1)
    return installer.states[-1]


def test_an_installed_vae_is_in_the_library_at_once(installer, library, server, content):
    installer.start(known(content, server.address("x", faults.serve)))
    state = ended(installer)
    assert (state.state, state.line) == ("done", "Small is installed as small.safetensors; its hash is right.")
    assert (state.done, state.total) == (len(content), len(content))
    assert [entry.name for entry in library.entries] == ["small.safetensors"]


def test_a_failure_is_one_line_and_the_next_try_works(installer, library, server, content):
    vae = known(content, server.address("x", faults.body(b"x" * len(content)), faults.serve))
    installer.start(vae)
    state = ended(installer)
    assert (state.state, "sent another small.safetensors" in state.line) == ("failed", True)
    assert library.refresh() == []
    installer.start(vae)
    assert ended(installer).state == "done"


def test_cancelling_stops_it_and_starting_again_goes_on(installer, server, content):
    vae = known(content, server.address("x", faults.cut_after(8192, "silence"), faults.serve))
    installer.start(vae)
    with pytest.raises(DownloadError, match="being installed already"):
        installer.start(vae)
    end = time.monotonic() + 20
    while installer.states[-1].path is None and not server.requests and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    installer.cancel("Small")
    assert ended(installer).state == "cancelled"
    installer.start(vae)
    assert ended(installer).state == "done"
    assert server.requests[-1].range == 8192


def test_without_consent_nothing_unverified_begins(installer, server, content):
    blind = known(content, server.address("x", faults.serve), sha256=None, git_blob_sha1=None, verified=0)
    with pytest.raises(ConsentError, match="No hash is known"):
        installer.start(blind)
    assert (installer.states, server.requests) == ([], [])
    installer.start(blind, accepted=True)
    assert "unverified, since no hash is known" in ended(installer).line


@pytest.mark.parametrize("name", ["Wan 2.1 VAE", "ClearVAE 1.0"])
def test_what_cannot_be_installed_says_so_at_once(installer, name):
    with pytest.raises(DownloadError):
        installer.start(catalogue().find(name))


def test_progress_is_a_line_for_people(installer, server, content):
    installer.start(known(content, server.address("x", faults.cut_after(8192, "silence"))))
    assert installer.states[-1].line.startswith("Small: 0.0 of ")
    installer.cancel()
    ended(installer)


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(library, tmp_path, content):
    """A list over one file that the catalogue knows, one that it does not, and a broken one."""
    folder = tmp_path / "VAE"
    (folder / "mine.vae.safetensors").write_bytes(content)
    (folder / "mine.safetensors.txt").write_text("")
    (folder / "other.safetensors").write_bytes(content + b"")
    (folder / "broken.safetensors").write_bytes(content[:500])
    torch.manual_seed(1)
    (folder / "other.safetensors").write_bytes(save(AutoencoderKL(KlConfig(NET, NET)).state_dict()))
    library.refresh()
    for entry in library.entries:
        library.sha256(entry)
    vae = known(content, "https://example.org/maker/repo/small.safetensors", fp16_safe=False)
    return library.entries, Catalogue([vae, *catalogue().entries])


def remembered(known_vaes):
    """What is known of a file's family by its hash or its header."""
    return FamilyFinder(Library([], None), None, known_vaes).remembered


def test_rows_say_what_where_from_and_who_uses_it(gallery):
    entries, known_vaes = gallery
    rules = [Rule("mine.vae.safetensors", family="sd1")]
    listed = rows(entries, known_vaes, found=remembered(known_vaes), rules=rules, active="other.safetensors")
    found = {row.name: row for row in listed}
    mine, other, broken = (found[name] for name in ("mine.vae.safetensors", "other.safetensors", "broken.safetensors"))
    assert mine.is_installed
    assert mine.origin == "Small (example.org/maker)"
    assert mine.precision == "needs fp32 or bf16 (or range shift), stored in fp32"
    assert mine.used_by == ("rule 1: family sd1",)
    assert (mine.family, mine.families) == ("SD 1.x / 2.x", ("sd1",))
    assert (mine.known_by, other.known_by) == ("its hash is that of Small", "")
    assert (other.is_active, other.families, other.origin) == (True, ("sd1", "sdxl"), "")
    assert broken.problem
    assert "Small" not in found, "it is installed, under another name"
    assert found["SDXL VAE 1.0"].group == "can be installed"
    assert found["Wan 2.1 VAE"].group == "only recognised"


def test_what_the_guard_found_out_is_shown(gallery):
    entries, known_vaes = gallery
    found = {row.name: row for row in rows(entries, known_vaes, found=lambda entry: Finding("sdxl", "behaviour"))}
    assert found["other.safetensors"].family == "SDXL"
    assert found["other.safetensors"].known_by == "tried on a small picture"


@pytest.mark.parametrize(
    ("query", "family", "shown", "expected"),
    [
        ("fp16 fix ldm", "", "all", {"SDXL VAE fp16 fix (LDM layout)"}),
        ("vivid drawings", "sdxl", "all", set()),
        ("", "", "installed", {"mine.vae.safetensors", "other.safetensors", "broken.safetensors"}),
        ("other", "sdxl", "installed", {"other.safetensors"}),
        ("735e4c3a44", "sd1", "can be installed", {"SD VAE ft-MSE 840k"}),
        ("hunyuan", "", "only recognised", {"HunyuanImage 2.1 VAE"}),
    ],
)
def test_the_list_can_be_filtered(gallery, query, family, shown, expected):
    entries, known_vaes = gallery
    listed = rows(entries, known_vaes, found=remembered(known_vaes))
    assert {row.name for row in filtered(listed, query, family, shown)} == expected


def test_verify_reads_the_file_and_says_what_it_is(gallery, tmp_path):
    entries, known_vaes = gallery
    by_name = {entry.name: entry for entry in entries}
    right, line = verify(by_name["mine.vae.safetensors"], known_vaes)
    assert (right, "is Small, byte for byte" in line) == (True, True)
    right, line = verify(by_name["other.safetensors"], known_vaes)
    assert (right, "not in the catalogue" in line) == (True, True)
    data = bytearray(by_name["other.safetensors"].path.read_bytes())
    data[-1] ^= 1
    by_name["other.safetensors"].path.write_bytes(data)
    right, line = verify(by_name["other.safetensors"], known_vaes)
    assert (right, "changed on the disk" in line) == (False, True)
    impostor = dataclasses.replace(by_name["mine.vae.safetensors"], path=tmp_path / "sdxl_vae.safetensors")
    impostor.path.write_bytes(b"x")
    right, line = verify(impostor, known_vaes)
    assert (right, "is called like SDXL VAE 1.0 but is another file" in line) == (False, True)


def test_a_vae_beside_a_checkpoint_is_used_by_it(gallery, tmp_path):
    entry = next(entry for entry in gallery[0] if entry.name == "mine.vae.safetensors")
    (tmp_path / "VAE" / "mine.ckpt").write_bytes(b"")
    assert used_by(entry, ()) == ("mine.ckpt",)


@pytest.mark.parametrize(("platform", "program"), [("win32", "explorer"), ("darwin", "open"), ("linux", "xdg-open")])
def test_each_system_has_its_way_to_show_a_file(platform, program):
    command = reveal_command(Path("folder/x.safetensors"), platform)
    assert command[0] == program
    assert "folder" in command[-1]
