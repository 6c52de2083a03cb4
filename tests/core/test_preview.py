"""Previews: cheap, bounded, harmless."""

import time

import pytest
import torch

from sd_vae_kit.core.networks.latent_format import FORMATS, pack
from sd_vae_kit.core.networks.taesd import tiny_decoder
from sd_vae_kit.core.preview import LINEAR_RGB, Previewer, fit_linear, linear_rgb, shrink, to_pixels
from sd_vae_kit.core.vae import load_vae

SD1 = FORMATS["sd1"]


@pytest.fixture(scope="module")
def decode_tiny():
    torch.manual_seed(0)
    return tiny_decoder(4, 8).eval().requires_grad_(False)


def test_the_fit_finds_a_linear_map():
    torch.manual_seed(1)
    table = torch.rand(5, 3) * 0.2
    latents = torch.randn(500, 4)
    rgb = latents @ table[:-1] + table[-1]
    torch.testing.assert_close(fit_linear(latents, rgb), table, atol=1e-5, rtol=1e-5)


def test_the_shipped_table_has_a_row_per_channel_and_a_constant():
    for family, table in LINEAR_RGB.items():
        assert len(table) == FORMATS[family].z_channels + 1
        assert all(len(row) == 3 for row in table)


def test_linear_colours_stay_in_range_and_follow_the_table():
    latent = torch.tensor([10.0, -10.0, 0.0, 0.0]).reshape(1, 4, 1, 1)
    table = torch.tensor(LINEAR_RGB["sd1"])
    rgb = linear_rgb(latent, table)
    wanted = (10 * table[0] - 10 * table[1] + table[4]).clamp(0, 1)
    torch.testing.assert_close(rgb[0, :, 0, 0], wanted)


@pytest.mark.parametrize("method", ["taesd", "linear"])
@pytest.mark.parametrize("size", [(8, 8), (5, 40), (64, 3)])
def test_a_preview_is_uint8_and_no_larger_than_asked(decode_tiny, method, size):
    latent = torch.randn(2, 4, *size)
    pixels = Previewer(SD1, method, 128, decode_tiny)(latent)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[2] == 3
    assert max(pixels.shape) <= 128
    assert (pixels.shape[0] > pixels.shape[1]) == (size[0] > size[1])


@pytest.mark.parametrize("method", ["taesd", "linear"])
def test_the_latent_is_left_alone(decode_tiny, method):
    latent = torch.randn(1, 4, 8, 8)
    before = latent.clone()
    vicious = lambda z: decode_tiny(z.mul_(0).add_(1))  # noqa: E731 - writes to what it is given
    Previewer(SD1, method, 512, vicious)(latent)
    assert torch.equal(latent, before)


def test_a_preview_of_an_inference_tensor_works(decode_tiny):
    with torch.inference_mode():
        latent = torch.randn(1, 4, 8, 8)
    assert Previewer(SD1, "taesd", 512, decode_tiny)(latent) is not None


def test_the_linear_maps_know_the_colours_of_real_latents(weights_dir):
    """A red, a green and a blue field, through each family's TAESD encoder."""
    for family, name in (("sd1", "taesd"), ("sdxl", "taesdxl"), ("sd3", "taesd3"), ("flux", "taef1")):
        encoder = load_vae(weights_dir / f"{name}_encoder.safetensors", family=family, dtype=torch.float32)
        for channel in range(3):
            image = torch.full((1, 3, 64, 64), -0.6)
            image[:, channel] = 0.6
            pixels = Previewer(FORMATS[family], "linear")(encoder.encode(image))
            assert pixels[8:-8, 8:-8].float().mean((0, 1)).argmax() == channel, (family, channel)


@pytest.mark.parametrize("packed", [True, False])
def test_flux2_is_shown_by_its_tiny_decoder_packed_or_not(packed):
    torch.manual_seed(0)
    decoder = tiny_decoder(32, 8, "pooled").eval().requires_grad_(False)
    latent = torch.randn(1, 32, 8, 12)
    previewer = Previewer(FORMATS["flux2"], "taesd", 512, decoder)
    pixels = previewer(pack(latent) if packed else latent)
    assert pixels.shape == (64, 96, 3)
    assert torch.equal(pixels, to_pixels(decoder(latent)[0]))


def test_a_family_without_linear_map_says_what_helps():
    previewer = Previewer(FORMATS["sana"], "linear")
    assert previewer(torch.randn(1, 32, 4, 4)) is None
    assert previewer.failure == "no colours are known for latents of SANA; install its TAESD"


def test_off_shows_nothing():
    assert Previewer(SD1, "off")(torch.randn(1, 4, 8, 8)) is None


def test_without_a_decoder_tiny_is_linear():
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(Previewer(SD1, "taesd")(latent), Previewer(SD1, "linear")(latent))


def test_a_failing_decoder_costs_only_the_preview():
    def fail(latent):
        raise RuntimeError("out of memory")

    previewer = Previewer(SD1, "taesd", 512, fail)
    assert previewer(torch.randn(1, 4, 8, 8)) is None
    assert previewer.failure == "out of memory"
    assert Previewer(SD1, "linear")(torch.randn(1, 16, 8, 8)) is None


def test_not_a_number_is_black():
    assert to_pixels(torch.full((3, 2, 2), float("nan"))).max() == 0
    assert Previewer(SD1, "linear")(torch.full((1, 4, 8, 8), float("nan"))).max() == 0


def test_a_slow_preview_makes_the_next_ones_smaller(decode_tiny):
    def slowly(latent):
        time.sleep(0.02)
        return decode_tiny(latent)

    previewer = Previewer(SD1, "taesd", 512, slowly, slow=0.01)
    sides = [max(previewer(torch.randn(1, 4, 64, 64)).shape) for _ in range(4)]
    assert sides == [512, 256, 256, 256]


def test_a_quick_preview_lets_the_next_ones_grow_up_to_the_limit(decode_tiny):
    previewer = Previewer(SD1, "taesd", 512, decode_tiny, slow=60.0)
    previewer.begin_with(16)
    sides = [max(previewer(torch.randn(1, 4, 100, 20)).shape) for _ in range(4)]
    assert sides == [128, 256, 512, 512]
    previewer.begin_with(1000)
    assert previewer.cells == 64


def test_shrinking_takes_means_and_keeps_the_shape():
    latent = torch.arange(32.0).reshape(1, 1, 4, 8)
    small = shrink(latent, 4)
    assert small.shape == (1, 1, 2, 4)
    assert float(small.mean()) == float(latent.mean())
    assert shrink(latent, 8) is not latent
