"""`make_fp16_safe`: the file it gives runs in plain half precision everywhere, or it refuses."""

import pytest
import torch
from overflow_zoo import (
    base_vae,
    rms,
)
from vae_files import amplify_stream, needs_half, scale
from vae_zoo import picture

from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.fp16_safe import make_fp16_safe
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.vae import VaeWeights, build
from sd_vae_kit.errors import NanError, VaeMismatchError

PARTS = ("encoder", "decoder")
IMAGES = [picture(3, 48, 32, seed=seed).tanh() for seed in range(2)]


def weights_of(vae) -> VaeWeights:
    state = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    return VaeWeights(detect({n: TensorInfo(t.dtype, tuple(t.shape)) for n, t in state.items()}), state, {"by": "test"})


def half_pictures(weights):
    """What any program gets from the file in fp16: moments and picture, by the module's ordinary forward."""
    vae = build(weights, dtype=torch.float16)
    with torch.no_grad():
        moments = vae.encode(IMAGES[0].half())
        return moments.float(), vae.decode(moments[:, :4].nan_to_num()).float()


def broken(place):
    vae = base_vae()
    if place == "stream":
        for part in PARTS:
            amplify_stream(vae, part, 15)
    elif place == "inner":
        scale(vae.decoder.up[0].block[0].conv1, 19)
        scale(vae.encoder.down[0].block[0].conv1, 19)
    elif place == "query":
        scale(vae.decoder.mid.attn_1.q, 16)
        scale(vae.decoder.mid.attn_1.k, -14)
    elif place == "value":
        scale(vae.decoder.mid.attn_1.v, 17)
        with torch.no_grad():
            vae.decoder.mid.attn_1.proj_out.weight.mul_(2.0**-10)
    return vae


@needs_half
@pytest.mark.parametrize("place", ["stream", "inner", "query", "value"])
def test_a_file_that_overflows_becomes_one_that_does_not(place):
    weights = weights_of(broken(place))
    before = {name: tensor.clone() for name, tensor in weights.state.items()}
    moments, image = half_pictures(weights)
    assert not bool(torch.isfinite(moments).all() and torch.isfinite(image).all()), "it must overflow before"
    safe = make_fp16_safe(weights, IMAGES)
    assert safe.folded
    assert safe.largest_before > 65504 > 4 * safe.largest_after
    moments, image = half_pictures(safe.weights)
    assert bool(torch.isfinite(moments).all() and torch.isfinite(image).all())
    original = build(weights, dtype=torch.float32)
    with torch.no_grad():
        expected = original.encode(IMAGES[0])
        torch.testing.assert_close(moments, expected, rtol=0, atol=0.02 * rms(expected) * 5)
        assert rms(image - original.decode(moments[:, :4])) <= 0.01 * max(1.0, rms(image))
    assert safe.weights.metadata == {"by": "test"}
    assert all(torch.equal(weights.state[name], tensor) for name, tensor in before.items())


@needs_half
def test_a_sound_vae_keeps_every_weight():
    weights = weights_of(base_vae())
    safe = make_fp16_safe(weights, IMAGES)
    assert safe.folded == {}
    assert all(torch.equal(safe.weights.state[name].float(), tensor) for name, tensor in weights.state.items())


def test_a_norm_that_is_too_large_itself_is_refused_by_name():
    vae = base_vae()
    scale(vae.decoder.norm_out, 15)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2.0**-15)
    with pytest.raises(
        NanError, match=r"decoder\.norm_out gives values up to \d+ that no factor can take away .*nothing was"
    ):
        make_fp16_safe(weights_of(vae), IMAGES, label="x.safetensors")


@needs_half
def test_a_picture_that_would_not_be_the_same_is_refused(monkeypatch):
    monkeypatch.setattr("sd_vae_kit.core.fp16_safe.MOST_ERROR", 1e-9)
    with pytest.raises(NanError, match=r"on sample pictures the result is off by 0\.00. .* nothing was written"):
        make_fp16_safe(weights_of(base_vae()), IMAGES)


def test_a_taesd_is_refused():
    state = TinyAutoencoder(TinyConfig(4)).state_dict()
    infos = {n: TensorInfo(t.dtype, tuple(t.shape)) for n, t in state.items()}
    with pytest.raises(VaeMismatchError, match="is a TAESD, which has no norms"):
        make_fp16_safe(VaeWeights(detect(infos), state, {}), IMAGES)


@needs_half
def test_a_decoder_alone_is_tried_on_noise():
    vae = base_vae()
    amplify_stream(vae, "decoder", 15)
    state = {n: t for n, t in vae.state_dict().items() if n.startswith(("decoder", "post_quant"))}
    infos = {n: TensorInfo(t.dtype, tuple(t.shape)) for n, t in state.items()}
    safe = make_fp16_safe(VaeWeights(detect(infos), state, {}), IMAGES)
    with torch.no_grad():
        image = build(safe.weights, dtype=torch.float16).decode(torch.randn(1, 4, 8, 8).half())
    assert bool(torch.isfinite(image).all())
