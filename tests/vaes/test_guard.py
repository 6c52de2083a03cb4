"""The wrong VAE is recognised before it is used, by whichever way is allowed, and the right one is named."""

import dataclasses
import hashlib
import json
import os
import shutil
import time

import pytest
import torch
from conftest import ROOT
from fake_host import FakeHost
from safetensors.torch import load_file, save_file

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.vaes import family_finder
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder

NET = NetConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
ALL = GuardSettings()
BEHAVIOUR = GuardSettings(by_hash=False, by_fingerprint=False)
NOTHING = GuardSettings(by_hash=False, by_fingerprint=False, by_behaviour=False)
TAESD = {"taesd": "sd1", "taesdxl": "sdxl", "taesd3": "sd3", "taef1": "flux"}
DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo" / "demo_natural.safetensors"


def random_state(seed, net=NET):
    torch.manual_seed(seed)
    return AutoencoderKL(KlConfig(net, net, embed_dim=net.z_channels)).state_dict()


def checkpoint(family):
    return FakeHost(torch.nn.Identity(), family=family).checkpoint


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "VAE"
    folder.mkdir()
    return folder


@pytest.fixture
def world(folder, tmp_path):
    """A guard over files named by the test: `world({"a": state}, known={"a": "sdxl"})`."""

    def make(files=None, known=None):
        for name, state in (files or {}).items():
            save_file(state, folder / f"{name}.safetensors")
        for path in folder.iterdir():
            os.utime(path, (time.time() - 60,) * 2)
        library = Library([Folder(folder)], tmp_path / "library.json")
        library.refresh()
        return library, FamilyGuard(
            FamilyFinder(library, tmp_path / "families.json", make_catalogue(folder, known or {}))
        )

    return make


def make_catalogue(folder, known):
    """The real entries, with the hashes of the test's files in place of some."""
    standard = {f: catalogue().standard(f) for f in ("sd1", "sdxl", "sd3", "flux")}
    entries = list(standard.values())
    for name, family in known.items():
        digest = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
        entries.append(dataclasses.replace(entries[0], name=f"Known {name}", family=family, file=None, sha256=digest))
    return Catalogue(entries, {family: entry.name for family, entry in standard.items()})


def test_a_file_of_the_catalogue_is_known_by_its_hash(world):
    library, guard = world({"a": random_state(1)}, known={"a": "sdxl"})
    verdict = guard.check(library.get("a"), checkpoint("sdxl"), ALL)
    assert (verdict.state, verdict.message) == ("fits", "")
    assert verdict.finding == Finding("sdxl", "hash", "Known a")


@pytest.mark.parametrize("change", [lambda t: t.half(), lambda t: t.bfloat16()], ids=["fp16", "bf16"])
def test_a_copy_of_a_known_file_is_known_by_its_weights(world, change):
    original = random_state(1)
    library, guard = world(
        {"a": original, "copy": {name: change(tensor) for name, tensor in original.items()}}, known={"a": "sdxl"}
    )
    guard.finder.find(library.get("a"), ALL)
    assert guard.finder.find(library.get("copy"), ALL) == Finding("sdxl", "weights", "Known a")


def test_what_the_file_says_counts_where_nothing_better_is_known(folder, world):
    save_file(random_state(1), folder / "said.safetensors", metadata={"family": "sdxl"})
    library, guard = world()
    assert guard.finder.find(library.get("said"), ALL) == Finding("sdxl", "metadata")


def test_the_demo_vae_is_told_by_its_behaviour_in_any_disguise(folder, world):
    state = load_file(DEMO)
    save_file(state, folder / "innocent.safetensors")
    library, guard = world()
    assert guard.finder.find(library.get("innocent"), BEHAVIOUR).family == "sd1"
    verdict = guard.check(library.get("innocent"), checkpoint("sdxl"), BEHAVIOUR)
    assert verdict.state == "wrong"
    assert verdict.message == (
        "innocent.safetensors is a VAE for SD 1.x / 2.x (tried on a small picture), the loaded model is SDXL: colours "
        'would be wrong; install "SDXL VAE fp16 fix (LDM layout)" from the catalogue.'
    )


