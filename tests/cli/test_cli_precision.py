"""The precision guard on the command line: what was done is counted, kept for the next call, and can be forgotten."""

import pytest
import torch
from cli_files import CommandLine, kl_module
from safetensors.torch import save_file
from vae_files import amplify_stream, needs_half, write

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


def decode(cli, tmp_path, *options):
    return cli("decode", tmp_path / "z.safetensors", "-o", tmp_path / "out.png", "--vae", tmp_path / "vae.safetensors",
               "--dtype", "fp16", *options)  # fmt: skip


@pytest.fixture
def files(tmp_path):
    vae = kl_module()
    amplify_stream(vae, "decoder", 15)
    write(tmp_path / "vae.safetensors", vae.half().state_dict(), {"family": "sd1"})
    latent = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(0)) * 0.18215
    save_file({"latent": latent}, tmp_path / "z.safetensors", {"family": "sd1"})
    return tmp_path


@needs_half
def test_an_overflow_is_counted_remembered_and_forgotten(cli, files, tmp_path):
    data = decode(cli, files, "--json").data
    assert data["steps_shifted"] > 3
    assert data["steps_fp32"] == 0
    assert data["dtype"] == "fp16"
    sentence = f"{data['steps_shifted']} of {data['steps']} steps were shifted to stay in range."
    assert sentence in data["warnings"]
    assert PrecisionFixesFile(tmp_path / "data" / "cache" / "vae_precision.json").count == 1
    assert f"warning: {sentence}" in decode(cli, files).err
    assert cli("forget", "--data-dir", tmp_path / "data", "--json").data == {"forgotten": 1}
    assert cli("forget", "--data-dir", tmp_path / "data").out == "There was nothing to forget.\n"


@needs_half
def test_a_latent_that_is_not_finite_is_no_fault_of_the_vae(cli, files, tmp_path):
    latent = torch.zeros(1, 4, 4, 5)
    latent[0, 0, 0, 0] = float("nan")
    save_file({"latent": latent}, tmp_path / "z.safetensors", {"family": "sd1"})
    (tmp_path / "out.png").unlink(missing_ok=True)
    assert "NaN" in decode(cli, files).error
    assert not (tmp_path / "out.png").exists()
