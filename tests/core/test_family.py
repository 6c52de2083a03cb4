"""Two families of one shape told apart by what a VAE does with a small picture."""

import json
import re
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from sd_vae_kit.core.family import MARGIN, TWINS, probe, tell_family
from sd_vae_kit.core.files.identity import fingerprint
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.vae import read_vae

TAESD = {"taesd": "sd1", "taesdxl": "sdxl", "taesd3": "sd3", "taef1": "flux"}
DEMO = sorted((ROOT / "sd_vae_kit" / "demo").glob("*.safetensors"))
WANTED_MARGIN = 6.0  # dB
SECONDS = 2.0


def documented_rows() -> dict[str, list[str]]:
    """Rows of the table in docs/family-guard.md, by their first cell."""
    lines = (ROOT / "docs" / "family-guard.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def confusion_row(name: str, weights) -> str:
    """One line of the table in docs/family-guard.md."""
    found = tell_family(weights)
    scores = " | ".join(f"{found.scores[f]:.1f}" if f in found.scores else "" for pair in TWINS for f in pair)
    return f"| {name} | {found.half} | {scores} | {found.margin:.1f} | {found.family or 'undecided'} |"


@pytest.mark.parametrize("stem", TAESD)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_every_real_taesd_half_is_told_right_by_more_than_6_db(weights_dir, stem, half):
    found = tell_family(read_vae(weights_dir / f"{stem}_{half}.safetensors"))
    assert (found.family, found.half) == (TAESD[stem], half)
    assert found.margin > WANTED_MARGIN
    assert set(found.scores) == {f for pair in TWINS if TAESD[stem] in pair for f in pair}


@pytest.mark.parametrize("path", DEMO, ids=lambda p: p.stem)
def test_the_demo_vaes_are_told_right_by_more_than_6_db(path):
    weights = read_vae(path)
    if weights.detection.z_channels == 4:
        found = tell_family(weights)
        assert found.family == "sd1"
        assert found.margin > WANTED_MARGIN


@pytest.mark.parametrize("path", DEMO, ids=lambda p: p.stem)
def test_each_half_of_a_demo_vae_alone_says_the_same(path, tmp_path):
    state = read_vae(path).state
    for half in ("encoder", "decoder"):
        part = {
            k: v.clone()
            for k, v in state.items()
            if k.startswith((f"{half}.", {"encoder": "quant", "decoder": "post"}[half]))
        }
        if not any(name.startswith(half) for name in part):
            continue
        save_file(part, tmp_path / "half.safetensors")
        found = tell_family(read_vae(tmp_path / "half.safetensors"))
        assert (found.family, found.half) == ("sd1", half)
        assert found.margin > WANTED_MARGIN


def assert_documented(name: str, weights) -> None:
    measured = [cell.strip() for cell in confusion_row(name, weights).split("|")][2:-1]
    for shown, now in zip(documented_rows()[name], measured, strict=True):
        is_number = re.fullmatch(r"-?\d+\.\d", now)
        assert abs(float(shown) - float(now)) < 0.3 if is_number else shown == now, (name, shown, now)


@pytest.mark.parametrize("stem", TAESD)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_documentation_shows_the_confusion_table(weights_dir, stem, half):
    assert_documented(f"{stem} {half}", read_vae(weights_dir / f"{stem}_{half}.safetensors"))


@pytest.mark.parametrize("path", DEMO, ids=lambda p: p.stem)
def test_the_documentation_shows_the_demo_vaes(path):
    assert_documented(path.stem, read_vae(path))


def random_kl(seed, z_channels):
    torch.manual_seed(seed)
    net = NetConfig(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=z_channels)
    return AutoencoderKL(KlConfig(net, net, embed_dim=z_channels))


def random_tiny(seed, z_channels):
    torch.manual_seed(seed)
    return TinyAutoencoder(TinyConfig(z_channels=z_channels))


@pytest.mark.parametrize("make", [random_kl, random_tiny])
@pytest.mark.parametrize("z_channels", [4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_are_undecided(make, z_channels, seed, tmp_path):
    save_file(make(seed, z_channels).state_dict(), tmp_path / "random.safetensors")
    found = tell_family(read_vae(tmp_path / "random.safetensors"))
    assert found.family == ""
    assert len(found.scores) == 2
    assert found.margin < MARGIN


def test_a_vae_whose_answer_is_not_finite_is_undecided(tmp_path):
    state = random_kl(0, 4).state_dict()
    state["decoder.conv_out.weight"] = torch.full_like(state["decoder.conv_out.weight"], 3e38)
    save_file({k: v for k, v in state.items() if not k.startswith(("encoder", "quant"))}, tmp_path / "x.safetensors")
    found = tell_family(read_vae(tmp_path / "x.safetensors"))
    assert found.family == ""


@pytest.mark.parametrize(
    "net",
    [
        NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),  # cells of 2 pixels
        NetConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32),  # FLUX.2 has no twin
    ],
)
def test_a_shape_without_twins_is_not_tested(net, tmp_path):
    save_file(AutoencoderKL(KlConfig(net, net, embed_dim=net.z_channels)).state_dict(), tmp_path / "x.safetensors")
    found = tell_family(read_vae(tmp_path / "x.safetensors"))
    assert (found.family, found.scores, found.margin) == ("", {}, 0.0)


def test_the_probe_is_a_picture_with_a_latent_for_each_twin():
    assert probe().image.shape == (1, 3, 64, 96)
    assert probe().image.std() > 0.4
    for family, latent in probe().latents.items():
        assert latent.shape == (1, FORMATS[family].z_channels, 8, 12)


@pytest.mark.slow
def test_a_vae_of_full_size_is_tried_in_under_two_seconds_of_one_core(tmp_path):
    save_file(AutoencoderKL(KlConfig()).half().state_dict(), tmp_path / "full.safetensors")
    weights = read_vae(tmp_path / "full.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processor time of one thread: the clock on the wall depends on what else runs
    try:
        tell_family(weights)
        started = time.process_time()
        tell_family(weights)
        assert time.process_time() - started < SECONDS
    finally:
        torch.set_num_threads(threads)


def test_the_marks_that_are_shipped_are_of_the_real_files(weights_dir):
    marks = json.loads((ROOT / "sd_vae_kit" / "vaes" / "family_marks.json").read_text("utf-8"))["marks"]
    assert len(marks) == 8
    for mark in marks:
        stem, half = mark["name"].split()
        assert mark["family"] == TAESD[stem]
        assert mark["fingerprint"] == fingerprint(read_vae(weights_dir / f"{stem}_{half}.safetensors").state)
