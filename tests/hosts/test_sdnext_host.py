"""The SD.Next adapter beside a fake SD.Next with a real diffusers AutoencoderKL."""

import pytest
import torch
from fake_sdnext import FakeSdNext
from torch import nn


@pytest.fixture
def program_class():
    return FakeSdNext


@pytest.fixture
def webui(fake):
    from sd_vae_kit.webui import callbacks

    callbacks.register()
    fake.sd_vae.refresh_vae_list()
    return fake


def test_weights_of_the_pipeline_change_in_place_and_default_gives_them_back(webui, host):
    pipeline = webui.load_model()
    module, own = pipeline.vae, webui.decode()
    assert host.name == "SD.Next"
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = webui.decode()
    assert pipeline.vae is module
    assert not torch.equal(chosen, own)
    assert host.report.status().reason == "plain.safetensors was chosen in the VAE dropdown."
    assert webui.sd_vae.loaded_vae_file.endswith("plain.safetensors")
    webui.shared.opts.set("sd_vae", "Default")
    assert torch.equal(webui.decode(), own)
    assert webui.sd_vae.loaded_vae_file is None
    assert webui.host_loaded == []


def test_a_vae_chosen_before_the_checkpoint_was_loaded_goes_over_its_own(webui, host):
    webui.shared.opts.data["sd_vae"] = "plain.safetensors"
    webui.load_model()
    chosen = webui.decode()
    assert host.report.status().name == "plain.safetensors"
    webui.shared.opts.set("sd_vae", "Default")
    assert not torch.equal(webui.decode(), chosen)


def test_a_bad_choice_goes_back_with_one_line(webui, host, messages):
    webui.load_model()
    own = webui.decode()
    for name in ("wide.safetensors", "cut.safetensors"):
        assert webui.shared.opts.set("sd_vae", name) is False
        assert messages.pop().endswith("The option stays at Automatic.")
        assert not messages
    assert torch.equal(webui.decode(), own)


def test_a_job_has_a_vae_of_its_own_and_gives_it_back_also_when_it_fails(webui, script):
    webui.load_model()
    own = webui.decode()
    made = webui.generate(script, "plain.safetensors").pictures[0]
    assert not torch.equal(made, own)
    assert torch.equal(webui.decode(), own)
    with pytest.raises(RuntimeError, match="the host failed"):
        webui.generate(script, "other.safetensors", fail=True)
    assert torch.equal(webui.decode(), own)


def test_what_nobody_knows_is_left_to_the_program(webui, host):
    webui.load_model(vae=nn.Conv3d(3, 16, 3))
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert webui.host_loaded == ["reload"]


def test_streamed_weights_are_left_to_the_program(webui, host):
    with torch.device("meta"):
        streamed = nn.Conv2d(3, 3, 3)
    webui.load_model(vae=streamed)
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert webui.host_loaded == ["reload"]
    assert host.report.status().reason


def test_jobs_in_bands_give_the_pipelines_own_picture(webui, host, script):
    """diffusers' own decoder; its class belongs to other pipelines, too."""
    from diffusers.models.autoencoders.vae import Decoder

    webui.load_model()
    webui.latent = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
    webui.shared.opts.data["vae_kit_precision_mode"] = "Never"
    own = webui.generate(script, "Automatic", "Automatic", "Off").pictures[0]
    del webui.shared.opts.data["vae_kit_precision_mode"]
    assert host.interceptor.runner.last == {}
    job = webui.generate(script, "Automatic", "Automatic", "Always stream")
    torch.testing.assert_close(job.pictures[0], own, atol=1e-5, rtol=0)
    assert host.interceptor.runner.last["decoder"].bands > 1
    assert job.extra_generation_params["VAE Kit tiling"].startswith("stream in ")
    assert host.forecasts.forecast((64, 64), type(host.interceptor.settings.job_tiling)()).endswith(" will run whole")
    host.remove()
    assert "__vae_kit_patch__" not in vars(Decoder.forward)
