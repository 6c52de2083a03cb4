"""Choosing a VAE: exact, reversible, all or nothing."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from fake_host import FakeHost
from safetensors.torch import save_file

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.errors import BrokenVaeError, VaeKitError, VaeMismatchError, VaeNotFoundError
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.swap import Swapper

NET = NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)


def random_vae(seed, net=NET, embed_dim=4, dtype=torch.float32):
    torch.manual_seed(seed)
    return AutoencoderKL(KlConfig(net, net, embed_dim=embed_dim)).eval().requires_grad_(False).to(dtype)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The files every test starts from; made once."""
    folder = tmp_path_factory.mktemp("template")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        save_file(random_vae(seed).state_dict(), folder / f"{name}.safetensors")
    save_file(random_vae(4, dtype=torch.float16).state_dict(), folder / "half.safetensors")
    wide = NetConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1)
    save_file(random_vae(5, wide).state_dict(), folder / "wide.safetensors")
    sixteen = NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=16)
    save_file(random_vae(6, sixteen, embed_dim=16).state_dict(), folder / "sixteen.safetensors")
    spoiled = random_vae(7).state_dict()
    spoiled["decoder.conv_out.bias"][1] = float("nan")
    save_file(spoiled, folder / "spoiled.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:5000])
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "VAE"))


@pytest.fixture
def library(folder, tmp_path):
    library = Library([Folder(folder, "vae")], tmp_path / "cache.json")
    library.refresh()
    return library


@pytest.fixture
def host():
    return FakeHost(random_vae(0))


@pytest.fixture
def swapper(host, library):
    swapper = Swapper(host, library)
    yield swapper
    swapper.close()


def choose(swapper, host, name):
    host.set(sd_vae=name)
    return swapper.choose()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(module, expected):
    actual = module.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(actual[name].dtype)), name


def test_the_chosen_file_is_live_and_the_module_is_the_same_object(swapper, host):
    module, parameters = host.first_stage, dict(host.first_stage.named_parameters())
    active = choose(swapper, host, "b.safetensors")
    assert active.name == "b.safetensors"
    assert "dropdown" in active.decision.reason
    assert host.first_stage is module
    assert all(parameters[name] is p for name, p in module.named_parameters())
    assert_same(module, random_vae(2).state_dict())
    assert host.events == ["writing", "written", "changed"]


def test_none_restores_the_checkpoints_own_weights_bit_for_bit(swapper, host):
    own = state_of(host.first_stage)
    for name in ("a.safetensors", "half.safetensors", "b.safetensors", "None", "c.safetensors", "None"):
        choose(swapper, host, name)
    assert_same(host.first_stage, own)
    assert swapper.active.name == "None"


def test_a_half_precision_file_takes_the_live_modules_dtype(swapper, host):
    choose(swapper, host, "half.safetensors")
    assert {p.dtype for p in host.first_stage.parameters()} == {torch.float32}
    assert_same(host.first_stage, random_vae(4, dtype=torch.float16).state_dict())


@pytest.mark.parametrize("first", ["a.safetensors", "None"])
def test_writing_into_live_weights_does_not_reach_the_remembered_ones(swapper, host, first):
    own = state_of(host.first_stage)
    choose(swapper, host, first)
    for round_trip in range(3):
        if first == "None" and round_trip == 0:
            choose(swapper, host, "c.safetensors")  # the own weights are remembered from here on
            choose(swapper, host, "None")
        with torch.no_grad():
            for parameter in host.first_stage.parameters():
                parameter.data.fill_(round_trip + 7.0)  # .data: no version counter sees this
        choose(swapper, host, "b.safetensors")
        choose(swapper, host, first)
        assert_same(host.first_stage, own if first == "None" else random_vae(1).state_dict())


def test_a_swap_back_needs_no_file(swapper, host, folder):
    choose(swapper, host, "a.safetensors")
    choose(swapper, host, "b.safetensors")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").unlink()
    choose(swapper, host, "a.safetensors")
    assert_same(host.first_stage, random_vae(1).state_dict())


def test_the_cache_setting_bounds_what_stays_in_ram(swapper, host, folder):
    host.set(sd_vae_checkpoint_cache=0)
    choose(swapper, host, "a.safetensors")
    choose(swapper, host, "b.safetensors")
    (folder / "a.safetensors").unlink()
    before = state_of(host.first_stage)
    with pytest.raises(VaeKitError):
        choose(swapper, host, "a.safetensors")
    assert_same(host.first_stage, before)
    choose(swapper, host, "None")
    assert_same(host.first_stage, random_vae(0).state_dict())