def test_confusion_of_all_real_pairs_without_hash_and_fingerprint(weights_dir, folder, world):
    for stem in TAESD:
        for half in ("encoder", "decoder"):
            shutil.copy(weights_dir / f"{stem}_{half}.safetensors", folder / f"x{stem}_{half}.safetensors")
    library, guard = world()
    for stem, family in TAESD.items():
        twins = ("sd1", "sdxl") if family in ("sd1", "sdxl") else ("sd3", "flux")
        others = [name for name in TAESD.values() if name not in twins]
        for half in ("encoder", "decoder"):
            entry = library.get(f"x{stem}_{half}.safetensors")
            states = {f: guard.check(entry, checkpoint(f), BEHAVIOUR).state for f in TAESD.values()}
            assert states == {
                **{twin: "fits" if twin == family else "wrong" for twin in twins},
                **dict.fromkeys(others, "impossible"),
            }, stem


@pytest.mark.parametrize("stem", TAESD)
def test_taesd_files_in_full_precision_are_known_by_the_shipped_marks(weights_dir, folder, world, stem):
    for half in ("encoder", "decoder"):
        state = {k: v.float() for k, v in load_file(weights_dir / f"{stem}_{half}.safetensors").items()}
        save_file(state, folder / f"{half}.safetensors")
    library, guard = world()
    for half in ("encoder", "decoder"):
        found = guard.finder.find(library.get(half), GuardSettings(by_behaviour=False))
        assert found == Finding(TAESD[stem], "weights", f"{stem} {half}")


def test_random_weights_are_unsure_and_the_message_says_so(world):
    library, guard = world({"noise": random_state(5)})
    verdict = guard.check(library.get("noise"), checkpoint("sd1"), ALL)
    assert verdict.state == "unsure"
    assert verdict.message == (
        "noise.safetensors may be a VAE for SD 1.x / 2.x or SDXL, it could not be told which; if colours are off, "
        "choose another for SD 1.x / 2.x."
    )


def test_other_channels_are_impossible_and_the_installed_one_is_offered(world):
    sixteen = dataclasses.replace(NET, z_channels=16)
    library, guard = world({"wide": random_state(1, sixteen), "right": random_state(2)}, known={"right": "sdxl"})
    library.sha256(library.get("right"))
    verdict = guard.check(library.get("wide"), checkpoint("sdxl"), NOTHING)
    assert (verdict.state, verdict.installed, verdict.available) == ("impossible", ("right.safetensors",), "")
    assert verdict.message == (
        "wide.safetensors has 16 latent channels, the loaded model (SDXL) needs 4; choose right.safetensors."
    )


def test_with_everything_switched_off_nothing_is_computed(world, monkeypatch):
    library, guard = world({"a": random_state(1)}, known={"a": "sdxl"})
    for name in ("sha256", "identify", "load"):
        monkeypatch.setattr(library, name, lambda *args: pytest.fail("read the file"))
    assert guard.finder.find(library.get("a"), NOTHING) == Finding("sd1|sdxl", "undecided")


def test_an_answer_is_kept_across_restarts_and_dropped_with_the_file(world, folder, tmp_path, monkeypatch):
    library, guard = world({"a": random_state(1), "b": random_state(2)})
    first = [guard.finder.find(library.get(name), ALL) for name in ("a", "b")]
    monkeypatch.setattr(family_finder, "tell_family", lambda weights: pytest.fail("tried again"))
    again = FamilyFinder(library, tmp_path / "families.json", guard.finder.catalogue)
    assert [again.find(library.get(name), ALL) for name in ("a", "b")] == first
    monkeypatch.undo()
    (folder / "b.safetensors").unlink()
    save_file(random_state(3), folder / "a.safetensors")
    os.utime(folder / "a.safetensors", (time.time() - 30,) * 2)
    library.refresh()
    again.find(library.get("a"), ALL)
    kept = json.loads((tmp_path / "families.json").read_text("utf-8"))["found"]
    assert not any("b.safetensors" in key for key in kept)
    assert sum("a.safetensors" in key for key in kept) == 2  # the old version of a file that is still there is harmless


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 9, "found": {}}', b'{"format": 1, "found": {"x": 3}}']
)
def test_a_damaged_cache_is_made_anew(world, tmp_path, content, caplog):
    (tmp_path / "families.json").write_bytes(content)
    library, guard = world({"a": random_state(1)}, known={"a": "sdxl"})
    assert guard.finder.find(library.get("a"), ALL).family == "sdxl"
    assert FamilyFinder(library, tmp_path / "families.json")._found


def test_a_family_this_program_does_not_run_is_wrong_for_every_checkpoint(world):
    library, guard = world({"eq": random_state(1)}, known={"eq": "eq-sdxl"})
    verdict = guard.check(library.get("eq"), checkpoint("sdxl"), ALL)
    assert verdict.state == "wrong"
    assert "is a VAE for eq-sdxl (its hash is that of Known eq)" in verdict.message
