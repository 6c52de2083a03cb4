"""A VAE from its file to pictures: what is built, what is computed, what is refused."""

import os
import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from vae_files import amplify_stream, kl_config, kl_state, needs_half, picture, randomised, tiny_state, write

from sd_vae_kit.core.dtypes import DTYPES
from sd_vae_kit.core.files.detection import Detection
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, split_moments
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.plan import planner
from sd_vae_kit.core.plan.free_memory import Free
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, VaeWeights, build, choose_format, compute_dtype, load_vae, make_vae, read_vae
from sd_vae_kit.errors import (
    BrokenVaeError,
    OptionError,
    PictureError,
    UnsupportedVaeError,
    VaeMismatchError,
    VaeNotFoundError,
)
from sd_vae_kit.settings.sections import TilingSettings


@pytest.fixture
def kl_file(tmp_path):
    return write(tmp_path / "kl.safetensors", kl_state(), {"family": "sd1", "note": "x"})


@pytest.fixture
def tiny_file(tmp_path):
    return write(tmp_path / "tiny.safetensors", tiny_state(), {"family": "sdxl"})


def test_weights_are_read_under_canonical_names_with_the_files_metadata(kl_file):
    weights = read_vae(kl_file)
    assert weights.state.keys() == kl_state().keys()
    assert weights.metadata == {"family": "sd1", "note": "x"}
    assert weights.dtype == "fp32"
    assert all(torch.equal(weights.state[n], t) for n, t in kl_state().items())


def test_a_vae_inside_a_checkpoint_is_read_without_the_rest(tmp_path):
    rest = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4), "cond_stage_model.x": torch.ones(2)}
    baked = {f"first_stage_model.{n}": t for n, t in kl_state().items()}
    weights = read_vae(write(tmp_path / "full.safetensors", {**rest, **baked}))
    assert weights.state.keys() == kl_state().keys()
    assert weights.detection.families == ("sd1",)


def test_weights_with_nan_are_refused_by_name(tmp_path):
    state = kl_state()
    state["decoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    state["encoder.conv_in.bias"][3] = float("inf")
    with pytest.raises(
        BrokenVaeError, match=r"x\.safetensors holds NaN or infinity in \S+conv_in\S+ and 1 more; download"
    ):
        read_vae(write(tmp_path / "x.safetensors", state))


def test_a_file_whose_download_only_reserved_its_space_is_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", kl_state())
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)
    with pytest.raises(BrokenVaeError, match=r"x\.safetensors has only zeros in \S+ and \d+ more.*download it again"):
        read_vae(path)


@pytest.mark.parametrize("content", [b"", b"\x07" * 999, b"<html>"])
def test_files_that_are_no_model_raise_our_errors(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BrokenVaeError):
        load_vae(tmp_path / "x.safetensors")


def test_a_lora_and_a_missing_file_raise_our_errors(tmp_path):
    with pytest.raises(UnsupportedVaeError, match=r"l\.safetensors is a LoRA"):
        load_vae(write(tmp_path / "l.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(4, 4)}))
    with pytest.raises(VaeNotFoundError, match="gone"):
        load_vae(tmp_path / "gone.safetensors")


# --- building --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [kl_state(), tiny_state()], ids=["kl", "tiny"])
def test_the_module_is_ready_to_run_and_shares_the_weights_memory(tmp_path, state):
    weights = read_vae(write(tmp_path / "x.safetensors", state))
    module = build(weights)
    assert isinstance(module, AutoencoderKL if "quant_conv.weight" in state else TinyAutoencoder)
    assert not module.training
    for name, parameter in module.named_parameters():
        assert not parameter.requires_grad
        assert parameter.device.type == "cpu"
        assert parameter.data_ptr() == weights.state[name].data_ptr()


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp64", torch.float32),
        ("fp8_e4m3fn", torch.float16),
        ("fp8_e5m2", torch.float16),
    ],
)
def test_a_file_is_run_in_its_own_precision_and_fp8_in_fp16(tmp_path, stored, computed):
    state = {n: t.to(DTYPES[stored]) for n, t in kl_state().items()}
    weights = read_vae(write(tmp_path / "x.safetensors", state))
    assert weights.dtype == stored
    module = build(weights)
    assert {p.dtype for p in module.parameters()} == {computed}
    expected = state["encoder.conv_in.weight"].to(computed)
    assert torch.equal(module.encoder.conv_in.weight, expected)


