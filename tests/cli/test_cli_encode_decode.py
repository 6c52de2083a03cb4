"""`encode` and `decode`: right numbers, right sizes, what is in the files and in --json."""

import hashlib

import numpy as np
import pytest
import torch
from cli_files import CommandLine, kl_module, write_kl, write_picture, write_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sd_vae_kit.cli import encode_decode
from sd_vae_kit.core.networks.autoencoder import split_moments
from sd_vae_kit.core.run import oom_retry
from sd_vae_kit.pictures.infotext import parse
from sd_vae_kit.pictures.picture_file import open_picture, reflect_pad, to_image, to_pixels

KEYS = [
    "plan", "bands", "predicted_mb", "peak_mb", "dtype", "steps", "steps_shifted", "steps_fp32", "seconds",
    "vae_sha256", "warnings",
]  # fmt: skip


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def encode(cli, folder, *more, vae="vae.safetensors", image="a.png", out="out.safetensors"):
    return cli("encode", folder / image, "-o", folder / out, "--vae", folder / vae, "--json", *more)


def decode(cli, folder, *more, vae="vae.safetensors", latent="out.safetensors", out="out.png"):
    return cli("decode", folder / latent, "-o", folder / out, "--vae", folder / vae, "--json", *more)


def test_json_has_exactly_the_documented_keys(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png")
    for data in (encode(cli, tmp_path).data, decode(cli, tmp_path).data):
        assert list(data) == KEYS
        assert (data["plan"], data["bands"]) == ("whole", 1)
        assert data["predicted_mb"] > 0
        assert data["steps"] > 10
        assert (data["dtype"], data["steps_shifted"], data["steps_fp32"], data["warnings"]) == ("fp32", 0, 0, [])
        assert data["vae_sha256"] == hashlib.sha256((tmp_path / "vae.safetensors").read_bytes()).hexdigest()
        assert data["seconds"] > 0
        assert data["peak_mb"] is None or data["peak_mb"] >= 0


def test_the_latent_is_the_posteriors_mean_as_the_sampler_sees_it(cli, tmp_path):
    vae = write_kl(tmp_path / "vae.safetensors", 16, quant=False, family="flux")
    pixels = write_picture(tmp_path / "a.png", 40, 24)
    encode(cli, tmp_path).data  # noqa: B018
    mean, _ = split_moments(vae.encode(to_image(pixels)))
    latent = load_file(tmp_path / "out.safetensors")
    assert list(latent) == ["latent"]
    assert_close(latent["latent"], (mean - 0.1159) * 0.3611, atol=1e-5, rtol=1e-5)
    assert metadata_of(tmp_path / "out.safetensors") == {
        "family": "flux",
        "scale_factor": "0.3611",
        "shift_factor": "0.1159",
        "height": "40",
        "width": "24",
        "vae_sha256": hashlib.sha256((tmp_path / "vae.safetensors").read_bytes()).hexdigest(),
    }


def test_the_picture_is_the_decoders_and_carries_the_vaes_name_and_hash(cli, tmp_path):
    vae = write_kl(tmp_path / "vae.safetensors", family="sdxl")
    latent = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    save_file({"latent": latent}, tmp_path / "out.safetensors")
    data = decode(cli, tmp_path).data
    picture = open_picture(tmp_path / "out.png")
    expected = to_pixels(vae.decode(latent / 0.13025))[0]
    # sums in another order may round another way, but not by more than one level
    np.testing.assert_allclose(picture.pixels.astype(int), expected.astype(int), rtol=0, atol=1)
    assert parse(picture.infotext).fields == {
        "Size": "40x24",
        "VAE hash": data["vae_sha256"][:10],
        "VAE": "vae.safetensors",
    }
    assert data["warnings"] == ["the latent does not say its scale; taken as SDXL's"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (13, 17), (8, 8), (7, 50)])
