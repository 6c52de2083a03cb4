"""The precision guard beside a fake A1111: NaN is named, the program's options hold, its own handling is repaired."""

import pytest
import torch
from fake_a1111 import Job, Runner
from torch import nn
from vae_files import amplify_stream, needs_half

from sd_vae_kit.errors import NanError


@pytest.fixture
def latent():
    return torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(0))


def vae_of(webui):
    return webui.shared.sd_model.first_stage_model


def spoil(webui, name):
    with torch.no_grad():
        dict(vae_of(webui).named_parameters())[name].view(-1)[-1] = float("nan")


def decode(webui, latent):
    return webui.processing.decode_latent_batch(webui.shared.sd_model, latent, check_for_nans=True)


@pytest.mark.parametrize(
    "weight", ["decoder.conv_out.bias", "decoder.up.0.block.1.norm2.weight", "post_quant_conv.bias"]
)
def test_a_bad_weight_of_the_decoder_is_named(webui, latent, weight):
    spoil(webui, weight)
    with pytest.raises(NanError, match=rf"^the weights of the checkpoint's own VAE contain NaN in {weight}; "):
        decode(webui, latent)


@pytest.mark.parametrize("weight", ["encoder.conv_in.bias", "quant_conv.weight"])
def test_a_bad_weight_of_the_encoder_is_named(webui, weight):
    spoil(webui, weight)
    with pytest.raises(NanError, match=rf"contain NaN in {weight}; "):
        webui.shared.sd_model.encode_first_stage(torch.zeros(1, 3, 32, 24))


def test_a_bad_weight_is_named_with_tiling_switched_off_and_the_file_by_its_name(webui, latent):
    webui.shared.opts.data["vae_kit_tiling_enabled"] = False
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    spoil(webui, "decoder.conv_out.weight")
    with pytest.raises(NanError, match=r"^the weights of plain\.safetensors contain NaN in decoder\.conv_out\.weight"):
        decode(webui, latent)


def test_never_leaves_everything_to_the_program(webui, latent, host):
    webui.shared.opts.data.update(vae_kit_precision_mode="Never", vae_kit_tiling_enabled=False)
    spoil(webui, "decoder.conv_out.bias")
    assert bool(torch.isnan(decode_alone(webui, latent)).any())
    assert host.api.api_status()["last_decode"] is None, "it was not ours to run"


def decode_alone(webui, latent):
    return webui.shared.sd_model.decode_first_stage(latent)


@pytest.mark.parametrize("place", [0, -1])
def test_a_bad_latent_is_the_samplers_fault(webui, latent, place):
    latent.view(-1)[place] = float("nan")
    with pytest.raises(
        webui.devices.NansException, match=r"^the latent already contains NaN: the sampler, not the VAE\. A "
    ):
        decode(webui, latent)
    webui.shared.opts.data["vae_kit_repair_nan_check"] = False
    wanted = webui.devices.NansException if place == 0 else NanError
    with pytest.raises(wanted):
        decode(webui, latent)


def test_the_check_of_one_value_becomes_one_of_all_and_back_again(webui):
    x = torch.zeros(2, 4, 3, 3)
    x.view(-1)[-1] = float("nan")
    with pytest.raises(webui.devices.NansException, match="produced in vae"):
        webui.devices.test_for_nans(x, "vae")
    webui.devices.test_for_nans(torch.zeros(2, 2), "vae")
    webui.shared.opts.data["vae_kit_repair_nan_check"] = False
    webui.devices.test_for_nans(x, "vae")


@pytest.mark.parametrize("is_repaired", [True, False])
def test_the_switch_to_32_bits_goes_back_when_the_picture_is_done(webui, latent, is_repaired):
    webui.shared.opts.data.update(
        vae_kit_precision_mode="Never", vae_kit_tiling_enabled=False, vae_kit_repair_sticky_fp32=is_repaired
    )
    webui.devices.dtype_vae = torch.bfloat16
    vae_of(webui).to(torch.bfloat16)
    spoil(webui, "decoder.conv_out.bias")
    decode(webui, latent.bfloat16())
    left = torch.bfloat16 if is_repaired else torch.float32
    assert webui.devices.dtype_vae == left
    assert {parameter.dtype for parameter in vae_of(webui).parameters()} == {left}


def test_the_programs_own_options_hold(webui, host):
    policy = host.interceptor.settings.policy
    opts = webui.shared.opts.data
    assert (policy().mode, policy().prefer_bf16, policy().may_use_fp32) == ("auto", False, True)
    opts["auto_vae_precision"] = False
    assert not policy().may_use_fp32
    opts["auto_vae_precision_bfloat16"] = True
    assert (policy().prefer_bf16, policy().may_use_fp32) == (True, True)
    opts.update(auto_vae_precision_bfloat16=False, vae_kit_precision_prefer_bf16=True)
    assert (policy().prefer_bf16, policy().may_use_fp32) == (True, False)


@needs_half
def test_an_overflow_is_repaired_said_below_the_picture_and_remembered(webui, host, tmp_path):
    vae, latent = vae_of(webui), torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(0))
    exact = decode_alone(webui, latent)
    amplify_stream(vae, "decoder", 14)
    vae.half()
    said, job = [], Job(scripts=Runner([], []))
    job.comment = said.append
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with host.interceptor.context.job(job):
        image = decode_alone(webui, latent.half())
    assert float((image.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())
    report = host.api.api_status()["last_decode"]
    assert report["steps_shifted"] > 0
    assert (report["steps_fp32"], report["dtype"]) == (0, "fp16")
    assert said == [f"VAE: {report['steps_shifted']} of {report['steps']} steps were shifted to stay in range"]
    assert job.extra_generation_params["VAE Kit precision"] == f"fp16, {report['steps_shifted']} shifted"
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    decode_alone(webui, latent.half())
    assert host.api.api_status()["last_decode"]["steps_recomputed"] == 0
    assert report["steps_recomputed"] > 0
    assert host.api.forget_precision() == 1
    decode_alone(webui, latent.half())
    assert host.api.api_status()["last_decode"]["steps_recomputed"] > 0


@needs_half
def test_without_fp32_only_what_needs_it_fails(webui, latent):
    vae = vae_of(webui)
    with torch.no_grad():
        vae.decoder.norm_out.weight.mul_(2.0**15)
        vae.decoder.conv_out.weight.mul_(2.0**-12)
    vae.half()
    webui.shared.opts.data["auto_vae_precision"] = False
    with pytest.raises(NanError, match=r"overflows fp16 in decoder\.conv_out and computing in fp32 is switched off"):
        decode_alone(webui, latent.half())
    webui.shared.opts.data["auto_vae_precision"] = True
    assert bool(torch.isfinite(decode_alone(webui, latent.half())).all())
    assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float16 for p in vae.parameters())
