"""Key names: every spelling in circulation leads to the canonical one, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vae_files import kl_config, kl_state, tiny_state

from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.files.completeness import expected_shapes
from sd_vae_kit.core.networks.taesd import TinyConfig


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("encoder.conv_in.weight", ""),
        ("first_stage_model.encoder.conv_in.weight", "first_stage_model."),
        ("vae.encoder.conv_in.weight", "vae."),
        ("model.encoder.conv_in.weight", "model."),
        ("module.encoder.conv_in.weight", "module."),
        ("model.first_stage_model.encoder.conv_in.weight", "model.first_stage_model."),
        ("state_dict.module.vae.encoder.conv_in.weight", "state_dict.module.vae."),
        ("_orig_mod.encoder.conv_in.weight", "_orig_mod."),
    ],
)
def test_prefixes_are_split_off_in_any_combination(name, prefix):
    assert layouts.split_prefix(name) == (prefix, "encoder.conv_in.weight")


@pytest.mark.parametrize(
    "name",
    [
        "model_ema.decoderconv_inweight",
        "model_ema.decay",
        "loss.logvar",
        "loss.discriminator.main.0.weight",
        "loss.perceptual_loss.net.slice1.0.weight",
        "first_stage_model.loss.logvar",
        "discriminator.main.0.weight",
        "ema.encoder.conv_in.weight",
        "optimizer.state.0.exp_avg",
        "logvar",
        "bn.num_batches_tracked",
    ],
)
def test_leftovers_of_training_are_dropped(name):
    assert layouts.is_leftover(name)
    assert layouts.group_by_prefix([name]) == {}


def test_weights_are_not_mistaken_for_leftovers():
    assert not [name for name in kl_state() if layouts.is_leftover(name)]
    assert not layouts.is_leftover("emanate.glossary.weight")


@pytest.mark.parametrize(
    ("ldm", "diffusers"),
    [
        ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
        ("encoder.down.2.downsample.conv.bias", "encoder.down_blocks.2.downsamplers.0.conv.bias"),
        ("decoder.up.0.block.2.conv1.weight", "decoder.up_blocks.3.resnets.2.conv1.weight"),
        ("decoder.up.3.block.0.norm1.bias", "decoder.up_blocks.0.resnets.0.norm1.bias"),
        ("decoder.up.3.upsample.conv.weight", "decoder.up_blocks.0.upsamplers.0.conv.weight"),
        ("decoder.mid.block_2.conv2.weight", "decoder.mid_block.resnets.1.conv2.weight"),
        ("encoder.mid.attn_1.norm.weight", "encoder.mid_block.attentions.0.group_norm.weight"),
        ("encoder.mid.attn_1.proj_out.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
        ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
        ("bn.running_var", "bn.running_var"),
    ],
)
def test_ldm_and_diffusers_names_are_translated_both_ways(ldm, diffusers):
    assert layouts.kl_to_diffusers(ldm, 4) == diffusers
    assert layouts.kl_from_diffusers(diffusers, 4) == ldm
    assert layouts.kl_from_ldm(ldm) == ldm


@pytest.mark.parametrize(
    ("old", "canonical"),
    [
        ("encoder.mid_block.attentions.0.query.weight", "encoder.mid.attn_1.q.weight"),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.mid.attn_1.k.bias"),
        ("decoder.mid_block.attentions.0.value.weight", "decoder.mid.attn_1.v.weight"),
        ("decoder.mid_block.attentions.0.proj_attn.weight", "decoder.mid.attn_1.proj_out.weight"),
        ("decoder.mid_block.attentions.0.group_norm.weight", "decoder.mid.attn_1.norm.weight"),
    ],
)
def test_the_attentions_names_before_diffusers_0_18_are_known(old, canonical):
    assert layouts.kl_from_diffusers(old, 4) == canonical


def test_a_converters_mixture_of_both_layouts_is_understood():
    assert layouts.kl_from_ldm("decoder.mid.attn_1.to_q.weight") == "decoder.mid.attn_1.q.weight"
    assert layouts.kl_from_ldm("decoder.mid.attn_1.to_out.0.bias") == "decoder.mid.attn_1.proj_out.bias"


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans()
)  # fmt: skip
def test_names_of_any_network_survive_the_way_to_diffusers_and_back(levels, blocks, quant_conv, attention):
    config = kl_config(
        ch_mult=tuple(1 + i % 2 for i in range(levels)), num_res_blocks=blocks, quant_conv=quant_conv,
        mid_attention=attention,
    )  # fmt: skip
    names = list(expected_shapes(config))
    there = [layouts.kl_to_diffusers(name, levels) for name in names]
    assert len(set(there)) == len(names)
    assert layouts.count_levels(there) == levels
    assert [layouts.kl_from_diffusers(name, levels) for name in there] == names


@pytest.mark.parametrize(
    "name", ["encoder.down.0.attn.0.q.weight", "encoder.conv_in.scale", "loss.x.weight", "conv_in.weight"]
)
def test_names_that_are_no_part_of_a_vae_have_no_canonical_name(name):
    assert layouts.kl_from_ldm(name) is None
    assert layouts.kl_from_diffusers(name, 4) is None
    with pytest.raises(KeyError):
        layouts.kl_to_diffusers(name, 4)


def test_attention_is_a_matrix_in_diffusers_and_a_convolution_in_ldm():
    name = "encoder.mid.attn_1.q.weight"
    matrix = torch.randn(6, 6)
    conv = layouts.to_canonical_shape(name, matrix)
    assert conv.shape == (6, 6, 1, 1)
    assert layouts.to_diffusers_shape(name, conv).shape == (6, 6)
    assert conv.data_ptr() == matrix.data_ptr(), "a view, not a copy"
    other = torch.randn(6, 6, 1, 1)
    assert layouts.to_diffusers_shape("encoder.conv_in.weight", other).shape == (6, 6, 1, 1)


def test_the_whole_state_is_renamed_with_the_attention_reshaped():
    config = kl_config(ch_mult=(1, 2, 2))
    state = kl_state(config)
    theirs = layouts.to_diffusers(state, "kl", 3)
    assert theirs["encoder.mid_block.attentions.0.to_q.weight"].dim() == 2
    assert theirs["quant_conv.weight"].dim() == 4
    assert len(theirs) == len(state)


@pytest.mark.parametrize(
    ("published", "part", "canonical"),
    [
        ("1.conv.0.weight", "encoder", "encoder.1.conv.0.weight"),
        ("19.bias", "decoder", "decoder.19.bias"),
        ("encoder.14.weight", "encoder", "encoder.14.weight"),
        ("taesd_decoder.3.conv.4.bias", "encoder", "decoder.3.conv.4.bias"),
        ("taesdxl_encoder.0.weight", "encoder", "encoder.0.weight"),
        ("19.bias", "both", None),
        ("encoder.3.conv.1.weight", "encoder", None),
        ("encoder.conv_in.weight", "encoder", None),
    ],
)
def test_published_taesd_names_are_understood(published, part, canonical):
    assert layouts.tiny_from_taesd(published, part) == canonical


def test_the_clamp_is_no_module_in_diffusers_taesd():
    assert layouts.tiny_to_diffusers("decoder.1.weight") == "decoder.layers.0.weight"
    assert layouts.tiny_from_diffusers("decoder.layers.0.weight") == "decoder.1.weight"
    assert layouts.tiny_from_diffusers("encoder.layers.0.weight") == "encoder.0.weight"
    assert layouts.tiny_from_diffusers("encoder.layers.0.mlp.weight") is None


@pytest.mark.parametrize("z_channels", [4, 16])
def test_taesd_names_survive_the_way_to_diffusers_and_back(z_channels):
    state = tiny_state(TinyConfig(z_channels, 8))
    theirs = layouts.to_diffusers(state, "tiny", 0)
    assert [layouts.tiny_from_diffusers(name) for name in theirs] == list(state)


def test_a_taesd_of_one_half_is_published_without_prefix():
    state = tiny_state(TinyConfig(4, 8, encoder=False))
    assert set(layouts.to_original(state, "tiny", "decoder")) == {n.removeprefix("decoder.") for n in state}
    both = tiny_state(TinyConfig(4, 8))
    assert layouts.to_original(both, "tiny", "both").keys() == both.keys()
