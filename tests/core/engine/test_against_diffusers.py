"""The reference for both architectures: diffusers' AutoencoderKL and AutoencoderTiny on the same weights."""

import pytest
import torch
from vae_files import kl_config, kl_state, picture, randomised, tiny_state, write

from sd_vae_kit.core.convert import convert
from sd_vae_kit.core.files.key_names import kl_to_diffusers, tiny_to_diffusers
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.vae import build, load_vae, read_vae

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # of the reference's range

# z_channels, quant_conv, ch_mult, num_res_blocks; narrow, but with every kind of layer the family's VAE has
TWO, FOUR = ((1, 2), 1), ((1, 2, 2, 2), 2)
CASES = {
    "sd1 and sdxl": (4, True, *FOUR),
    "sd3 and flux": (16, False, *FOUR),
    "sd1 and sdxl, two levels": (4, True, *TWO),
    "sd3 and flux, two levels": (16, False, *TWO),
    "16 channels with quant_conv": (16, True, *TWO),
    "4 channels without": (4, False, *TWO),
    "uneven levels, three blocks": (4, True, (1, 3, 2), 3),
}


def reference_kl(z_channels, quant_conv, ch_mult, num_res_blocks, ch=32):
    levels = len(ch_mult)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(ch * mult for mult in ch_mult),
        layers_per_block=num_res_blocks,
        latent_channels=z_channels,
        norm_num_groups=32,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
    )


def reference_tiny(z_channels, width):
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4, latent_channels=z_channels
    )


def assert_near(got, expected):
    assert got.shape == expected.shape
    spread = float(expected.max() - expected.min())
    assert float((got - expected).abs().max()) <= TOLERANCE * spread


@torch.no_grad()
def assert_equal_kl(ours, theirs, cells):
    image = picture(cells * 6, cells * 4)
    moments = theirs.encode(image).latent_dist.parameters
    assert_near(ours.encode(image), moments)
    z = torch.randn(2, moments.shape[1] // 2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert_near(ours.decode(z), theirs.decode(z).sample)


@pytest.mark.parametrize("case", CASES)
def test_their_weights_in_our_network_give_their_results(tmp_path, case):
    z_channels, quant_conv, ch_mult, num_res_blocks = CASES[case]
    theirs = randomised(reference_kl(z_channels, quant_conv, ch_mult, num_res_blocks))
    weights = read_vae(write(tmp_path / "theirs.safetensors", theirs.state_dict()))
    assert weights.detection.layout == "diffusers"
    assert_equal_kl(build(weights), theirs, 2 ** (len(ch_mult) - 1))


@pytest.mark.parametrize("case", CASES)
def test_our_weights_load_strictly_in_their_network_and_give_our_results(tmp_path, case):
    z_channels, quant_conv, ch_mult, num_res_blocks = CASES[case]
    config = kl_config(z_channels, quant_conv=quant_conv, ch_mult=ch_mult, num_res_blocks=num_res_blocks)
    ours = randomised(AutoencoderKL(config))
    weights = read_vae(write(tmp_path / "ours.safetensors", ours.state_dict()))
    assert weights.detection.layout == "ldm"
    theirs = reference_kl(z_channels, quant_conv, ch_mult, num_res_blocks).eval()
    theirs.load_state_dict(convert(weights, "diffusers", "fp32")[0], strict=True)
    assert_equal_kl(ours, theirs, 2 ** (len(ch_mult) - 1))


@pytest.mark.parametrize("z_channels", [4, 16])
def test_a_taesd_gives_their_results_both_ways(tmp_path, z_channels):
    theirs = randomised(reference_tiny(z_channels, 16))
    ours = load_vae(write(tmp_path / "theirs.safetensors", theirs.state_dict()))
    image = picture(48, 32)
    with torch.no_grad():
        latent = theirs.encode(image).latents
        assert_near(ours.encode(image), latent)
        assert_near(ours.decode(latent), theirs.decode(latent).sample)
    weights = read_vae(write(tmp_path / "ours.safetensors", tiny_state(TinyConfig(z_channels, 16), seed=5)))
    fresh = reference_tiny(z_channels, 16).eval()
    fresh.load_state_dict(convert(weights, "diffusers")[0], strict=True)
    with torch.no_grad():
        latent = fresh.encode(image).latents
        assert_near(build(weights).encode(image / 2 + 0.5), latent)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("z_channels", "quant_conv"), [(4, True), (16, False)])
def test_the_full_network_has_the_known_size_and_their_names(z_channels, quant_conv):
    """Width 128 on the meta device: no memory, every name and shape."""
    net = NetConfig(z_channels=z_channels)
    with torch.device("meta"):
        ours = AutoencoderKL(KlConfig(net, net, quant_conv, quant_conv, z_channels))
        theirs = reference_kl(z_channels, quant_conv, (1, 2, 4, 4), 2, ch=128)
    if z_channels == 4:
        assert (count(ours.encoder), count(ours.decoder)) == (34_163_592, 49_490_179)
    assert count(ours) == count(theirs)
    shapes = {kl_to_diffusers(n, 4): t.numel() for n, t in ours.state_dict().items()}
    assert shapes == {n: t.numel() for n, t in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("z_channels", "encoder", "decoder"), [(4, 1_222_532, 1_222_531), (16, 1_229_456, 1_229_443)]
)  # fmt: skip
def test_the_full_taesd_has_the_known_size_and_their_names(z_channels, encoder, decoder):
    with torch.device("meta"):
        ours = TinyAutoencoder(TinyConfig(z_channels))
        theirs = reference_tiny(z_channels, 64)
    assert (count(ours.encoder), count(ours.decoder)) == (encoder, decoder)
    shapes = {tiny_to_diffusers(n): t.shape for n, t in ours.state_dict().items()}
    assert shapes == {n: t.shape for n, t in theirs.state_dict().items()}


def test_1280_pixels_are_160_latent_cells():
    with torch.device("meta"):
        ours, image = AutoencoderKL(KlConfig()), torch.empty(1, 3, 1280, 1280)
        moments = ours.encode(image)
        assert moments.shape == (1, 8, 160, 160)
        assert ours.decode(moments[:, :4]).shape == image.shape


def test_diffusers_opens_a_converted_file_by_itself(tmp_path):
    """Its loader wants `format` in the metadata and every name in place."""
    config = kl_config(ch_mult=(1, 2), num_res_blocks=1)
    state, metadata = convert(read_vae(write(tmp_path / "x.safetensors", kl_state(config))), "diffusers")
    folder = tmp_path / "vae"
    theirs = reference_kl(4, True, (1, 2), 1)
    theirs.save_config(folder)
    write(folder / "diffusion_pytorch_model.safetensors", state, metadata)
    loaded, info = diffusers.AutoencoderKL.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal_kl(load_vae(tmp_path / "x.safetensors").module, loaded.eval(), 2)