def test_a_mixture_is_run_in_the_wider_precision():
    mixed = {"a": torch.ones(1, dtype=torch.float16), "b": torch.ones(1, dtype=torch.float32)}
    assert compute_dtype(mixed) == torch.float32
    assert compute_dtype({"a": torch.ones(1).half(), "b": torch.ones(1).to(torch.float8_e5m2)}) == torch.float16
    assert compute_dtype({"a": torch.ones(1).half(), "b": torch.ones(1).bfloat16()}) == torch.float32


def test_a_dtype_can_be_asked_for(kl_file):
    vae = load_vae(kl_file, dtype=torch.bfloat16)
    assert {p.dtype for p in vae.module.parameters()} == {torch.bfloat16}
    assert vae.encode(picture()).dtype == torch.float32, "results come in the picture's own dtype"


def test_statistics_beside_the_network_are_no_weights_of_the_module(tmp_path):
    state = kl_state(kl_config(32))
    weights = read_vae(write(tmp_path / "x.safetensors", {**state, "bn.running_mean": torch.ones(128)}))
    assert "bn.running_mean" in weights.state
    assert build(weights).state_dict().keys() == state.keys()


# --- encoding and decoding -------------------------------------------------------------------------------------------


def test_a_kl_latent_is_the_scaled_mean(kl_file):
    vae, image = load_vae(kl_file), picture()
    mean, _ = split_moments(vae.run("encoder", image).tensor)
    assert_close(mean, split_moments(vae.module.encode(image))[0], atol=1e-5, rtol=0)
    assert torch.equal(vae.encode(image), mean * 0.18215)
    assert torch.allclose(vae.decode(vae.encode(image)), vae.module.decode(mean), atol=1e-5)


def test_the_shift_of_sd3_is_applied_both_ways(tmp_path):
    path = write(tmp_path / "x.safetensors", kl_state(kl_config(16, quant_conv=False)))
    vae, image = load_vae(path, family="flux"), picture()
    mean, _ = split_moments(vae.run("encoder", image).tensor)
    assert_close(mean, split_moments(vae.module.encode(image))[0], atol=1e-5, rtol=0)
    assert torch.allclose(vae.encode(image), (mean - 0.1159) * 0.3611)
    assert torch.allclose(vae.decode(vae.encode(image)), vae.module.decode(mean), atol=1e-4)


