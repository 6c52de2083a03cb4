"""`--tiling`, `--memory-mb` and `plan`: bands really run, and the result is that of the network's own forward."""

import io
import sys

import pytest
import torch
from cli_files import CommandLine, write_kl, write_picture, write_tiny
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from sd_vae_kit.cli import network_run
from sd_vae_kit.core.networks.autoencoder import split_moments
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.pictures.picture_file import open_picture, to_image, to_pixels


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


@pytest.fixture
def files(tmp_path):
    """A VAE, a picture of 192 x 160 and its latent by the network's own forward."""
    vae = write_kl(tmp_path / "vae.safetensors", family="sd1")
    pixels = write_picture(tmp_path / "a.png", 192, 160)
    mean, _ = split_moments(vae.encode(to_image(pixels)))
    return vae, mean


def encode(cli, folder, *more):
    return cli("encode", folder / "a.png", "-o", folder / "l.safetensors", "--vae", folder / "vae.safetensors", *more)


def decode(cli, folder, *more):
    return cli("decode", folder / "l.safetensors", "-o", folder / "b.png", "--vae", folder / "vae.safetensors", *more)


@pytest.mark.parametrize(
    "how", [("--tiling", "exact"), ("--memory-mb", "1"), ("--tiling", "exact", "--memory-mb", "4")]
)
def test_bands_give_what_the_networks_own_forward_gives(cli, tmp_path, files, how):
    vae, mean = files
    encoded = encode(cli, tmp_path, *how, "--json").data
    latent = load_file(tmp_path / "l.safetensors")["latent"]
    assert_close(latent, mean * 0.18215, atol=1e-5, rtol=0)
    decoded = decode(cli, tmp_path, *how, "--json").data
    expected = to_pixels(vae.decode(latent / 0.18215))[0]
    assert abs(open_picture(tmp_path / "b.png").pixels.astype(int) - expected.astype(int)).max() <= 1
    for data in (encoded, decoded):
        assert data["plan"].startswith("stream")
        assert data["bands"] > 1
        assert data["predicted_mb"] > 0


def test_off_runs_whole_and_so_does_auto_while_it_fits(cli, tmp_path, files):
    for how in (("--tiling", "off"), ("--tiling", "auto"), ("--memory-mb", "4000")):
        data = encode(cli, tmp_path, *how, "--json").data
        assert (data["plan"], data["bands"], data["warnings"]) == ("whole", 1, [])


def test_a_budget_that_nothing_fits_into_is_one_warning(cli, tmp_path, files):
    done = encode(cli, tmp_path, "--memory-mb", "1")
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert done.err.startswith("warning: nothing fits into 1 MiB: the smallest plan was run (stream-lean, about")
    assert " bands" in done.out


class Other(nn.Conv2d):
    """A layer whose forward looks at the whole picture."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def test_a_network_nobody_knows_runs_by_its_own_forward(cli, tmp_path, files, monkeypatch):
    real = Runner.run

    def run(self, network, *args, **kwargs):
        network.encoder.conv_in.__class__ = Other
        return real(self, network, *args, **kwargs)

    monkeypatch.setattr(Runner, "run", run)
    data = encode(cli, tmp_path, "--tiling", "exact", "--json").data
    assert (data["plan"], data["bands"], data["predicted_mb"], data["steps"]) == ("whole", 1, None, None)
    assert len(data["warnings"]) == 1
    assert "encoder.conv_in (Other) was changed by another extension and is not local" in data["warnings"][0]


def test_a_tiny_vae_streams_too(cli, tmp_path):
    module = write_tiny(tmp_path / "vae.safetensors", "decoder", family="sd1")
    torch.manual_seed(0)
    latent = torch.randn(1, 4, 40, 24)
    save_file({"latent": latent}, tmp_path / "l.safetensors", metadata={"family": "sd1"})
    data = decode(cli, tmp_path, "--memory-mb", "1", "--json").data
    assert data["bands"] > 1
    expected = to_pixels(module.decode(latent) * 2 - 1)[0]
    assert abs(open_picture(tmp_path / "b.png").pixels.astype(int) - expected.astype(int)).max() <= 1


def test_progress_is_shown_on_a_terminal_after_a_second(cli, tmp_path, files, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(network_run, "SECONDS_WITHOUT_PROGRESS", 0.0)
    assert encode(cli, tmp_path, "--tiling", "exact").code == 0
    assert "band/s" in terminal.getvalue()
    quiet = Terminal()
    monkeypatch.setattr(sys, "stderr", quiet)
    assert encode(cli, tmp_path, "--json").code == 0
    assert quiet.getvalue() == ""


# --- plan ------------------------------------------------------------------------------------------------------------


def plan(cli, folder, height, width, *more):
    return cli("plan", "--height", height, "--width", width, "--vae", folder / "vae.safetensors", *more)


def test_plan_predicts_what_decode_then_does(cli, tmp_path, files):
    encode(cli, tmp_path)
    for how in ((), ("--tiling", "exact"), ("--memory-mb", "8"), ("--tiling", "off")):
        predicted = plan(cli, tmp_path, 192, 160, *how, "--json").data
        done = decode(cli, tmp_path, *how, "--json").data
        for key in ("plan", "bands", "predicted_mb", "dtype"):
            assert predicted[key] == done[key], (how, key)
        assert predicted["decode"]["plan"] == predicted["plan"]
        assert predicted["encode"]["predicted_mb"] > 0
        assert predicted["whole_mb"] >= predicted["predicted_mb"]


def test_plan_says_it_in_a_sentence(cli, tmp_path, files):
    roomy = plan(cli, tmp_path, 100, 150).out.splitlines()
    assert roomy[0].startswith("decode: 150x100 with this VAE: about ")
    assert roomy[0].endswith(" free: will run whole")
    tight = plan(cli, tmp_path, 1024, 1024, "--memory-mb", "300").out.splitlines()
    assert " 300 MB budget: will stream, about " in tight[0]
    assert tight[0].endswith(" MB, same picture")
    assert plan(cli, tmp_path, 64, 64, "--tiling", "off").out.splitlines()[0].endswith("tiling is off, will run whole")


def test_plan_warns_where_nothing_fits_and_succeeds(cli, tmp_path, files):
    done = plan(cli, tmp_path, 2048, 2048, "--memory-mb", "2")
    assert done.code == 0
    assert done.err.splitlines() == ["warning: nothing fits into 2 MiB; the smallest plan would be run"] * 2
    data = plan(cli, tmp_path, 2048, 2048, "--memory-mb", "2", "--json").data
    assert not data["fits"]
    assert data["plan"] == "stream-lean"


def test_plan_for_half_a_vae_speaks_of_that_half(cli, tmp_path):
    write_tiny(tmp_path / "vae.safetensors", "encoder", family="sd1")
    data = plan(cli, tmp_path, 64, 64, "--json").data
    assert "decode" not in data
    assert data["plan"] == data["encode"]["plan"] == "whole"
