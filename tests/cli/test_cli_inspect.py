"""`inspect`: what is said of a file of each layout."""

import hashlib

import pytest
import torch
from cli_files import CommandLine, kl_module, write_kl, write_tiny
from safetensors.torch import save_file

from sd_vae_kit.cli import vae_choice
from sd_vae_kit.vaes.catalogue import Catalogue

KEYS = [
    "path", "layout", "kind", "part", "family", "family_known_by", "known_as", "z_channels", "scale_factor",
    "shift_factor", "parameters", "dtype",
    "sha256", "fingerprint", "warnings",
]  # fmt: skip


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_json_has_exactly_the_documented_keys(cli, tmp_path):
    module = write_kl(tmp_path / "a.safetensors", 16, quant=False, family="sd3", dtype=torch.bfloat16)
    data = cli("inspect", tmp_path / "a.safetensors", "--json").data
    assert list(data) == KEYS
    assert data["parameters"] == {
        "encoder": count(module.encoder),
        "decoder": count(module.decoder),
        "total": count(module),
    }
    del data["parameters"], data["fingerprint"]
    assert data == {
        "path": str(tmp_path / "a.safetensors"),
        "layout": "ldm",
        "kind": "kl",
        "part": "both",
        "family": "sd3",
        "family_known_by": "metadata",
        "known_as": "",
        "z_channels": 16,
        "scale_factor": 1.5305,
        "shift_factor": 0.0609,
        "dtype": "bf16",
        "sha256": hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest(),
        "warnings": [],
    }


def test_quant_conv_counts_in_the_total_only(cli, tmp_path):
    module = write_kl(tmp_path / "a.safetensors", family="sd1")
    parameters = cli("inspect", tmp_path / "a.safetensors", "--json").data["parameters"]
    assert parameters["encoder"] == count(module.encoder)
    assert parameters["total"] - parameters["encoder"] - parameters["decoder"] == 8 * 8 + 8 + 4 * 4 + 4


def test_an_undecided_family_is_said_to_be_undecided(cli, tmp_path):
    write_kl(tmp_path / "a.safetensors")
    data = cli("inspect", tmp_path / "a.safetensors", "--json").data
    assert data["family"] == "sd1|sdxl"
    assert data["scale_factor"] == 0.18215
    assert any("SD 1.x / 2.x or SDXL" in warning for warning in data["warnings"])
    shown = cli("inspect", tmp_path / "a.safetensors")
    assert "sd1|sdxl (SD 1.x / 2.x or SDXL)" in shown.out
    assert shown.err.startswith("warning: a.safetensors may be of")
    assert shown.code == 0


def test_the_catalogue_decides_a_family_by_hash(cli, tmp_path, monkeypatch):
    write_kl(tmp_path / "a.safetensors")
    sha256 = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    known = vae_choice.catalogue().of_family("sdxl")[0]
    fake = Catalogue([type(known)(**{**vars(known), "sha256": sha256})])
    monkeypatch.setattr(vae_choice, "catalogue", lambda: fake)
    data = cli("inspect", tmp_path / "a.safetensors", "--json").data
    assert (data["family"], data["scale_factor"], data["warnings"]) == ("sdxl", 0.13025, [])


@pytest.mark.parametrize(("part", "layout"), [("encoder", "taesd"), ("decoder", "taesd")])
def test_half_a_taesd_is_recognised(cli, tmp_path, part, layout):
    module = write_tiny(tmp_path / "a.safetensors", part, family="sdxl")
    data = cli("inspect", tmp_path / "a.safetensors", "--json").data
    assert (data["kind"], data["part"], data["layout"], data["family"]) == ("tiny", part, layout, "sdxl")
    assert data["parameters"][part] == data["parameters"]["total"] == count(module)


def test_the_same_vae_in_other_files_keeps_its_fingerprint(cli, tmp_path):
    """ldm, diffusers, a pickle with EMA and optimiser leftovers, and the VAE inside a checkpoint."""
    state = kl_module().state_dict()
    save_file(state, tmp_path / "ldm.safetensors")
    cli("convert", tmp_path / "ldm.safetensors", tmp_path / "diffusers.safetensors", "--layout", "diffusers")
    extra = {"model_ema.decay": torch.tensor(0.5), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": {**state, **extra}, "global_step": 3}, tmp_path / "old.ckpt")
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    whole = {**{f"first_stage_model.{name}": tensor for name, tensor in state.items()}, **unet}
    save_file(whole, tmp_path / "checkpoint.safetensors")

    names = ("ldm.safetensors", "diffusers.safetensors", "old.ckpt", "checkpoint.safetensors")
    data = [cli("inspect", tmp_path / name, "--json").data for name in names]
    assert len({d["fingerprint"] for d in data}) == 1
    assert len({d["sha256"] for d in data}) == 4
    assert [d["layout"] for d in data] == ["ldm", "diffusers", "ldm", "ldm"]
    assert data[3]["family"] == "sd1"


def test_a_library_name_is_found_under_vae_dir_and_the_apps_folder(cli, tmp_path):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "models" / "VAE").mkdir(parents=True)
    write_kl(tmp_path / "mine" / "sub" / "one.safetensors", family="sd1")
    write_kl(tmp_path / "data" / "models" / "VAE" / "two.safetensors", family="sdxl")
    assert cli("inspect", "sub/one.safetensors", "--vae-dir", tmp_path / "mine", "--json").data["family"] == "sd1"
    assert cli("inspect", "one", "--vae-dir", tmp_path / "mine", "--json").data["family"] == "sd1"
    assert cli("inspect", "two", "--json").data["family"] == "sdxl"


def test_an_unknown_name_lists_what_is_near(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    write_kl(tmp_path / "mine" / "anything.safetensors")
    error = cli("inspect", "anythin.safetensors", "--vae-dir", tmp_path / "mine").error
    assert "There is no file anythin.safetensors" in error
    assert "similar are anything.safetensors" in error


def test_a_vae_dir_that_is_no_folder_is_named(cli, tmp_path):
    assert "--vae-dir" in cli("inspect", "a", "--vae-dir", tmp_path / "gone").error


def test_real_taesd_weights_have_their_published_sizes(cli, weights_dir):
    encoder = cli("inspect", weights_dir / "taesd_encoder.safetensors", "--json").data
    decoder = cli("inspect", weights_dir / "taef1_decoder.safetensors", "--json").data
    assert encoder["parameters"]["total"] == 1_222_532
    assert decoder["parameters"]["total"] == 1_229_443
    assert (encoder["family"], decoder["z_channels"], decoder["dtype"]) == ("sd1", 16, "bf16")
