"""TAEF2 and TAESANA against a second implementation, written as functions over the published files' names.

diffusers' AutoencoderTiny cannot express either: it has no pooled block, and its levels keep their width.  So the
reference below reads the published structure (madebyollin/taesd, taesd.py, and the file taef2.safetensors) as a line of
letters and computes with torch.nn.functional alone.
"""

import pytest
import torch
from torch.nn import functional as F
from vae_files import needs_half, picture, randomised, tiny_state, write

from sd_vae_kit.core.dtypes import DTYPES
from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.latent_format import FORMATS, pack, unpack
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.vae import load_vae, read_vae
from sd_vae_kit.errors import VaeMismatchError

# c convolution, s with stride 2, r ReLU, b block, p pooled block, t limit of the latent, u upsampling; one per module
PUBLISHED = {
    ("plain", "encoder"): "c b sbbb sbbb sbbb c",
    ("plain", "decoder"): "t c r bbb u c bbb u c bbb u c b c",
    ("pooled", "encoder"): "c b sbbb sbbb sppp c",
    ("pooled", "decoder"): "t c r ppp u c bbb u c bbb u c b c",
    ("f32", "encoder"): "s r s r b sbbb sbbb sbbb c",
    ("f32", "decoder"): "t c r bbb u c bbb u c bbb u c bbb u c bbb u c b c",
}
VARIANTS = ("plain", "pooled", "f32")