def test_a_generator_draws_from_the_posterior_and_repeats_itself(kl_file):
    vae, image = load_vae(kl_file), picture()
    draws = [vae.encode(image, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    mean, std = split_moments(vae.module.encode(image))
    many = torch.stack([vae.encode(image, generator=torch.Generator().manual_seed(seed)) for seed in range(60)])
    assert torch.allclose(many.std(0).mean(), (std * 0.18215).mean(), rtol=0.1)
    assert (many.mean(0) - mean * 0.18215).abs().mean() < 0.3 * (std * 0.18215).mean()


def test_a_taesd_sees_zero_to_one_and_scales_nothing(tiny_file):
    vae, image = load_vae(tiny_file), picture(16, 24)
    rgb = image / 2 + 0.5
    assert torch.allclose(vae.encode(image), vae.module.encode(rgb), atol=1e-6)
    latent = vae.encode(image, generator=torch.Generator())
    assert torch.equal(latent, vae.encode(image)), "its posterior is a point"
    assert torch.allclose(vae.decode(latent), vae.module.decode(latent) * 2 - 1, atol=1e-6)
    assert vae.decode(latent).shape == image.shape


def test_results_need_no_gradient_and_inputs_are_left_alone(kl_file):
    vae, image = load_vae(kl_file), picture().requires_grad_()
    before = image.detach().clone()
    latent = vae.encode(image)
    assert not latent.requires_grad
    assert not vae.decode(latent).requires_grad
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_a_vae_says_what_it_is(kl_file, tiny_file, name):
    vae = load_vae({"kl": kl_file, "tiny": tiny_file}[name])
    assert (vae.kind, vae.part) == (name, "both")
    assert vae.latent_format.name == {"kl": "sd1", "tiny": "sdxl"}[name]
    assert vae.latent_format.downscale == {"kl": 2, "tiny": 8}[name]


# --- how it is run ---------------------------------------------------------------------------------------------------


def test_by_default_a_picture_that_does_not_fit_into_memory_runs_in_bands(kl_file, monkeypatch):
    vae, latent = load_vae(kl_file), torch.randn(1, 4, 64, 48)
    expected = vae.decode(latent)
    assert vae.reports["decoder"].plan == "whole"
    whole = vae.reports["decoder"].whole_mb
    monkeypatch.setattr(planner, "free_memory", lambda device: Free(whole * 2**20 // 2, "a test"))
    assert_close(vae.decode(latent), expected, atol=1e-5, rtol=0)
    assert vae.reports["decoder"].is_streamed
    assert vae.reports["decoder"].bands > 1
    assert_close(vae.encode(expected), vae.encode(expected, request=RunRequest(TilingSettings(enabled=False))))
    assert vae.reports["encoder"].plan == "whole"


@needs_half
def test_by_default_nothing_overflows_and_what_was_needed_is_remembered_in_one_place():
    module = randomised(AutoencoderKL(kl_config())).requires_grad_(False)
    latent = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    amplify_stream(module, "decoder", 15)
    module.half()
    assert not bool(torch.isfinite(module.decode(FORMATS["sd1"].to_z(latent).half())).all())
    runner = Runner()
    first, second = (Vae(module, FORMATS["sd1"], label=name, runner=runner) for name in ("first", "second"))
    assert bool(torch.isfinite(first.decode(latent)).all())
    report = first.reports["decoder"]
    assert report.steps_shifted > 0
    assert report.steps_recomputed > 0
    assert report.precision in report.warnings[0]
    assert bool(torch.isfinite(second.decode(latent)).all())
    assert second.reports["decoder"].steps_recomputed == 0, "the runner is the same"
    never = RunRequest(policy=PrecisionPolicy("never"))
    assert not bool(torch.isfinite(first.decode(latent, request=never)).all())


def test_a_network_that_the_engine_does_not_know_runs_by_its_own_forward_and_says_so(kl_file):
    class Unknown(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x)

    vae, latent = load_vae(kl_file), torch.randn(1, 4, 8, 6)
    vae.module.decoder.mid.block_1 = Unknown(vae.module.decoder.mid.block_1)
    image = vae.decode(latent)
    assert torch.equal(image, vae.module.decode(FORMATS["sd1"].to_z(latent)))
    report = vae.reports["decoder"]
    assert (report.plan, report.bands, report.steps, report.predicted_mb) == ("whole", 1, None, None)
    assert report.warnings == (f"run whole by its own forward: {report.stepped_aside}",)
    assert "decoder.mid.block_1 (Unknown) is not a residual block" in report.stepped_aside
    vae.encode(image)
    assert vae.reports["encoder"].warnings == (), "the other half is understood"


def test_each_thread_finds_the_reports_of_its_own_calls(kl_file):
    vae, seen = load_vae(kl_file), []
    vae.decode(torch.randn(1, 4, 8, 6))

    def other():
        seen.append(dict(vae.reports))
        vae.encode(picture())
        seen.append(dict(vae.reports))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] == {}
    assert seen[1].keys() == {"encoder"}
    assert vae.reports.keys() == {"decoder"}


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_latent_of_another_family_is_refused_with_the_remedy(kl_file):
    with pytest.raises(VaeMismatchError) as raised:
        load_vae(kl_file).decode(torch.zeros(1, 16, 4, 4))
    assert str(raised.value) == (
        "the latent has 16 channels, kl.safetensors (SD 1.x / 2.x) has 4; choose a VAE of SD 3 / 3.5 or FLUX.1"
    )
    with pytest.raises(VaeMismatchError, match=r"has 7 channels.*choose a VAE with 7"):
        load_vae(kl_file).decode(torch.zeros(1, 7, 4, 4))


@pytest.mark.parametrize(
    ("half", "call", "other"), [("decoder", "encode", "encoder"), ("encoder", "decode", "decoder")]
)
@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_a_missing_half_is_named(tmp_path, kind, half, call, other):
    if kind == "kl":
        state = kl_state(kl_config(encoder=half == "encoder", decoder=half == "decoder"))
    else:
        state = tiny_state(TinyConfig(4, 8, encoder=half == "encoder", decoder=half == "decoder"))
    vae = load_vae(write(tmp_path / "half.safetensors", state))
    assert vae.part == half
    argument = picture(16, 16) if call == "encode" else torch.zeros(1, 4, 2, 2)
    with pytest.raises(
        VaeMismatchError, match=rf"half\.safetensors holds only a {half} and cannot {call}.*the {other} file"
    ):
        getattr(vae, call)(argument)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 16, 16), (1, 1, 16, 16)])
