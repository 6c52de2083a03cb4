"""The committed demo VAEs: their keys, their size, and what their pictures look like."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig, split_moments
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import tiny_decoder

DEMO = Path(__file__).parents[2] / "sd_vae_kit" / "standalone" / "demo"
PHOTOGRAPHS = DEMO / "photographs"
FILES = ("demo_natural.safetensors", "demo_vivid.safetensors", "demo_tiny_decoder.safetensors")
NET = NetConfig(ch=64, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
SIZE = 192

# Measured on the committed weights at 192x192 minus a margin of about 1 dB.
FLOOR_DB = {"astronaut": 18.6, "cat": 24.6, "coffee": 21.7, "dandelion": 26.3, "rocket": 26.7}
TINY_FLOOR_DB = {"astronaut": 17.9, "cat": 23.8, "coffee": 20.5, "dandelion": 25.2, "rocket": 25.2}


def load_kl(name: str) -> AutoencoderKL:
    vae = AutoencoderKL(KlConfig(NET, NET))
    vae.load_state_dict({key: value.float() for key, value in load_file(DEMO / name).items()}, strict=True)
    return vae.requires_grad_(False).eval()


def load_rgb(name: str) -> Tensor:
    """The centre square of a demo photograph, (1, 3, SIZE, SIZE) in [0, 1]."""
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3)
    return pixels.permute(2, 0, 1)[None].float() / 255


def psnr(rgb: Tensor, target: Tensor) -> float:
    return -10 * math.log10((rgb.clamp(0, 1) - target).square().mean().item())


@pytest.fixture(scope="module")
def natural() -> AutoencoderKL:
    return load_kl("demo_natural.safetensors")


@pytest.fixture(scope="module")
def vivid() -> AutoencoderKL:
    return load_kl("demo_vivid.safetensors")


@pytest.fixture(scope="module")
def tiny() -> nn.Sequential:
    model = tiny_decoder(4, 32)
    state = {key: value.float() for key, value in load_file(DEMO / "demo_tiny_decoder.safetensors").items()}
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("name", FILES)
def test_demo_files_are_half_precision_and_say_their_family(name: str) -> None:
    with safe_open(DEMO / name, framework="pt") as file:
        metadata = file.metadata()
        keys = list(file.keys())
        assert {file.get_tensor(key).dtype for key in keys} == {torch.float16}
    assert metadata["family"] == "sd1"
    assert metadata["scale_factor"] == "0.18215"
    assert metadata["licence"] == "MIT"


def test_demo_files_are_small_enough_for_a_repository() -> None:
    assert sum((DEMO / name).stat().st_size for name in FILES) <= 12e6
    assert sum(path.stat().st_size for path in PHOTOGRAPHS.iterdir()) <= 600e3


def test_both_looks_have_the_same_shapes_so_that_one_can_replace_the_other(
    natural: AutoencoderKL, vivid: AutoencoderKL
) -> None:
    assert {key: value.shape for key, value in natural.state_dict().items()} == {
        key: value.shape for key, value in vivid.state_dict().items()
    }


@pytest.mark.parametrize("name", sorted(FLOOR_DB))
def test_natural_vae_gives_a_photograph_back(natural: AutoencoderKL, name: str) -> None:
    rgb = load_rgb(name)
    mean, std = split_moments(natural.encode(2 * rgb - 1))
    assert std.max() < 0.01
    assert 0.3 < FORMATS["sd1"].to_latent(mean).std() < 2  # about 1, as the sampler expects
    assert psnr((natural.decode(mean) + 1) / 2, rgb) > FLOOR_DB[name]


@pytest.mark.parametrize("name", sorted(TINY_FLOOR_DB))
def test_tiny_decoder_reads_the_latents_of_the_kl_encoder(
    natural: AutoencoderKL, tiny: nn.Sequential, name: str
) -> None:
    rgb = load_rgb(name)
    mean, _ = split_moments(natural.encode(2 * rgb - 1))
    assert psnr(tiny(FORMATS["sd1"].to_latent(mean)), rgb) > TINY_FLOOR_DB[name]


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee", "dandelion"])
def test_vivid_look_is_more_saturated_and_contrasty_at_a_glance(
    natural: AutoencoderKL, vivid: AutoencoderKL, name: str
) -> None:
    mean, _ = split_moments(natural.encode(2 * load_rgb(name) - 1))
    plain, strong = (((vae.decode(mean) + 1) / 2).clamp(0, 1) for vae in (natural, vivid))
    assert (plain - strong).abs().mean() > 0.05  # thirteen levels of 8 bits
    assert saturation(strong) > 1.2 * saturation(plain)
    assert strong.std() > 1.1 * plain.std()


def saturation(rgb: Tensor) -> float:
    return (rgb.amax(1) - rgb.amin(1)).mean().item()


def test_every_photograph_has_a_caption_keywords_source_and_licence() -> None:
    entries = json.loads((PHOTOGRAPHS / "photographs.json").read_text(encoding="utf-8"))
    assert {entry["file"] for entry in entries} == {path.name for path in PHOTOGRAPHS.glob("*.jpg")}
    for entry in entries:
        assert all(entry[field] for field in ("caption", "keywords", "source"))
        assert entry["licence"] in ("CC0-1.0", "public domain")