def reference(state, half, variant, x):
    """The network's output, from canonical names."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    for number, letter in enumerate(PUBLISHED[variant, half].replace(" ", "")):
        name = f"{half}.{number}"
        if letter in "cs":
            x = conv(name, x, 2 if letter == "s" else 1)
        elif letter == "r":
            x = x.clamp(min=0)
        elif letter == "t":
            x = torch.tanh(x / 3) * 3
        elif letter == "u":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        else:
            if letter == "p":
                h = conv(f"{name}.pool.0", x)
                h = F.group_norm(h, 4, state[f"{name}.pool.1.weight"], state[f"{name}.pool.1.bias"])
                x = x + conv(f"{name}.pool.3", h.clamp(min=0))
            h = conv(f"{name}.conv.2", conv(f"{name}.conv.0", x).clamp(min=0)).clamp(min=0)
            x = (conv(f"{name}.conv.4", h) + x).clamp(min=0)
    return x


def config_of(variant, width=16):
    return TinyConfig({"plain": 16}.get(variant, 32), width, variant=variant)


def near(result, expected, tolerance=1e-5):
    assert result.shape == expected.shape
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_is_where_the_published_files_have_it(variant):
    """Full width; names and shapes come from the published structure, the numbers from the published classes."""
    ours = TinyAutoencoder(config_of(variant, 64))
    for half in ("encoder", "decoder"):
        letters = PUBLISHED[variant, half].replace(" ", "")
        numbers = {int(n.split(".")[1]) for n in ours.state_dict() if n.startswith(half)}
        assert numbers == {i for i, letter in enumerate(letters) if letter in "csbp"}
        assert len(getattr(ours, half)) == len(letters)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_halves_compute_what_the_reference_computes(variant):
    config = config_of(variant)
    ours = randomised(TinyAutoencoder(config))
    state = dict(ours.state_dict())
    rgb = picture(64, 96) * 0.5 + 0.5
    with torch.no_grad():
        latent = reference(state, "encoder", variant, rgb)
        assert latent.shape == (1, config.z_channels, 64 // config.downscale, 96 // config.downscale)
        near(ours.encode(rgb), latent)
        near(ours.decode(latent), reference(state, "decoder", variant, latent))


@pytest.mark.parametrize("variant", ["pooled", "f32"])
@pytest.mark.parametrize("layout", ["taesd", "diffusers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("part", ["both", "decoder", "encoder"])
def test_a_file_of_any_layout_gives_the_same_picture(tmp_path, variant, layout, suffix, part):
    config = config_of(variant, 8)
    whole = tiny_state(config)
    state = {n: t for n, t in whole.items() if part == "both" or n.startswith(part)}
    is_diffusers = layout == "diffusers"
    file = layouts.to_diffusers(state, "tiny", 0) if is_diffusers else layouts.to_original(state, "tiny", part)
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(file, path)
    else:
        write(path, file)
    vae = load_vae(path)
    assert (vae.kind, vae.part, vae.warnings) == ("tiny", part, ())
    assert vae.latent_format.name == {"pooled": "flux2", "f32": "sana"}[variant]
    image = picture(64, 32)
    latent = reference(whole, "encoder", variant, image / 2 + 0.5)
    if part != "decoder":
        near(vae.encode(image), latent)
    if part != "encoder":
        near(vae.decode(latent), reference(whole, "decoder", variant, latent) * 2 - 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=needs_half)])
def test_half_precision_files_are_run_in_fp32_on_request_and_in_their_own_type_else(tmp_path, variant, precision):
    config = config_of(variant, 8)
    halved = {n: t.to(DTYPES[precision]) for n, t in tiny_state(config).items()}
    path = write(tmp_path / "x.safetensors", halved)
    exact = {n: t.float() for n, t in halved.items()}
    latent = torch.randn(1, config.z_channels, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = reference(exact, "decoder", variant, latent) * 2 - 1
    near(load_vae(path, dtype=torch.float32).decode(latent), expected)
    own = load_vae(path)
    assert next(own.module.parameters()).dtype == DTYPES[precision]
    near(own.decode(latent), expected, 0.05)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_streaming_in_bands_gives_the_reference_picture(variant, half):
    config = config_of(variant, 8)
    module = randomised(TinyAutoencoder(config))
    graph = (encoder_graph if half == "encoder" else decoder_graph)(module)
    if half == "encoder":
        x = picture(192, 64) / 2 + 0.5
    else:
        x = torch.randn(1, config.z_channels, 9, 4, generator=torch.Generator().manual_seed(2))
    stats = RunStats()
    plan = Plan("stream", torch.device("cpu"), torch.float32, band_bytes=1 << 12)
    result = run_streamed(graph, x, plan, stats=stats)
    assert stats.bands > 2 * len(graph.steps)
    with torch.no_grad():
        near(result, reference(dict(module.state_dict()), half, variant, x))


# --- FLUX.2's packed latents -----------------------------------------------------------------------------------------


def test_unpacking_is_what_the_pipeline_of_flux2_does():
    pipeline = pytest.importorskip("diffusers.pipelines.flux2.pipeline_flux2").Flux2Pipeline
    packed = torch.arange(2 * 128 * 3 * 5).reshape(2, 128, 3, 5).float()
    assert torch.equal(unpack(packed), pipeline._unpatchify_latents(packed))
    assert torch.equal(pack(unpack(packed)), packed)
    whole = torch.arange(2 * 32 * 6 * 10).reshape(2, 32, 6, 10).float()
    assert torch.equal(pack(whole), pipeline._patchify_latents(whole))
    assert not torch.equal(unpack(packed), packed.reshape(2, 32, 6, 10)), "the mistake others make"


def test_one_cell_of_a_packed_latent_is_a_square_of_cells():
    packed = torch.zeros(1, 128, 2, 2)
    packed[0, 4 * 7 + 2 * 1 + 0, 1, 0] = 1.0
    where = torch.nonzero(unpack(packed))
    assert where.tolist() == [[0, 7, 3, 0]]


def test_a_taef2_decodes_packed_and_unpacked_latents_alike(tmp_path):
    vae = load_vae(write(tmp_path / "taef2.safetensors", tiny_state(config_of("pooled", 8))))
    latent = vae.encode(picture(32, 48))
    assert latent.shape == (1, 32, 4, 6)
    assert torch.equal(vae.decode(pack(latent)), vae.decode(latent))


@pytest.mark.parametrize(("variant", "channels"), [("plain", 64), ("f32", 128), ("pooled", 64), ("pooled", 16)])
def test_other_channels_are_refused_in_one_line(tmp_path, variant, channels):
    vae = load_vae(write(tmp_path / "x.safetensors", tiny_state(config_of(variant, 8))))
    with pytest.raises(VaeMismatchError, match=f"the latent has {channels} channels, x.safetensors") as caught:
        vae.decode(torch.zeros(1, channels, 4, 4))
    assert "\n" not in str(caught.value)


def test_only_flux2_has_packed_latents():
    assert [f.name for f in FORMATS.values() if f.is_packed] == ["flux2"]


def test_the_file_on_the_hub_with_its_diffusers_names_is_read(tmp_path):
    """taef2.safetensors: `decoder.layers.N`, one less than in the numbered files, pools among them."""
    state = layouts.to_diffusers(tiny_state(config_of("pooled", 8)), "tiny", 0)
    assert "decoder.layers.2.pool.3.weight" in state
    assert "encoder.layers.13.pool.1.bias" in state
    detection = read_vae(write(tmp_path / "taef2.safetensors", state)).detection
    assert (detection.layout, detection.families, detection.part) == ("taesd-diffusers", ("flux2",), "both")
