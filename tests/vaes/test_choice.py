"""Which VAE is active, and the reason given."""

import pytest
import torch
from fake_host import FakeHost
from safetensors.torch import save_file

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.vaes.choice import resolve
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder

NET = NetConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)


@pytest.fixture
def world(tmp_path):
    """A checkpoint `model1.5` with neighbours whose names begin alike, and VAEs in a folder."""
    vaes, checkpoints = tmp_path / "VAE", tmp_path / "Stable-diffusion"
    vaes.mkdir()
    checkpoints.mkdir()
    state = AutoencoderKL(KlConfig(NET, NET)).state_dict()
    names = [vaes / "card.safetensors", vaes / "job.safetensors", vaes / "set.safetensors"]
    names += [checkpoints / "model1.5.2.vae.safetensors", checkpoints / "model1.5.vae.safetensors"]
    for path in names:
        save_file(state, path)
    host = FakeHost(torch.nn.Identity(), checkpoint_path=checkpoints / "model1.5.safetensors")
    library = Library([Folder(vaes, "vae"), Folder(checkpoints, "checkpoint")], tmp_path / "cache.json")
    library.refresh()
    return host, library


def name_of(decision):
    return decision.entry.path.name if decision.entry else "None"


def test_automatic_takes_the_file_whose_stem_is_equal_not_one_that_begins_alike(world):
    host, library = world
    decision = resolve(host, library)
    assert name_of(decision) == "model1.5.vae.safetensors"
    assert (decision.rule, "beside" in decision.reason) == ("beside", True)


def test_a_file_beside_the_checkpoint_beats_one_in_the_vae_folder(world):
    host, library = world
    other = host.checkpoint.path.parent.parent / "VAE" / "model1.5.vae.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    library.refresh()
    assert resolve(host, library).entry.path.parent == host.checkpoint.path.parent


def test_without_a_rule_it_is_the_checkpoints_own(world):
    host, library = world
    (host.checkpoint.path.parent / "model1.5.vae.safetensors").unlink()
    library.refresh()
    decision = resolve(host, library)
    assert (name_of(decision), decision.rule) == ("None", "own")
    assert "checkpoint's own" in decision.reason


@pytest.mark.parametrize(
    ("dropdown", "overrides", "card", "job", "expected", "rule"),
    [
        ("Automatic", True, None, None, "model1.5.vae.safetensors", "beside"),
        ("Automatic", True, "card.safetensors", None, "card.safetensors", "card"),
        ("Automatic", True, "None", None, "None", "card"),
        ("Automatic", True, "card.safetensors", "job.safetensors", "job.safetensors", "job"),
        ("set.safetensors", True, "card.safetensors", None, "set.safetensors", "setting"),
        ("set.safetensors", False, "card.safetensors", None, "card.safetensors", "card"),
        ("set.safetensors", False, None, None, "model1.5.vae.safetensors", "beside"),
        ("None", True, "card.safetensors", None, "None", "setting"),
        ("set.safetensors", True, "card.safetensors", "job.safetensors", "job.safetensors", "job"),
        ("set.safetensors", True, None, "None", "None", "job"),
        ("set.safetensors", True, None, "Automatic", "set.safetensors", "setting"),
    ],
)
def test_the_order_of_rules(world, dropdown, overrides, card, job, expected, rule):
    host, library = world
    host.set(sd_vae=dropdown, sd_vae_overrides_per_model_preferences=overrides)
    host.prefer(card)
    decision = resolve(host, library, job)
    assert (name_of(decision), decision.rule) == (expected, rule)
    assert decision.reason.endswith(".")


def test_the_command_line_beats_everything(world):
    host, library = world
    host.forced_vae = library.get("set.safetensors").path
    assert name_of(resolve(host, library, "job.safetensors")) == "set.safetensors"
    host.forced_vae = host.forced_vae.with_name("gone.safetensors")
    with pytest.raises(VaeNotFoundError, match=r"--vae-path.*gone"):
        resolve(host, library)


def test_a_name_that_is_not_there_is_an_error_that_names_it(world):
    host, library = world
    host.set(sd_vae="absent.safetensors")
    with pytest.raises(VaeNotFoundError, match=r"absent\.safetensors"):
        resolve(host, library)
