"""Detection: build, save, identify, compare; and what is said of everything else."""

import re
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vae_files import kl_config, kl_state, tiny_state

from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.files.completeness import expected_shapes, parameter_counts
from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.family_of_header import CHECKPOINTS
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.files.layouts import LAYOUTS
from sd_vae_kit.core.files.other_models import OTHER_MODELS, RELATIVES
from sd_vae_kit.core.networks.autoencoder import KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError


def infos(state, dtype=torch.float16):
    return {name: TensorInfo(dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def names_of(*names, shape=(4, 4)):
    return {name: TensorInfo(torch.float16, shape) for name in names}


CONFIGS = {
    "sd": kl_config(ch_mult=(1, 2, 4, 4), num_res_blocks=2),
    "sd3": kl_config(16, ch_mult=(1, 2, 4, 4), num_res_blocks=2, quant_conv=False),
    "wide": kl_config(8, ch=64, ch_mult=(1, 3), num_res_blocks=4),
    "one level": kl_config(ch_mult=(1,)),
    "first level doubled": kl_config(ch_mult=(2, 4)),
    "no attention": kl_config(mid_attention=False),
    "encoder": kl_config(decoder=False),
    "decoder": kl_config(encoder=False, ch_mult=(1, 2)),
    "decoder without post_quant": kl_config(16, encoder=False, quant_conv=False),
    "small decoder": KlConfig(NetConfig(64, (1, 2), 2), NetConfig(32, (3, 4, 4), 1), embed_dim=4),
    "other embedding": KlConfig(NetConfig(32, (1, 2), 1), NetConfig(32, (1, 2), 1), embed_dim=3),
}
TINY = {
    "taesd": TinyConfig(4, 64),
    "taesd3": TinyConfig(16, 64),
    "narrow": TinyConfig(4, 8),
    "encoder": TinyConfig(4, 8, decoder=False),
    "decoder": TinyConfig(16, 8, encoder=False),
    "taef2": TinyConfig(32, 64, variant="pooled"),
    "taef2 decoder": TinyConfig(32, 8, encoder=False, variant="pooled"),
    "taesana": TinyConfig(32, 64, variant="f32"),
    "taesana encoder": TinyConfig(32, 8, decoder=False, variant="f32"),
    "taesana decoder": TinyConfig(32, 8, encoder=False, variant="f32"),
}


def state_of(config):
    """Empty tensors suffice: detection sees shapes only."""
    return {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(config).items()}


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_kl_vae_of_any_shape_is_recognised_in_both_layouts(name, layout):
    config, state = CONFIGS[name], state_of(CONFIGS[name])
    levels = len(config.decoder.ch_mult) if config.decoder else 0
    file = layouts.to_diffusers(state, "kl", levels) if layout == "diffusers" else state
    found = detect(infos(file))
    assert (found.kind, found.layout) == ("kl", layout)
    assert expected_shapes(found.config) == expected_shapes(config)
    assert found.names.keys() == state.keys()
    assert set(found.names.values()) == set(file)
    assert found.part == {"encoder": "encoder", "decoder": "decoder"}.get(name.split(" ")[0], "both")


@pytest.mark.parametrize("name", ["sd", "sd3", "wide", "no attention", "encoder"])
def test_the_configuration_is_read_exactly(name):
    assert detect(infos(state_of(CONFIGS[name]))).config == CONFIGS[name] or name == "encoder"


@pytest.mark.parametrize("layout", ["taesd", "taesd-diffusers"])
@pytest.mark.parametrize("name", TINY)
def test_a_taesd_of_any_width_is_recognised_in_both_layouts(name, layout):
    config, state = TINY[name], state_of(TINY[name])
    part = "both" if config.encoder and config.decoder else "encoder" if config.encoder else "decoder"
    file = layouts.to_diffusers(state, "tiny", 0) if layout != "taesd" else layouts.to_original(state, "tiny", part)
    found = detect(infos(file))
    assert (found.kind, found.layout, found.part, found.config) == ("tiny", layout, part, config)
    assert found.names.keys() == state.keys()
    assert set(found.names.values()) == set(file)


@settings(max_examples=25)
@given(
    st.sampled_from([32, 64, 96]), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3),
    st.sampled_from([1, 4, 16, 32]), st.booleans(),
)  # fmt: skip
def test_any_hyper_parameters_are_read_from_the_shapes(ch, ch_mult, blocks, z_channels, quant_conv):
    config = kl_config(z_channels, ch=ch, ch_mult=tuple(ch_mult), num_res_blocks=blocks, quant_conv=quant_conv)
    found = detect(infos(state_of(config)))
    assert found.config.encoder == config.encoder
    assert found.config.decoder.widths == config.decoder.widths
    assert expected_shapes(found.config) == expected_shapes(config)
    assert (found.z_channels, found.downscale) == (z_channels, 2 ** (len(ch_mult) - 1))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "model.vae.", "module.", "taesd_"])
