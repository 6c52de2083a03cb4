"""`convert` and `compare`."""

import numpy as np
import pytest
import torch
from cli_files import CommandLine, kl_module, write_kl, write_picture, write_tiny
from diffusers import AutoencoderKL as DiffusersKL
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from vae_files import amplify_stream, write

from sd_vae_kit.cli import contact_sheet, convert_vae
from sd_vae_kit.cli.contact_sheet import GAIN, RoundTrip, difference, draw_sheet
from sd_vae_kit.core.vae import load_vae


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


def test_a_converted_file_loads_in_diffusers_and_computes_the_same(cli, tmp_path):
    vae = write_kl(tmp_path / "a.safetensors", family="sd1")
    data = cli(
        "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "diffusers", "--json"
    ).data
    assert list(data) == ["path", "layout", "dtype", "tensors", "sha256", "source_sha256", "warnings"]
    assert (data["layout"], data["dtype"]) == ("diffusers", "fp32")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    other = DiffusersKL(**blocks, block_out_channels=[32, 32, 64, 64], layers_per_block=1, latent_channels=4).eval()
    other.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    z = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(other.decode(z).sample, vae.decode(z), atol=1e-5, rtol=1e-5)


def test_there_and_back_gives_the_same_tensors(cli, tmp_path):
    write_kl(tmp_path / "a.safetensors", family="sdxl")
    cli("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "diffusers")
    cli("convert", tmp_path / "b.safetensors", tmp_path / "c.safetensors", "--layout", "ldm")
    first, last = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "c.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_precision_is_changed(cli, tmp_path, dtype):
    write_kl(tmp_path / "a.safetensors", family="sd1")
    data = cli("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--dtype", dtype, "--json").data
    assert data["dtype"] == dtype


def test_a_conversion_says_what_it_did(cli, tmp_path):
    write_kl(tmp_path / "a.safetensors", family="sd1")
    result = cli("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert result.code == 0
    assert "b.safetensors: ldm, fp32, " in result.out


def test_a_file_made_safe_for_fp16_decodes_in_plain_half_precision(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_vae, "SAMPLE_SIDE", 64)
    vae = kl_module()
    amplify_stream(vae, "decoder", 15)
    write(tmp_path / "big.safetensors", vae.state_dict(), {"family": "sd1"})
    options = ("--fp16-safe", "--layout", "diffusers", "--json")
    data = cli("convert", tmp_path / "big.safetensors", tmp_path / "safe.safetensors", *options).data
    assert (data["layout"], data["dtype"]) == ("diffusers", "fp16")
    assert data["folded"]["decoder.conv_in"] > 0
    assert data["largest_value"] < 65504 / 4
    assert data["fp16_error"] < 0.01
    before, after = load_vae(tmp_path / "big.safetensors"), load_vae(tmp_path / "safe.safetensors")
    z = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = before.module.decode(z)
        assert after.module.decoder.conv_in.weight.dtype == torch.float16
        assert_close(after.module.float().decode(z), expected, atol=0.02, rtol=0)
    said = cli("convert", tmp_path / "safe.safetensors", tmp_path / "again.safetensors", "--fp16-safe").out
    assert "it was safe already, no weight was changed; on 7 photographs the largest value inside is " in said
    both = cli("convert", tmp_path / "safe.safetensors", tmp_path / "c.safetensors", "--fp16-safe", "--dtype", "bf16")
    assert both.error == "--fp16-safe writes fp16; leave out --dtype bf16."


def test_what_cannot_be_made_safe_is_not_written(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_vae, "SAMPLE_SIDE", 64)
    vae = kl_module()
    with torch.no_grad():
        vae.decoder.norm_out.weight.mul_(2.0**15)
        vae.decoder.conv_out.weight.mul_(2.0**-15)
    write(tmp_path / "big.safetensors", vae.state_dict(), {"family": "sd1"})
    refused = cli("convert", tmp_path / "big.safetensors", tmp_path / "safe.safetensors", "--fp16-safe").error
    assert "big.safetensors cannot be made safe for fp16: decoder.norm_out gives values up to " in refused
    assert not (tmp_path / "safe.safetensors").exists()


def test_the_sheet_shows_every_vae_and_the_numbers_are_right(cli, tmp_path):
    write_kl(tmp_path / "one.safetensors", family="sd1", seed=1)
    write_tiny(tmp_path / "small_encoder.safetensors", "encoder", family="sd1")
    write_tiny(tmp_path / "small_decoder.safetensors", "decoder", family="sd1")
    pixels = write_picture(tmp_path / "a.png", 45, 61)
    words = ["compare", tmp_path / "a.png", "-o", tmp_path / "sheet.png"]
    words += ["--vae", tmp_path / "one.safetensors", "--vae", tmp_path / "small_decoder.safetensors"]
    data = cli(*words, "--json").data
    assert list(data) == ["path", "results", "warnings"]
    one, small = data["results"]
    assert one["vae"] == str(tmp_path / "one.safetensors")
    assert 0 < one["psnr_db"] < 60
    assert 0 <= small["mean_difference"] <= small["max_difference"] <= 255
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert any((sheet[y : y + 45, 12 : 12 + 61] == pixels).all() for y in range(80)), "the original, unscaled"

    lines = cli(*words).out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'one.safetensors'}: {one['psnr_db']} dB, mean ")
    assert lines[-1] == str(tmp_path / "sheet.png")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 20), (10, 400)])
def test_small_and_wide_pictures_fit_the_sheet(height, width):
    original = np.full((height, width, 3), 100, np.uint8)
    sheet = draw_sheet(original, [RoundTrip("a name that is much too long to fit " * 9, "図 note", original + 3)])
    rows, columns = (2, 2)
    assert sheet.shape[0] >= rows * height
    assert sheet.shape[1] >= columns * width
    assert (sheet == 100).all(axis=2).sum() >= height * width
    assert (sheet == 3 * GAIN).all(axis=2).sum() >= height * width
    assert (sheet > 200).any(), "captions"


def test_a_huge_sheet_is_shrunk(monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_SHEET", 40_000)
    original = np.full((200, 300, 3), 100, np.uint8)
    sheet = draw_sheet(original, [RoundTrip("a", "", original)] * 3)
    assert sheet.size / 3 < 400_000
    assert (sheet == 100).all(axis=2).any()


def test_differences_have_no_sign_and_no_overflow():
    a, b = np.array([[[0, 10, 255]]], np.uint8), np.array([[[255, 12, 254]]], np.uint8)
    np.testing.assert_array_equal(difference(a, b), [[[255, 2 * GAIN, GAIN]]])
    np.testing.assert_array_equal(difference(b, a), difference(a, b))
