"""The same file is the same thing at every door: command line, HTTP API, VAE tab, gallery, guard, scripts."""

import base64
import contextlib
import dataclasses
import hashlib
import os
import shutil
import time

import pytest
import torch
from cli_files import CommandLine, kl_module, write_kl, write_picture, write_tiny
from conftest import ROOT
from fake_host import FakeHost
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from vae_files import write

import sd_vae_kit
from sd_vae_kit.cli import main, vae_choice
from sd_vae_kit.core.files import checkpoint as checkpoint_files
from sd_vae_kit.core.files.latent_file import read_latent
from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.standalone import vae_facts
from sd_vae_kit.vaes import family_finder, gallery
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.web.api import PREFIX, make_router

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo" / "demo_natural.safetensors"

# file: family, how it is known, layout, part
KNOWN = {
    "by_hash": ("sdxl", "hash", "ldm", "both"),
    "foreign": ("eq-sdxl", "hash", "ldm", "both"),
    "by_weights": ("sdxl", "weights", "diffusers", "both"),
    "by_metadata": ("sdxl", "metadata", "ldm", "both"),
    "by_behaviour": ("sd1", "behaviour", "ldm", "both"),
    "by_channels": ("flux2", "channels", "ldm", "both"),
    "checkpoint": ("sd1", "checkpoint", "ldm", "both"),
    "undecided": ("sd1|sdxl", "undecided", "ldm", "both"),
    "no_family": ("", "undecided", "ldm", "both"),
    "tiny_encoder": ("sdxl", "metadata", "taesd", "encoder"),
    "tiny_decoder": ("sd3|flux", "undecided", "taesd", "decoder"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("VAE")
    write_kl(folder / "by_hash.safetensors", seed=1)
    write_kl(folder / "foreign.safetensors", seed=2)
    write_kl(folder / "by_metadata.safetensors", seed=3, family="sdxl")
    save_file(load_file(DEMO), folder / "by_behaviour.safetensors")
    write_kl(folder / "by_channels.safetensors", 32, seed=4)
    baked = {f"first_stage_model.{name}": tensor for name, tensor in kl_module(seed=5).state_dict().items()}
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    write(folder / "checkpoint.safetensors", {**baked, **unet})
    write_kl(folder / "undecided.safetensors", seed=6)
    write_kl(folder / "no_family.safetensors", 8, seed=7)
    write_tiny(folder / "tiny_encoder.safetensors", "encoder", family="sdxl")
    write_tiny(folder / "tiny_decoder.safetensors", "decoder", 16)
    (folder / "broken.safetensors").write_bytes((folder / "undecided.safetensors").read_bytes()[:-9])
    write(folder / "lora.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(4, 4)})
    for path in folder.iterdir():
        os.utime(path, (time.time() - 60,) * 2)
    return folder


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """A catalogue that knows two of the files by their hash; a copy of one of them in another layout and precision."""
    copy, data = folder / "by_weights.safetensors", tmp_path_factory.mktemp("data")
    words = ("convert", folder / "by_hash.safetensors", copy, "--layout", "diffusers", "--dtype", "fp16")
    assert main([*map(str, words), "--data-dir", str(data)]) == 0
    os.utime(copy, (time.time() - 60,) * 2)
    entries = [*catalogue().entries]
    for name, family in (("by_hash", "sdxl"), ("foreign", "eq-sdxl")):
        digest = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
        fields = {"name": f"Known {name}", "file": None, "family": family, "sha256": digest, "aliases": ()}
        entries.append(dataclasses.replace(entries[0], **fields))
    return Catalogue(entries, catalogue().standards)


@pytest.fixture
def known(made, monkeypatch):
    """The catalogue, in the place of the real one."""
    monkeypatch.setattr(family_finder, "catalogue", lambda: made)
    monkeypatch.setattr(vae_choice, "catalogue", lambda: made)
    return made


@pytest.fixture(scope="module")
def inspectors(folder, made, tmp_path_factory):
    """One for each door, with files of its own, so that no door profits from what another found out."""

    def inspector(name):
        data = tmp_path_factory.mktemp(name)
        library = Library([Folder(folder)], data / "library.json")
        library.refresh()
        by_hash = library.get("by_hash.safetensors")
        library.sha256(by_hash)  # copies are compared with the weights of files that are known by their hash
        library.identify(by_hash)
        return Inspector(FamilyFinder(library, data / "families.json", made))

    return {name: inspector(name) for name in ("api", "tab", "gallery", "guard")}


class Backend:
    """What the API asks."""

    def __init__(self, inspector):
        self.inspector = inspector
        self.library = inspector.library
        self.precision_fixes = PrecisionFixesFile(None)

    def run_request(self):
        return RunRequest()

    @contextlib.contextmanager
    def computing(self):
        yield torch.device("cpu")


class Doors:
    """Each door says of a file: (family, what told, layout, part), in its own words where it shows words."""

    def __init__(self, folder, inspectors, command_line):
        self.folder, self.inspectors, self.command_line = folder, inspectors, command_line
        app = FastAPI()
        app.include_router(make_router(Backend(self.inspectors["api"])))
        self.client = TestClient(app)

    def entry(self, door, name):
        return self.inspectors[door].library.get(f"{name}.safetensors")

    def at_command_line(self, name):
        if name == "by_weights":
            self.command_line("inspect", self.folder / "by_hash.safetensors", "--vae-dir", self.folder)
        data = self.command_line("inspect", f"{name}.safetensors", "--vae-dir", self.folder, "--json").data
        return data["family"], data["family_known_by"], data["layout"], data["part"]

    def at_api(self, name):
        data = self.client.get(f"{PREFIX}/inspect", params={"name": f"{name}.safetensors"}).json()
        listed = {item["name"]: item["family"] for item in self.client.get(f"{PREFIX}/list").json()["vaes"]}
        assert listed[f"{name}.safetensors"] == data["family"]
        return data["family"], data["family_known_by"], data["layout"], data["part"]

    def at_tab(self, name):
        return dict([*vae_facts.facts_of(self.inspectors["tab"], self.entry("tab", name))][-1].rows)

    def at_gallery(self, name):
        inspector = self.inspectors["gallery"]
        inspector.inspect(self.entry("gallery", name))  # as choosing, verifying or looking at it does
        entries = inspector.library.entries
        rows = gallery.rows(entries, inspector.finder.catalogue, found=inspector.finder.remembered)
        return next(row for row in rows if row.key == f"{name}.safetensors")

    def at_guard(self, name):
        guard = FamilyGuard(self.inspectors["guard"].finder)
        entry = self.entry("guard", name)
        family = {"by_channels": "flux2", "tiny_decoder": "sd3"}.get(name, "sdxl")
        finding = guard.check(entry, FakeHost(torch.nn.Identity(), family=family).checkpoint, GuardSettings()).finding
        return finding.family, finding.how, entry.layout, entry.part


@pytest.fixture
def doors(folder, inspectors, known, tmp_path, capsys):
    return Doors(folder, inspectors, CommandLine(tmp_path / "app", capsys))


@pytest.mark.parametrize("name", KNOWN)
def test_every_door_says_the_same(doors, name):
    expected = KNOWN[name]
    assert doors.at_command_line(name) == expected
    assert doors.at_api(name) == expected
    if name != "no_family":  # no model has such latents, so it never comes to a judgement
        assert doors.at_guard(name) == expected
    finding = doors.inspectors["guard"].family(doors.entry("guard", name))
    assert (finding.family, finding.how) == expected[:2]
    tab, row = doors.at_tab(name), doors.at_gallery(name)
    assert tab["Family"] == row.family == finding.label
    assert tab.get("Known by", "") == row.known_by == (finding.sentence if finding.is_certain else "")
    assert (tab["Layout"], tab["Part"]) == (expected[2], vae_facts.PARTS[expected[3]])
    assert row.families == tuple(filter(None, expected[0].split("|")))


@pytest.mark.parametrize("name", sorted(KNOWN.keys() - {"by_weights"}))
def test_scripts_say_the_same(folder, known, name):
    found = sd_vae_kit.inspect(folder / f"{name}.safetensors")
    assert (found.family, found.family_known_by, found.layout, found.part) == KNOWN[name]
    assert found.known_as == (f"Known {name}" if found.family_known_by == "hash" else "")


def test_the_numbers_agree_too(doors):
    for name in KNOWN:
        told = doors.command_line("inspect", f"{name}.safetensors", "--vae-dir", doors.folder, "--json").data
        answered = doors.client.get(f"{PREFIX}/inspect", params={"name": f"{name}.safetensors"}).json()
        assert told.pop("path") == str(doors.folder / answered.pop("name"))
        if name != "by_weights":  # the command line has not seen the original
            assert told == answered
    tab = doors.at_tab("by_hash")
    whole = sd_vae_kit.inspect(doors.folder / "by_hash.safetensors")
    assert (tab["sha256"], tab["Fingerprint"]) == (whole.sha256, whole.fingerprint)
    assert whole.scale_factor == 0.13025


def test_a_family_that_is_not_run_is_named_and_its_scale_is_a_guess_with_a_warning(doors):
    found = sd_vae_kit.inspect(doors.folder / "foreign.safetensors")
    assert (found.family, found.scale_factor) == ("eq-sdxl", 0.18215)
    assert any("SD 1.x / 2.x or SDXL" in warning for warning in found.warnings)
    assert family_label("sdxl") not in doors.at_gallery("foreign").family


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("broken", BrokenVaeError, "its header promises"), ("lora", UnsupportedVaeError, "is a LoRA")],
)
def test_what_cannot_be_used_is_refused_alike(doors, known, name, error, words):
    assert words in doors.command_line("inspect", f"{name}.safetensors", "--vae-dir", doors.folder).error
    answer = doors.client.get(f"{PREFIX}/inspect", params={"name": f"{name}.safetensors"})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    with pytest.raises(error, match=words):
        sd_vae_kit.inspect(doors.folder / f"{name}.safetensors")
    with pytest.raises(error, match=words):
        doors.inspectors["guard"].inspect(doors.entry("guard", name))
    (facts, *_) = vae_facts.facts_of(doors.inspectors["tab"], doors.entry("tab", name))
    assert words in facts.problem
    entries = doors.inspectors["gallery"].library.entries
    rows = gallery.rows(entries, known, found=doors.inspectors["gallery"].finder.remembered)
    assert words in next(row for row in rows if row.key == f"{name}.safetensors").problem


def test_a_latent_gets_the_scale_of_the_family_that_was_found(doors, tmp_path):
    write_picture(tmp_path / "in.png", 16, 16)
    for name in ("by_hash", "by_behaviour"):
        options = ("--vae", doors.folder / f"{name}.safetensors", "-o", tmp_path / "out.safetensors")
        assert doors.command_line("encode", tmp_path / "in.png", *options, "--json").data["warnings"] == []
        picture = base64.b64encode((tmp_path / "in.png").read_bytes()).decode()
        request = {"image": picture, "vae": f"{name}.safetensors"}
        answer = doors.client.post(f"{PREFIX}/encode", json=request).json()
        assert answer["warnings"] == []
        (tmp_path / "api.safetensors").write_bytes(base64.b64decode(answer["latent"]))
        for file in (read_latent(tmp_path / "out.safetensors"), read_latent(tmp_path / "api.safetensors")):
            assert file.family == KNOWN[name][0]
            assert file.scale_factor == {"sdxl": 0.13025, "sd1": 0.18215}[file.family]


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch):
    """Names of the files whose header was parsed, once for each time."""
    names = []
    original = checkpoint_files._contents
    monkeypatch.setattr(checkpoint_files, "_contents", lambda file: names.append(file.name) or original(file))
    return names