def test_prefixes_do_not_matter(prefix):
    state = tiny_state() if prefix == "taesd_" else kl_state()
    found = detect(infos({prefix + name: tensor for name, tensor in state.items()}))
    assert found.names == {name: prefix + name for name in state}


def test_leftovers_of_training_do_not_matter():
    state = kl_state()
    extra = names_of(
        "model_ema.decay", "loss.discriminator.main.0.weight", "loss.logvar", "model_ema.encoderconv_inweight"
    )
    assert detect({**infos(state), **extra}).names.keys() == state.keys()


def test_a_decoder_keeps_its_post_quant_conv_and_drops_the_encoders():
    state = {n: t for n, t in state_of(CONFIGS["sd"]).items() if not n.startswith("encoder.")}
    found = detect(infos(state))
    assert found.part == "decoder"
    assert "post_quant_conv.weight" in found.names
    assert "quant_conv.weight" not in found.names


# --- families --------------------------------------------------------------------------------------------------------

F8 = {"ch_mult": (1, 2, 4, 4)}


@pytest.mark.parametrize(
    ("config", "families"),
    [
        (kl_config(4, **F8), ("sd1", "sdxl")),
        (kl_config(16, quant_conv=False, **F8), ("sd3", "flux")),
        (TinyConfig(4, 8), ("sd1", "sdxl")),
        (TinyConfig(16, 8), ("sd3", "flux")),
        (TinyConfig(32, 8, variant="pooled"), ("flux2",)),
        (TinyConfig(32, 8, variant="f32"), ("sana",)),
        (kl_config(8, **F8), ()),
    ],
)
def test_the_families_follow_from_the_latent_channels(config, families):
    found = detect(infos(state_of(config)))
    assert found.families == families
    assert found.family == "|".join(families)
    assert found.family_known_by == ("channels" if len(families) == 1 else "undecided")
    assert bool(found.warnings) == (families == ())


def test_flux2_is_told_by_its_statistics():
    file = infos(state_of(kl_config(32, **F8)))
    file |= {f"bn.running_{kind}": TensorInfo(torch.float32, (128,)) for kind in ("mean", "var")}
    file["bn.num_batches_tracked"] = TensorInfo(torch.int64, ())
    found = detect(file)
    assert (found.families, found.warnings) == (("flux2",), ())
    assert found.names["bn.running_mean"] == "bn.running_mean"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (kl_config(16, **F8), "no quant_conv, this one has"),
        (kl_config(4, quant_conv=False, **F8), "quant_conv .* is missing"),
        (kl_config(32, **F8), r"statistics \(bn\) are missing"),
        (kl_config(4, ch_mult=(1, 2)), "2 x 2 pixels"),
        (kl_config(7, **F8), "no known model family has 7 latent channels"),
    ],
)
def test_what_is_unusual_is_said(config, words):
    (warning,) = detect(infos(state_of(config))).warnings
    assert re.search(words, warning)


@pytest.mark.parametrize(
    ("signs", "z_channels", "family"),
    [
        (["conditioner.embedders.0.transformer.x", "model.diffusion_model.label_emb.0.0.weight"], 4, "sdxl"),
        (["cond_stage_model.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"], 4, "sd1"),
        (["model.diffusion_model.joint_blocks.0.x"], 16, "sd3"),
        (["model.diffusion_model.double_blocks.0.x"], 16, "flux"),
        (["double_blocks.0.x"], 16, "flux"),
        (["model.diffusion_model.label_emb.0.0.weight"], 4, "sdxl"),
    ],
)
def test_a_vae_baked_into_a_checkpoint_is_found_and_takes_its_family(signs, z_channels, family):
    state = state_of(kl_config(z_channels, quant_conv=z_channels == 4, **F8))
    baked = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    found = detect({**names_of(*signs, "model_ema.decay", "betas"), **infos(baked)})
    assert (found.families, found.family_known_by) == ((family,), "checkpoint")
    assert set(found.names.values()) == set(baked)