def test_sides_are_reflected_to_multiples_of_eight_and_cropped_again(cli, tmp_path, height, width):
    vae = write_kl(tmp_path / "vae.safetensors", family="sd1")
    pixels = write_picture(tmp_path / "a.png", height, width)
    encode(cli, tmp_path).data  # noqa: B018
    latent = load_file(tmp_path / "out.safetensors")["latent"]
    assert latent.shape == (1, 4, -(-height // 8), -(-width // 8))
    decode(cli, tmp_path).data  # noqa: B018
    whole = vae.decode(split_moments(vae.encode(reflect_pad(to_image(pixels), 8)[0]))[0])
    result = open_picture(tmp_path / "out.png").pixels.astype(int)
    assert result.shape == (height, width, 3)
    assert np.abs(result - to_pixels(whole)[0][:height, :width]).max() <= 1


def test_a_sample_is_repeatable_and_differs_from_the_mean(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png")
    latents = []
    for more in ((), ("--sample", "--seed", "7"), ("--sample", "--seed", "7"), ("--sample", "--seed", "8")):
        encode(cli, tmp_path, *more).data  # noqa: B018
        latents.append(load_file(tmp_path / "out.safetensors")["latent"])
    assert_close(latents[1], latents[2], rtol=0, atol=0)
    assert not torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[1], latents[3])


def test_taesd_halves_encode_and_decode_without_a_scale(cli, tmp_path):
    encoder = write_tiny(tmp_path / "enc.safetensors", "encoder", family="sdxl")
    decoder = write_tiny(tmp_path / "dec.safetensors", "decoder", family="sdxl")
    pixels = write_picture(tmp_path / "a.png", 16, 24)
    encode(cli, tmp_path, vae="enc.safetensors").data  # noqa: B018
    latent = load_file(tmp_path / "out.safetensors")["latent"]
    assert_close(latent, encoder.encode(torch.tensor(pixels).permute(2, 0, 1)[None] / 255), atol=1e-5, rtol=1e-5)
    decode(cli, tmp_path, vae="dec.safetensors").data  # noqa: B018
    expected = to_pixels(decoder.decode(latent) * 2 - 1)[0].astype(int)
    assert np.abs(open_picture(tmp_path / "out.png").pixels - expected).max() <= 1


def test_a_taesd_has_no_posterior_to_draw_from(cli, tmp_path):
    write_tiny(tmp_path / "vae.safetensors", "encoder", family="sd1")
    write_picture(tmp_path / "a.png")
    assert "no posterior to draw from" in encode(cli, tmp_path, "--sample", "--seed", "1").error


def test_the_latents_metadata_win_over_what_the_vae_would_take(cli, tmp_path):
    """A file that could be of either family decodes by the scale its latent was made with, and says nothing."""
    vae = write_kl(tmp_path / "vae.safetensors")
    latent = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    save_file({"latent": latent}, tmp_path / "out.safetensors", metadata={"family": "sdxl", "scale_factor": "0.5"})
    assert decode(cli, tmp_path).data["warnings"] == []
    np.testing.assert_array_equal(open_picture(tmp_path / "out.png").pixels, to_pixels(vae.decode(latent / 0.5))[0])


def test_an_undecided_vae_is_taken_as_the_first_family_with_a_warning(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors")
    write_picture(tmp_path / "a.png")
    (warning,) = encode(cli, tmp_path).data["warnings"]
    assert "SD 1.x / 2.x or SDXL" in warning
    assert metadata_of(tmp_path / "out.safetensors")["family"] == "sd1"
    assert encode(cli, tmp_path, "--family", "sdxl").data["warnings"] == []
    assert metadata_of(tmp_path / "out.safetensors")["scale_factor"] == "0.13025"
    plain = cli("encode", tmp_path / "a.png", "-o", tmp_path / "out.safetensors", "--vae", tmp_path / "vae.safetensors")
    assert plain.code == 0
    assert plain.err.startswith("warning: ")
    assert "latent (1, 4, 5, 3) of SD 1.x / 2.x, fp32" in plain.out


def test_a_family_that_contradicts_the_latent_is_refused(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors")
    save_file({"latent": torch.zeros(1, 4, 2, 2)}, tmp_path / "out.safetensors", metadata={"family": "sdxl"})
    assert "says it is of the family sdxl; leave out --family" in decode(cli, tmp_path, "--family", "sd1").error
    assert decode(cli, tmp_path, "--family", "sdxl").code == 0


def test_a_vae_of_another_family_than_the_latent_is_warned_of(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    save_file({"latent": torch.zeros(1, 4, 2, 2)}, tmp_path / "out.safetensors", metadata={"family": "sdxl"})
    (warning,) = decode(cli, tmp_path).data["warnings"]
    assert warning == "the latent is of SDXL, vae.safetensors of SD 1.x / 2.x; the colours will be wrong"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_dtype_that_was_asked_for_is_used(cli, tmp_path, dtype):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png", 16, 16)
    assert encode(cli, tmp_path, "--dtype", dtype).data["dtype"] == dtype
    assert load_file(tmp_path / "out.safetensors")["latent"].dtype == torch.float32


def test_half_precision_files_are_computed_in_fp32_on_a_cpu(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_decode, "best_device", lambda: torch.device("cpu"))
    write_kl(tmp_path / "vae.safetensors", family="sd1", dtype=torch.float16)
    write_picture(tmp_path / "a.png", 16, 16)
    assert encode(cli, tmp_path).data["dtype"] == "fp32"


def test_a_torch_that_cannot_compute_in_half_precision_says_so(cli, tmp_path, monkeypatch):
    """torch 2.1 on a CPU; its message is simulated."""

    def fail(*_args, **_kwargs):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png", 16, 16)
    monkeypatch.setattr(oom_retry, "run_streamed", fail)
    assert "cannot compute in fp16 on this device; use --dtype fp32" in encode(cli, tmp_path, "--dtype", "fp16").error


def test_running_out_of_memory_is_one_line(cli, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png", 16, 16)
    monkeypatch.setattr(oom_retry, "run_streamed", fail)
    assert "not enough memory" in encode(cli, tmp_path, "--tiling", "off").error


def test_tiling_off_and_auto_run_the_picture_whole(cli, tmp_path):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    write_picture(tmp_path / "a.png", 16, 16)
    assert encode(cli, tmp_path, "--tiling", "off").data["plan"] == "whole"
    assert encode(cli, tmp_path, "--tiling", "auto").data["plan"] == "whole"


@pytest.mark.parametrize("name", ["out.jpg", "out.webp"])
def test_other_kinds_of_picture_carry_the_infotext_too(cli, tmp_path, name):
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    save_file({"latent": torch.zeros(1, 4, 2, 2)}, tmp_path / "out.safetensors", metadata={"family": "sd1"})
    decode(cli, tmp_path, out=name).data  # noqa: B018
    assert parse(open_picture(tmp_path / name).infotext).fields["VAE"] == "vae.safetensors"


def test_a_vae_inside_a_checkpoint_is_used(cli, tmp_path):
    vae = kl_module()
    whole = {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
    whole["conditioner.embedders.0.x"] = torch.zeros(1)
    save_file(whole, tmp_path / "model.safetensors")
    write_picture(tmp_path / "a.png", 16, 16)
    assert encode(cli, tmp_path, vae="model.safetensors").data["warnings"] == []
    assert metadata_of(tmp_path / "out.safetensors")["family"] == "sdxl"


def test_real_taesd_gives_the_picture_back(cli, weights_dir, tmp_path):
    """At least 25 dB on a photograph-like picture of 128 x 96."""
    pixels = write_picture(tmp_path / "a.png", 96, 128)
    image, latent, out = tmp_path / "a.png", tmp_path / "l.safetensors", tmp_path / "b.png"
    cli("encode", image, "-o", latent, "--vae", weights_dir / "taesd_encoder.safetensors", "--json").data  # noqa: B018
    cli("decode", latent, "-o", out, "--vae", weights_dir / "taesd_decoder.safetensors", "--json").data  # noqa: B018
    error = np.square(open_picture(out).pixels.astype(float) - pixels).mean()
    assert 10 * np.log10(255**2 / error) > 25