def test_images_without_three_channels_are_refused(kl_file, shape):
    with pytest.raises(VaeMismatchError, match=r"the VAE needs \(B, 3, H, W\)"):
        load_vae(kl_file).encode(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(17, 16), (16, 9), (1, 1), (0, 8)])
def test_sides_that_are_no_multiples_are_refused(tiny_file, height, width):
    with pytest.raises(PictureError, match=rf"the picture is {width} x {height}; .* multiples of 8"):
        load_vae(tiny_file).encode(torch.zeros(1, 3, height, width))


def test_a_latent_without_batch_is_refused(kl_file):
    with pytest.raises(VaeMismatchError, match=r"shape \(4, 8, 8\), the VAE needs \(B, 4, h, w\)"):
        load_vae(kl_file).decode(torch.zeros(4, 8, 8))


# --- family ----------------------------------------------------------------------------------------------------------


def test_an_undecided_family_is_the_first_one_with_a_warning(tmp_path):
    vae = load_vae(write(tmp_path / "x.safetensors", tiny_state()))
    assert vae.latent_format.name == "sd1"
    assert vae.warnings == (
        "x.safetensors may be of SD 1.x / 2.x or SDXL; taken as SD 1.x / 2.x, say which if colours are off",
    )


def test_the_users_word_wins_and_silences_the_warning(tmp_path):
    path = write(tmp_path / "x.safetensors", tiny_state(), {"family": "sd1"})
    vae = load_vae(path, family="sdxl")
    assert vae.latent_format == FORMATS["sdxl"]
    assert vae.warnings == ()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("sd5", "there is no family 'sd5'; use one of sd1, sdxl"),
        ("flux", r"has 4 latent channels.*FLUX\.1 needs 16.*use sd1 or sdxl"),
    ],
)
def test_an_impossible_family_is_refused(kl_file, family, words):
    with pytest.raises(OptionError, match=words):
        load_vae(kl_file, family=family)


def test_latents_of_no_family_are_left_unscaled(tmp_path):
    vae = load_vae(write(tmp_path / "x.safetensors", kl_state(kl_config(7))))
    assert (vae.latent_format.scale_factor, vae.latent_format.shift_factor, vae.latent_format.z_channels) == (
        1.0,
        0.0,
        7,
    )
    assert "left unscaled" in vae.warnings[0]
    assert vae.decode(vae.encode(picture())).shape == picture().shape


def test_sanas_family_does_not_fit_the_small_cells_of_a_kl_vae():
    detection = Detection("kl", "both", "ldm", kl_config(32), {}, ("flux2",), "channels")
    with pytest.raises(OptionError, match="SANA needs 32 and cells of 32 pixels"):
        choose_format(detection, "sana")


def test_weights_in_memory_make_a_vae_without_a_file(kl_file):
    weights = read_vae(kl_file)
    vae = make_vae(VaeWeights(weights.detection, weights.state, {}), family="sdxl")
    assert isinstance(vae, Vae)
    assert vae.latent_format.scale_factor == 0.13025


# --- real weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["taesd", "taesdxl", "taesd3", "taef1"])
def test_real_taesd_weights_bring_a_photograph_back(weights_dir, name):
    data = pytest.importorskip("skimage.data")
    rgb = torch.from_numpy(data.astronaut()[:160, 96:352].copy()).permute(2, 0, 1)[None] / 255
    encoder, decoder = (
        load_vae(weights_dir / f"{name}_{part}.safetensors", dtype=torch.float32) for part in ("encoder", "decoder")
    )
    latent = encoder.encode(rgb * 2 - 1)
    assert latent.shape == (1, encoder.latent_format.z_channels, 20, 32)
    error = (decoder.decode(latent).clamp(-1, 1) / 2 + 0.5 - rgb).square().mean()
    assert -10 * float(error.log10()) > 22