def test_a_checkpoints_keys_do_not_give_a_family_of_other_channels():
    file = {**infos(state_of(kl_config(16, quant_conv=False, **F8))), **names_of("cond_stage_model.x")}
    assert detect(file).families == ("sd3", "flux")


def test_our_metadata_decide_unless_they_cannot_be_true():
    file = infos(state_of(kl_config(4, **F8)))
    told = detect(file, {"family": "sdxl"})
    assert (told.families, told.family_known_by) == (("sdxl",), "metadata")
    both = detect(file, {"family": "sdxl|sd1"})
    assert (both.families, both.family_known_by) == (("sdxl", "sd1"), "undecided")
    assert detect({**file, **names_of("cond_stage_model.x")}, {"family": "sdxl"}).families == ("sdxl",)
    wrong = detect(file, {"family": "flux"})
    assert wrong.families == ("sd1", "sdxl")
    assert wrong.warnings == ("its metadata say family 'flux', which does not fit; ignored",)


def test_every_family_in_the_tables_exists():
    assert {family for family, _ in CHECKPOINTS} <= FORMATS.keys()


# --- incomplete ------------------------------------------------------------------------------------------------------


# (without a quant_conv's weight it would be a complete VAE of another shape)
@pytest.mark.parametrize("name", [n for n in expected_shapes(kl_config()) if not n.endswith("quant_conv.weight")])
def test_whatever_weight_is_missing_is_named(name):
    state = state_of(kl_config())
    del state[name]
    with pytest.raises(BrokenVaeError, match=name.replace(".", r"\.")):
        detect(infos(state), label="x.safetensors")


def test_several_missing_weights_are_counted():
    state = {n: t for n, t in state_of(CONFIGS["sd"]).items() if not n.startswith("decoder.up.2.block.1")}
    with pytest.raises(BrokenVaeError) as raised:
        detect(infos(state), label="x.ckpt")
    assert str(raised.value).startswith("x.ckpt is a KL autoencoder in ldm names, but 8 of ")
    assert "and 4 more" in str(raised.value)
    assert str(raised.value).endswith("copy or download it again")


def test_a_wrong_shape_is_named_with_both_shapes():
    file = infos(kl_state())
    file["decoder.mid.attn_1.q.weight"] = TensorInfo(torch.float16, (64, 32, 1, 1))
    with pytest.raises(BrokenVaeError, match=r"attn_1\.q\.weight is \(64, 32, 1, 1\) instead of \(64, 64, 1, 1\)"):
        detect(file)


def test_a_shape_that_is_no_convolution_is_damage():
    file = infos(kl_state())
    file["encoder.conv_in.weight"] = TensorInfo(torch.float16, (32,))
    with pytest.raises(BrokenVaeError, match=r"encoder\.conv_in\.weight has the shape \(32,\)"):
        detect(file)


def test_halves_of_different_latents_are_damage():
    config = KlConfig(NetConfig(32, (1, 2), 1, 3, 4), NetConfig(32, (1, 2), 1, 3, 16), False, False)
    with pytest.raises(BrokenVaeError, match="encoder has 4 latent channels, its decoder 16"):
        detect(infos(state_of(config)))


@pytest.mark.parametrize("number", [0, 8, 14])
def test_a_taesd_without_one_of_its_layers_is_broken(number):
    state = {n: t for n, t in tiny_state().items() if not n.startswith(f"encoder.{number}.")}
    with pytest.raises(BrokenVaeError, match=rf"encoder\.{number}\."):
        detect(infos(state))


# --- something else --------------------------------------------------------------------------------------------------

