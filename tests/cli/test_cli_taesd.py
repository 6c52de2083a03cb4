"""The command line with every TAESD: halves in two files or one, packed latents, cells of 32 pixels, bands."""

import numpy as np
import pytest
import torch
from cli_files import CommandLine, write_picture
from vae_files import tiny_state, write

from sd_vae_kit.core.files.latent_file import LatentFile, read_latent, write_latent
from sd_vae_kit.core.networks.latent_format import FORMATS, pack
from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.pictures import picture_file as pictures

FILES = {  # name: channels, variant, family
    "taesd": (4, "plain", "sd1"),
    "taesdxl": (4, "plain", "sdxl"),
    "taesd3": (16, "plain", "sd3"),
    "taef1": (16, "plain", "flux"),
    "taef2": (32, "pooled", "flux2"),
    "taesana": (32, "f32", "sana"),
}


@pytest.fixture
def run(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


def write_pair(folder, name):
    channels, variant, family = FILES[name]
    for half in ("encoder", "decoder"):
        config = TinyConfig(channels, 8, half == "encoder", half == "decoder", variant)
        metadata = {"family": family} if channels < 32 else None
        write(folder / f"{name}_{half}.safetensors", tiny_state(config, seed=channels), metadata)


@pytest.mark.parametrize("name", FILES)
def test_the_encoder_file_encodes_and_the_decoder_file_decodes(tmp_path, run, name):
    """Found by name in models/VAE-taesd; sides that are no multiples of a cell come back as they were."""
    folder = tmp_path / "data" / "models" / "VAE-taesd"
    write_pair(folder, name)
    write_picture(image := tmp_path / "in.png", 70, 101)
    latent, out = tmp_path / "x.safetensors", tmp_path / "out.png"
    run("encode", image, "-o", latent, "--vae", f"{name}_encoder", "--json").data  # noqa: B018 - checks the answer
    file, cell = read_latent(latent), 32 if name == "taesana" else 8
    assert file.family == FILES[name][2]
    assert file.latent.shape == (1, FILES[name][0], -(-70 // cell), -(-101 // cell))
    run("decode", latent, "-o", out, "--vae", f"{name}_decoder.safetensors", "--json").data  # noqa: B018
    decoder = load_vae(folder / f"{name}_decoder.safetensors", dtype=torch.float32)
    expected = pictures.to_pixels(decoder.decode(file.latent)[..., :70, :101])[0]
    result = pictures.open_picture(out).pixels
    assert result.shape == (70, 101, 3)
    assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["taesd", "taef2", "taesana"])
def test_a_large_picture_is_streamed_exactly(tmp_path, run, name):
    write_pair(tmp_path, name)
    decoder = load_vae(tmp_path / f"{name}_decoder.safetensors", dtype=torch.float32)
    form, size = FORMATS[FILES[name][2]], (24, 8) if name == "taesana" else (96, 24)
    latent = torch.randn(1, form.z_channels, *size, generator=torch.Generator().manual_seed(0))
    pixels = (size[0] * form.downscale, size[1] * form.downscale)
    write_latent(tmp_path / "x.safetensors", LatentFile.of(latent, form, pixels, ""))
    words = ("-o", tmp_path / "out.png", "--vae", tmp_path / f"{name}_decoder.safetensors", "--tiling", "exact")
    data = run("decode", tmp_path / "x.safetensors", *words, "--json").data
    assert data["plan"].startswith("stream")
    assert data["bands"] > 1
    result = pictures.open_picture(tmp_path / "out.png").pixels
    assert np.abs(result.astype(int) - pictures.to_pixels(decoder.decode(latent))[0]).max() <= 1


def test_packed_latents_of_flux2_are_decoded_like_unpacked_ones(tmp_path, run):
    write_pair(tmp_path, "taef2")
    latent = torch.randn(1, 32, 6, 8, generator=torch.Generator().manual_seed(0))
    made = []
    for i, tensor in enumerate((latent, pack(latent))):
        write(tmp_path / f"{i}.safetensors", {"latent": tensor}, {"family": "flux2"})
        words = ("-o", tmp_path / f"{i}.png", "--vae", tmp_path / "taef2_decoder.safetensors", "--json")
        assert run("decode", tmp_path / f"{i}.safetensors", *words).code == 0
        made.append(pictures.open_picture(tmp_path / f"{i}.png").pixels)
    assert made[0].shape == (48, 64, 3)
    assert np.array_equal(*made)


def test_other_channels_are_refused_in_one_line(tmp_path, run):
    write_pair(tmp_path, "taesd3")
    write_pair(tmp_path, "taesd")
    write_picture(image := tmp_path / "in.png", 64, 64)
    run("encode", image, "-o", tmp_path / "x.safetensors", "--vae", tmp_path / "taesd_encoder.safetensors")
    words = ("-o", tmp_path / "out.png", "--vae", tmp_path / "taesd3_decoder.safetensors")
    error = run("decode", tmp_path / "x.safetensors", *words).error
    assert "4 channels" in error
    assert "taesd3_decoder.safetensors" in error
    assert not (tmp_path / "out.png").exists()
