"""Any layout becomes the same kind of steps; what is not understood is refused with its name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vae_zoo import SMALL, LdmDecoder, LdmVae, liven, picture, set_padding_mode, small_vae

from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
from sd_vae_kit.core.graph.builder import is_pointwise
from sd_vae_kit.core.graph.from_module import AttentionStep, Step, decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.plan.schedule import all_nodes, must_be_stored
from sd_vae_kit.errors import UnsupportedVaeError

CPU = torch.device("cpu")


def streamed(graph, x, band_bytes=20_000):
    """(result, bands)"""
    stats = RunStats()
    y = run_streamed(graph, x, Plan("stream", CPU, x.dtype, band_bytes=band_bytes), stats=stats)
    assert stats.bands > len(graph.steps)
    return y


def test_a_full_vae_has_62_steps():
    with torch.device("meta"):
        vae = AutoencoderKL(KlConfig())
    decoder, encoder = decoder_graph(vae), encoder_graph(vae)
    assert (len(decoder.steps), len(encoder.steps)) == (35, 27)
    assert decoder.steps[0].name == "post_quant_conv"
    assert decoder.steps[-1].name == "decoder.conv_out"
    assert encoder.steps[-1].name == "quant_conv"
    assert sum(isinstance(step, AttentionStep) for step in decoder.steps) == 1
    assert decoder.shapes((64, 64))[-1] == (3, 512, 512)
    assert encoder.shapes((512, 520))[-1] == (8, 64, 65)


def test_residual_blocks_are_two_steps_with_a_shortcut_where_channels_change():
    graph = decoder_graph(small_vae())
    first = next(step for step in graph.steps if step.name == "decoder.up.0.block.0.conv1")
    second = next(step for step in graph.steps if step.name == "decoder.up.0.block.0.conv2")
    assert isinstance(second, Step)
    assert second.residual == first.source
    assert second.shortcut is not None
    assert second.shortcut.name == "decoder.up.0.block.0.nin_shortcut"


def test_a_decoder_without_its_vae_is_a_program_too():
    vae = small_vae(quant=False)
    alone, whole = decoder_graph(vae.decoder), decoder_graph(vae)
    assert [step.name for step in alone.steps] == [step.name for step in whole.steps], "names as in the whole VAE"


@pytest.mark.parametrize("post_quant", [True, False])
@pytest.mark.parametrize("wide_shortcut", [True, False])
@pytest.mark.parametrize("tanh_out", [True, False])
def test_ldm_layout_with_attention_in_a_level_is_streamed_exactly(post_quant, wide_shortcut, tanh_out):
    torch.manual_seed(0)
    vae = liven(LdmVae(LdmDecoder(tanh_out=tanh_out, wide_shortcut=wide_shortcut), post_quant))
    z = picture(4, 11, 7)
    with torch.no_grad():
        expected = vae.decode(z)
    torch.testing.assert_close(streamed(decoder_graph(vae), z), expected, rtol=0, atol=3e-5)


def test_diffusers_autoencoder_kl_is_streamed_exactly_in_both_directions():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = liven(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=32,
        )
    )
    z, image = picture(4, 9, 12), picture(3, 26, 18)
    with torch.no_grad():
        decoded, moments = vae.decode(z).sample, vae.encode(image).latent_dist.parameters
    torch.testing.assert_close(streamed(decoder_graph(vae), z), decoded, rtol=0, atol=3e-5)
    torch.testing.assert_close(streamed(encoder_graph(vae), image), moments, rtol=0, atol=3e-5)


def test_diffusers_tiny_autoencoder_is_streamed_exactly_in_both_directions():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4
    ).eval()  # fmt: skip
    z, image = picture(4, 7, 5) * 4, picture(3, 40, 72)
    with torch.no_grad():
        decoded, latent = vae.decode(z).sample, vae.encode(image).latents
    torch.testing.assert_close(streamed(decoder_graph(vae), z), decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(streamed(encoder_graph(vae), image), latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("z_channels", [4, 16])
def test_taesd_is_streamed_within_1e_5(z_channels):
    torch.manual_seed(0)
    vae = TinyAutoencoder(TinyConfig(z_channels=z_channels, width=16)).eval()
    latent, rgb = picture(z_channels, 9, 6) * 3, picture(3, 57, 40).sigmoid()
    with torch.no_grad():
        decoded, encoded = vae.decode(latent), vae.encode(rgb)
    torch.testing.assert_close(streamed(decoder_graph(vae), latent), decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(streamed(encoder_graph(vae), rgb), encoded, rtol=0, atol=1e-5)


class PooledBlock(nn.Module):
    """TAEF2's block: a GroupNorm branch of 1x1 convolutions is added before the convolutions."""

    def __init__(self, width):
        super().__init__()
        self.pool = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width), nn.ReLU(inplace=True),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )  # fmt: skip
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1], nn.ReLU(inplace=True), convs[2])
        self.skip, self.fuse = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        x = x + self.pool(x)
        return self.fuse(self.conv(x) + self.skip(x))