LOOKS_LIKE = [
    (["lora_unet_down_blocks_0_attentions_0.lora_down.weight"], "a LoRA", "models/Lora"),
    (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA", "models/Lora"),
    (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "a text encoder", "text_encoder"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder", "text_encoder"),
    (["model.layers.0.self_attn.q_proj.weight"], "a text encoder", "text_encoder"),
    (["model.diffusion_model.input_blocks.0.0.weight"], "a checkpoint without VAE weights", "Stable-diffusion"),
    (["double_blocks.0.img_attn.qkv.weight"], "a checkpoint without VAE weights", "Stable-diffusion"),
    (["down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight"], "a checkpoint without VAE", "Stable-diffusion"),
    (["control_model.input_blocks.0.0.weight"], "a ControlNet", "models/ControlNet"),
    (["controlnet_cond_embedding.conv_in.weight", "time_embedding.linear_1.weight"], "a ControlNet", "ControlNet"),
    (["emb_params"], "an embedding", "embeddings"),
    (["string_to_param.*"], "an embedding", "embeddings"),
    (["clip_g", "clip_l"], "an embedding", "embeddings"),
    (["conv_first.weight", "body.0.rdb1.conv1.weight"], "an upscaler", "ESRGAN"),
    (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "an upscaler", "ESRGAN"),
    (["vision_model.encoder.layers.0.mlp.fc1.weight"], "an image encoder", "clip_vision"),
    (["image_proj.proj.weight"], "an IP-Adapter", "ControlNet"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "what", "folder"), LOOKS_LIKE, ids=[names[0] for names, _, _ in LOOKS_LIKE])
def test_other_models_are_named_with_where_they_belong(names, what, folder):
    with pytest.raises(UnsupportedVaeError) as raised:
        detect(names_of(*names), label="x.safetensors")
    assert str(raised.value).startswith(f"x.safetensors is {what}")
    assert folder in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_other_model_of_the_table_is_tried():
    tried = {what for _, what, _ in LOOKS_LIKE}
    assert not [
        name for name, _, _ in OTHER_MODELS if not any(name.startswith(t) for t in tried) and "hyper" not in name
    ]


@pytest.mark.parametrize(
    ("names", "shape", "what"),
    [
        (["quantize.embedding.weight"], (256, 4), "a VQ autoencoder"),
        (["decoder.up.0.block.0.time_stack.in_layers.0.weight"], (4,), "Stable Video Diffusion"),
        (["decoder.condition_encoder.layers.0.weight"], (4,), "an asymmetric"),
        (["encoder.conv1.weight", "decoder.middle.0.residual.2.weight"], (4, 4, 3, 3, 3), "a 3-D video VAE"),
        (["encoder.down.1.attn.0.q.weight"], (4, 4, 1, 1), "attention beside the middle"),
        (["decoder.7.conv.weight"], (4, 4, 1, 1), "TAEHV"),
        (["encoder.stages.2.0.context_module.main.qkv.conv.weight"], (4, 4, 1, 1), "deep-compression"),
        (["vquantizer.codebook.weight"], (4, 4), "Stable Cascade"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_relatives_are_named_and_never_run_with_layers_left_out(names, shape, what, beside):
    base = infos(kl_state()) if beside else {}
    with pytest.raises(UnsupportedVaeError, match=what):
        detect({**base, **names_of(*names, shape=shape)})


def test_every_relative_of_the_table_matches_something_in_its_words():
    assert len({name for name, _ in RELATIVES}) == len(RELATIVES)


def test_an_unknown_layer_is_refused_instead_of_left_out():
    file = {**infos(kl_state()), **names_of("decoder.mid.block_1.temb_proj.weight")}
    with pytest.raises(
        UnsupportedVaeError, match=r"layers this program does not know: decoder\.mid\.block_1\.temb_proj"
    ):
        detect(file)


def test_a_few_vae_names_tell_the_nearest_architecture_and_what_is_missing():
    with pytest.raises(UnsupportedVaeError) as raised:
        detect(names_of("encoder.conv_in.weight", "encoder.norm_out.weight", "other"), label="x.pt")
    message = str(raised.value)
    assert "nearest is a KL autoencoder in ldm names (2 of 10 landmarks)" in message
    assert "encoder.down.0.block.0.conv1.weight" in message
    assert message.endswith("and 4 more are missing")


def test_an_unknown_file_is_described_by_its_names():
    with pytest.raises(
        UnsupportedVaeError, match="no VAE this program knows; its 4 tensors are called a, b, c and 1 more"
    ):
        detect(names_of("a", "b", "c", "d"))


def test_a_file_without_tensors_is_told_so():
    with pytest.raises(UnsupportedVaeError, match="holds no weights at all"):
        detect({})


@pytest.mark.parametrize("dtype", [torch.int8, None])
def test_quantised_weights_are_refused(dtype):
    with pytest.raises(UnsupportedVaeError, match=r"quantised .* choose a copy in fp16, bf16 or fp32"):
        detect(infos(kl_state(), dtype))


def test_widths_that_groupnorm_cannot_divide_are_refused():
    file = {n: TensorInfo(i.dtype, tuple(48 if s == 32 else s for s in i.shape)) for n, i in infos(kl_state()).items()}
    with pytest.raises(UnsupportedVaeError, match="layers of 48 channels"):
        detect(file)


@pytest.mark.parametrize("name", ["encoder.down.999.block.0.conv1.weight", "decoder.up.0.block.999.conv1.weight"])
def test_absurd_numbers_are_refused_before_anything_is_built(name):
    with pytest.raises(UnsupportedVaeError, match="has 1000 levels or blocks"):
        detect({**infos(kl_state()), **names_of(name, shape=(32, 32, 3, 3))})


@settings(max_examples=40)
@given(st.data())
def test_any_mutilation_of_a_vae_raises_only_our_errors(data):
    file = infos(data.draw(st.sampled_from([kl_state, tiny_state]))())
    for name in data.draw(st.lists(st.sampled_from(sorted(file)), max_size=30)):
        shape = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 70), max_size=5).map(tuple)))
        file.pop(name, None)
        if shape is not None:
            file[name] = TensorInfo(torch.float16, shape)
    with suppress(BrokenVaeError, UnsupportedVaeError):
        detect(file)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_without_quant_convs_but_for_the_total():
    sd = KlConfig()
    counts = parameter_counts(detect(infos(state_of(sd))))
    assert counts == {"encoder": 34_163_592, "decoder": 49_490_179, "total": 83_653_863}
    tiny = parameter_counts(detect(infos(state_of(TINY["taesd3"]))))
    assert tiny == {"encoder": 1_229_456, "decoder": 1_229_443, "total": 2_458_899}


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("taesd", 1_222_532, 1_222_531), ("taef2", 1_338_528, 1_338_499), ("taesana", 1_256_288, 8_301_763)],
)
def test_the_tiny_autoencoders_have_their_published_sizes(name, encoder, decoder):
    counts = parameter_counts(detect(infos(state_of(TINY[name]))))
    assert counts == {"encoder": encoder, "decoder": decoder, "total": encoder + decoder}