BAD = {
    "sixteen.safetensors": (VaeMismatchError, "16 latent channels"),
    "wide.safetensors": (VaeMismatchError, "built differently"),
    "spoiled.safetensors": (BrokenVaeError, "decoder.conv_out.bias"),
    "truncated.safetensors": (BrokenVaeError, "bytes"),
    "absent.safetensors": (VaeNotFoundError, "absent"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("before", ["None", "b.safetensors"])
def test_a_vae_that_cannot_be_used_changes_nothing(swapper, host, name, before):
    choose(swapper, host, before)
    state, active, events = state_of(host.first_stage), swapper.active, list(host.events)
    error, words = BAD[name]
    with pytest.raises(error, match=words) as caught:
        choose(swapper, host, name)
    assert "\n" not in str(caught.value)
    assert_same(host.first_stage, state)
    assert (swapper.active, host.events) == (active, events)


def test_a_failure_while_installing_puts_everything_back(swapper, host, monkeypatch):
    choose(swapper, host, "b.safetensors")
    state = state_of(host.first_stage)
    prepare = LiveWeights.prepare

    def spoil_last(self, *args, **kwargs):
        prepared = prepare(self, *args, **kwargs)
        del prepared[list(prepared)[-1]]
        return prepared

    monkeypatch.setattr(LiveWeights, "prepare", spoil_last)
    with pytest.raises(KeyError):
        choose(swapper, host, "c.safetensors")
    monkeypatch.undo()
    assert_same(host.first_stage, state)
    choose(swapper, host, "c.safetensors")
    assert_same(host.first_stage, random_vae(3).state_dict())


def test_a_host_that_can_gets_another_network_and_its_own_back(library):
    host = FakeHost(random_vae(0), can_replace=True)
    own_module, own = host.first_stage, state_of(host.first_stage)
    swapper = Swapper(host, library)
    choose(swapper, host, "wide.safetensors")
    assert host.first_stage is not own_module
    assert host.first_stage.decoder.conv_out.weight.shape[1] == 64
    with torch.no_grad():
        host.first_stage.decoder.conv_out.weight.fill_(3.0)
    choose(swapper, host, "a.safetensors")
    assert host.first_stage is own_module
    assert_same(own_module, random_vae(1).state_dict())
    choose(swapper, host, "wide.safetensors")
    assert not host.first_stage.decoder.conv_out.weight.eq(3.0).any()
    choose(swapper, host, "None")
    assert host.first_stage is own_module
    assert_same(own_module, own)
    swapper.close()


def test_a_refused_replacement_leaves_weights_and_module(library):
    host = FakeHost(random_vae(0), can_replace=True)
    swapper = Swapper(host, library)
    choose(swapper, host, "wide.safetensors")
    wide = host.first_stage
    host.fail_on_replace = RuntimeError("no room")
    own_module = swapper._own.module
    own = state_of(own_module)
    with pytest.raises(RuntimeError, match="no room"):
        choose(swapper, host, "b.safetensors")
    assert host.first_stage is wide
    assert_same(own_module, own)
    assert swapper.active.name == "wide.safetensors"
    swapper.close()


def test_a_new_checkpoint_brings_its_own_vae(swapper, host):
    choose(swapper, host, "a.safetensors")
    host.first_stage = random_vae(9)
    swapper.checkpoint_changed()
    choose(swapper, host, "None")
    assert_same(host.first_stage, random_vae(9).state_dict())
    choose(swapper, host, "a.safetensors")
    choose(swapper, host, "None")
    assert_same(host.first_stage, random_vae(9).state_dict())


def test_a_job_has_its_own_choice_and_the_setting_stays(swapper, host):
    choose(swapper, host, "a.safetensors")
    active = swapper.choose(job_vae="b.safetensors")
    assert (active.name, active.decision.rule) == ("b.safetensors", "job")
    assert swapper.choose().name == "a.safetensors"
    assert host.settings.vae.sd_vae == "a.safetensors"


def test_a_file_replaced_on_disk_is_read_again(swapper, host, library, folder):
    choose(swapper, host, "a.safetensors")
    time.sleep(0.01)
    save_file(random_vae(30).state_dict(), folder / "a.safetensors")
    library.refresh()
    choose(swapper, host, "a.safetensors")
    assert_same(host.first_stage, random_vae(30).state_dict())


def test_a_vae_known_to_be_of_another_family_is_used_with_a_warning(folder, library, host):
    save_file(random_vae(8).state_dict(), folder / "xl.safetensors", metadata={"family": "sdxl"})
    library.refresh()
    swapper = Swapper(host, library)
    active = choose(swapper, host, "xl.safetensors")
    assert any("SDXL" in warning for warning in active.warnings)
    swapper.close()


def test_a_taesd_file_needs_a_host_that_can_replace_the_network(folder, library, host):
    torch.manual_seed(0)
    tiny = TinyAutoencoder(TinyConfig(width=32))
    save_file(tiny.decoder.state_dict(), folder / "taesd_decoder.safetensors")
    library.refresh()
    swapper = Swapper(host, library)
    with pytest.raises(VaeMismatchError, match="Tiny instead of Kl"):
        choose(swapper, host, "taesd_decoder.safetensors")
    swapper.close()
    replacing = FakeHost(random_vae(0), can_replace=True)
    swapper = Swapper(replacing, library)
    choose(swapper, replacing, "taesd_decoder.safetensors")
    latent = torch.randn(1, 4, 4, 4)
    assert torch.equal(replacing.first_stage.decode(latent), tiny.decode(latent))
    swapper.close()