def test_a_header_is_parsed_once_for_everything_about_a_file(folder, parsed, tmp_path, capsys):
    path = folder / "by_metadata.safetensors"
    shutil.copy(path, tmp_path / "one.safetensors")
    sd_vae_kit.inspect(tmp_path / "one.safetensors")
    assert parsed == ["one.safetensors"]
    parsed.clear()
    assert CommandLine(tmp_path, capsys)("inspect", tmp_path / "one.safetensors", "--json").code == 0
    assert parsed.count("one.safetensors") == 1


def test_what_was_found_out_is_not_found_out_again(doors, monkeypatch):
    inspector = doors.inspectors["api"]
    first = inspector.inspect(doors.entry("api", "by_behaviour"))
    monkeypatch.setattr(family_finder, "tell_family", lambda weights: pytest.fail("tried again"))
    monkeypatch.setattr("sd_vae_kit.vaes.library.file_sha256", lambda *args: pytest.fail("hashed again"))
    monkeypatch.setattr("sd_vae_kit.vaes.library.fingerprint", lambda *args: pytest.fail("compared again"))
    monkeypatch.setattr("sd_vae_kit.vaes.library.read_vae", lambda *args: pytest.fail("read the weights"))
    assert inspector.inspect(doors.entry("api", "by_behaviour")) == first
    assert inspector.inspect_path(doors.folder / "by_behaviour.safetensors") == first
    assert inspector.glance(doors.entry("api", "by_behaviour")) == first


def test_a_file_that_was_replaced_is_read_anew(folder, tmp_path):
    path, inspector = tmp_path / "x.safetensors", Inspector(FamilyFinder(Library([], tmp_path / "library.json"), None))
    shutil.copy2(folder / "by_metadata.safetensors", path)  # with its time: what is learnt of a fresh file is not kept
    first = inspector.inspect_path(path)
    assert inspector.library.recall(path).fingerprint == first.fingerprint
    shutil.copy2(folder / "by_channels.safetensors", path)
    assert inspector.library.recall(path) is None
    second = inspector.inspect_path(path)
    assert (first.z_channels, second.z_channels) == (4, 32)
    assert first.sha256 != second.sha256
    assert first.fingerprint != second.fingerprint