@pytest.mark.parametrize("more", ["decoder.20.weight", "decoder.19.conv.0.weight", "decoder.9.pool.0.weight"])
def test_a_taesd_with_a_layer_more_is_refused_instead_of_run_without_it(more):
    with pytest.raises(UnsupportedVaeError, match=more.replace(".", r"\.")):
        detect({**infos(state_of(TINY["narrow"])), **names_of(more, shape=(8, 8, 3, 3))})


def test_landmarks_are_names_the_layouts_really_have():
    state = state_of(CONFIGS["sd"])
    tiny = state_of(TINY["taesd"])
    files = {
        "ldm": state,
        "diffusers": layouts.to_diffusers(state, "kl", 4),
        "taesd": layouts.to_original({n: t for n, t in tiny.items() if n.startswith("decoder")}, "tiny", "decoder"),
        "taesd-diffusers": layouts.to_diffusers(tiny, "tiny", 0),
    }
    for layout in LAYOUTS:
        assert set(layout.landmarks) <= set(files[layout.name])


@pytest.mark.parametrize("name", ["taesd", "taesdxl", "taesd3", "taef1"])
def test_real_taesd_files_are_recognised(weights_dir, name):
    for part in ("encoder", "decoder"):
        header = read_header(weights_dir / f"{name}_{part}.safetensors")
        found = detect(header.tensors, header.metadata)
        channels = 16 if name in ("taesd3", "taef1") else 4
        assert (found.kind, found.layout, found.part) == ("tiny", "taesd", part)
        assert (found.z_channels, found.config.width) == (channels, 64)
        known = {
            (4, "encoder"): 1_222_532,
            (4, "decoder"): 1_222_531,
            (16, "encoder"): 1_229_456,
            (16, "decoder"): 1_229_443,
        }
        assert parameter_counts(found)["total"] == known[channels, part]