def _diffusers_kl():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip


LAYOUTS = {
    # layout: (VAE, its ordinary decode)
    "own": (lambda: AutoencoderKL(KlConfig(SMALL, SMALL)), lambda vae, z: vae.decode(z)),
    "own, no quant_conv": (lambda: small_vae(quant=False), lambda vae, z: vae.decode(z)),
    "ldm": (lambda: LdmVae(LdmDecoder(), True), lambda vae, z: vae.decode(z)),
    "sd3": (lambda: LdmVae(LdmDecoder(wide_shortcut=True), False), lambda vae, z: vae.decode(z)),
    "diffusers": (_diffusers_kl, lambda vae, z: vae.decode(z).sample),
    "taesd": (lambda: TinyAutoencoder(TinyConfig(width=16)), lambda vae, z: vae.decode(z)),
}


@settings(max_examples=30)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    height=st.integers(1, 12),
    width=st.integers(1, 9),
    batch=st.integers(1, 2),
    band_bytes=st.sampled_from([1, 4_000, 20_000, 100_000]),
    padding=st.sampled_from(["zeros", "circular", "reflect"]),
    leaving_out=st.lists(st.integers(1, 17), max_size=9),
)
def test_every_layout_at_any_size_and_padding(layout, height, width, batch, band_bytes, padding, leaving_out):
    torch.manual_seed(0)
    make, forward = LAYOUTS[layout]
    vae = set_padding_mode(liven(make()), padding)
    # reflection needs two pixels, and a circle of one is constant: norms of variance 0 blow rounding up a thousandfold
    z = picture(4, height + (padding != "zeros"), width + (padding != "zeros"), batch)
    graph, stats = decoder_graph(vae), RunStats()
    stored = (all_nodes(graph) - set(leaving_out)) | must_be_stored(graph)
    with torch.no_grad():
        expected = forward(vae, z)
    y = run_streamed(graph, z, Plan("stream-lean", CPU, z.dtype, stored, band_bytes), stats=stats)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))
    assert stats.bands >= batch * len(stored)
    assert band_bytes > 1 or height < 3 or stats.bands > batch * len(stored)


def test_taef2_blocks_with_a_norm_are_streamed_exactly():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), PooledBlock(16), nn.Upsample(scale_factor=2)]
    decoder = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, padding=1, bias=False), PooledBlock(16))
    decoder.append(nn.Conv2d(16, 3, 3, padding=1)).eval()
    z = picture(4, 12, 9)
    with torch.no_grad():
        expected = decoder(z)
    torch.testing.assert_close(streamed(decoder_graph(decoder), z), expected, rtol=0, atol=1e-5)


def test_a_part_that_is_in_no_step_is_refused_by_name():
    vae = small_vae()
    vae.decoder.up[0].block[0].extra = nn.Linear(4, 4)
    with pytest.raises(UnsupportedVaeError, match=r"decoder\.up\.0\.block\.0\.extra \(Linear\)"):
        decoder_graph(vae)
    encoder_graph(vae)  # the other half is not concerned


def test_a_block_whose_forward_was_replaced_is_refused_by_name():
    vae = small_vae()
    block = vae.decoder.mid.block_1
    block.forward = lambda x: x
    with pytest.raises(UnsupportedVaeError, match=r"decoder\.mid\.block_1 was changed by another extension"):
        decoder_graph(vae)


def test_three_dimensional_convolutions_are_refused():
    vae = small_vae()
    vae.decoder.conv_in = nn.Conv3d(4, 64, 3)
    with pytest.raises(UnsupportedVaeError, match=r"decoder\.conv_in is not a two-dimensional convolution"):
        decoder_graph(vae)


def test_an_unknown_network_says_what_it_contains():
    with pytest.raises(UnsupportedVaeError, match=r"none of the known structures.*contains weird, other"):
        decoder_graph(nn.ModuleDict({"weird": nn.Linear(1, 1), "other": nn.Linear(1, 1)}))


def test_active_dropout_is_refused_with_the_remedy():
    vae = LdmVae(LdmDecoder(), True).train()
    with pytest.raises(UnsupportedVaeError, match=r"call eval\(\)"):
        decoder_graph(vae)


def test_a_picture_that_is_too_small_to_encode_says_so():
    graph = encoder_graph(small_vae(NetConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1)))
    with pytest.raises(UnsupportedVaeError, match="3x8 is too small"):
        graph.shapes((3, 8))


def test_pointwise_is_tried_not_assumed():
    assert is_pointwise(nn.GELU())
    assert not is_pointwise(nn.Softmax(1))
    assert not is_pointwise(nn.AvgPool2d(2))
    assert not is_pointwise(nn.PReLU())


def test_program_dtype_and_device_are_the_weights():
    graph = decoder_graph(small_vae(SMALL).to(torch.bfloat16))
    assert graph.dtype == torch.bfloat16
    assert graph.device == CPU
