"""What a file is, from the names and shapes of its tensors alone.

Three tables hold the knowledge: `LAYOUTS` (what can be used, and how its names translate), `RELATIVES` (autoencoders
that look like those but are not) and `OTHER_MODELS` (what people put into the folder by mistake).  Hyper-parameters are
read from shapes; the module they describe is then built without memory (meta device) and says which names and shapes a
complete file has, so that an incomplete one can be told exactly what it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from math import gcd, prod
from typing import Literal

import torch

from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.halves import HALVES, Half, Part
from sd_vae_kit.core.networks.autoencoder import NORM_GROUPS, AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig, Variant, numbered_convs
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError

Kind = Literal["kl", "tiny"]
LayoutName = Literal["ldm", "diffusers", "taesd", "taesd-diffusers"]
Shape = tuple[int, ...]

# Far above any published VAE; beyond them a file is nonsense, and building what it describes would take for ever.
LEVEL_LIMIT = 8
BLOCK_LIMIT = 16
CHANNEL_LIMIT = 16384


@dataclass(frozen=True)
class Detection:
    """What a file is.

    Attributes:
        kind: "kl" for AutoencoderKL, "tiny" for TAESD.
        part: Which halves it has.
        layout: How its names are spelled.
        config: Hyper-parameters, enough to build the module.
        names: Canonical name -> name in the file, of every tensor that belongs to the VAE.
        families: Latent spaces it may belong to, the likeliest first; empty if no known one has its channels.
        warnings: Sentences for the user about what is unusual.
    """

    kind: Kind
    part: Part
    layout: LayoutName
    config: KlConfig | TinyConfig
    names: dict[str, str]
    families: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def z_channels(self) -> int:
        """Latent channels."""
        return _net(self.config).z_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return _net(self.config).downscale

    @property
    def family(self) -> str:
        """The families in one string, "sd1|sdxl"."""
        return "|".join(self.families)


def _net(config: KlConfig | TinyConfig) -> NetConfig | TinyConfig:
    """The half that tells the latent's shape; a KL autoencoder's halves agree on it."""
    if isinstance(config, TinyConfig):
        return config
    net = config.encoder or config.decoder
    assert net is not None  # `_kl_config` reads at least one
    return net


@dataclass(frozen=True)
class KeyCondition:
    """A condition on the names of a file, as data.

    Attributes:
        any_of: Regular expressions, one of which must match at the beginning of a name.
        dimensions: If given, that or more dimensions in one of those tensors.
    """

    any_of: tuple[str, ...]
    dimensions: int = 0

    def match(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether one of `tensors`, by name, shows the sign."""
        pattern = re.compile("|".join(f"(?:{p})" for p in self.any_of))
        return any(pattern.match(name) and len(info.shape) >= self.dimensions for name, info in tensors.items())


@dataclass(frozen=True)
class Layout:
    """An architecture in one spelling.

    Attributes:
        name, kind: For `Detection`.
        label: What messages call it.
        signs: Names (behind the prefix) that only this layout has; one is enough: incomplete files are recognised too.
        landmarks: Names a complete file has, for telling how near an unknown file comes.
        translate: Names behind the prefix -> canonical names, `None` for what does not belong to it.
    """

    name: LayoutName
    kind: Kind
    label: str
    signs: KeyCondition
    landmarks: tuple[str, ...]
    translate: Callable[[Collection[str]], dict[str, str | None]]


def _from_ldm(names: Collection[str]) -> dict[str, str | None]:
    return {name: layouts.kl_from_ldm(name) for name in names}


def _from_diffusers(names: Collection[str]) -> dict[str, str | None]:
    levels = layouts.count_levels(names)
    return {name: layouts.kl_from_diffusers(name, levels) for name in names}


_TINY_VARIANTS: tuple[Variant, ...] = ("plain", "f32")  # "pooled" has the modules of "plain"


def _nearest_tiny(numbers: Collection[int], halves: Iterable[Half]) -> tuple[Half, Variant]:
    """The half and variant whose convolutions have these numbers, or most of them: a file may be incomplete."""

    def likeness(candidate: tuple[Half, Variant]) -> int:
        expected = _tiny_convs(*candidate)
        return len(expected & set(numbers)) - len(set(numbers) - expected)

    return max(((half, variant) for half in halves for variant in _TINY_VARIANTS), key=likeness)


_tiny_convs = cache(numbered_convs)


def _from_taesd(names: Collection[str]) -> dict[str, str | None]:
    numbers = {int(m[1]) for n in names if (m := re.match(r"^(\d{1,2})\.weight$", n))}
    half, _ = _nearest_tiny(numbers, HALVES)
    return {name: layouts.tiny_from_taesd(name, half) for name in names}


def _from_taesd_diffusers(names: Collection[str]) -> dict[str, str | None]:
    return {name: layouts.tiny_from_diffusers(name) for name in names}


LAYOUTS = (
    Layout(
        "ldm", "kl", "a KL autoencoder in ldm names",
        KeyCondition((r"encoder\.down\.\d+\.block\.\d+\.conv\d\.weight$",
                      r"decoder\.up\.\d+\.block\.\d+\.conv\d\.weight$")),
        (
            "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.mid.attn_1.q.weight",
            "encoder.norm_out.weight", "encoder.conv_out.weight", "decoder.conv_in.weight",
            "decoder.mid.attn_1.q.weight", "decoder.up.0.block.0.conv1.weight", "decoder.norm_out.weight",
            "decoder.conv_out.weight",
        ),
        _from_ldm,
    ),
    Layout(
        "diffusers", "kl", "a KL autoencoder in diffusers names",
        KeyCondition((
            r"encoder\.down_blocks\.\d+\.resnets\.\d+\.conv\d\.weight$",
            r"decoder\.up_blocks\.\d+\.resnets\.\d+\.conv\d\.weight$",
        )),
        (
            "encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight",
            "encoder.mid_block.resnets.0.conv1.weight", "encoder.conv_norm_out.weight", "encoder.conv_out.weight",
            "decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight",
            "decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.conv_norm_out.weight", "decoder.conv_out.weight",
        ),
        _from_diffusers,
    ),
    Layout(
        "taesd", "tiny", "a TAESD",
        KeyCondition((r"(?:(?:tae[a-z0-9]*_)?(?:encoder|decoder)\.)?\d{1,2}\.conv\.[024]\.weight$",)),
        ("1.weight", "3.conv.0.weight", "19.weight"),
        _from_taesd,
    ),
    Layout(
        "taesd-diffusers", "tiny", "a TAESD in diffusers names",
        KeyCondition((r"(?:encoder|decoder)\.layers\.\d{1,2}\.conv\.[024]\.weight$",)),
        ("encoder.layers.0.weight", "encoder.layers.14.weight", "decoder.layers.0.weight", "decoder.layers.18.weight"),
        _from_taesd_diffusers,
    ),
)  # fmt: skip

# Autoencoders beside those above, looked for among the names behind one prefix; the first that matches is named.
RELATIVES = (
    ("a VQ autoencoder (it has a codebook)", KeyCondition((r"quantize\.embedding", r"quantize\.embed"))),
    ("Stable Video Diffusion's temporal VAE", KeyCondition((
        r"decoder\..*(?:time_stack|time_mix|temporal_res|time_conv)",))),
    ("an asymmetric inpainting VAE", KeyCondition((r"decoder\.condition_encoder\.", r"decoder\.up_layers\."))),
    (
        "a 3-D video VAE (Wan, Qwen-Image, Hunyuan, CogVideoX, LTX ...)",
        KeyCondition((r"encoder\.", r"decoder\.", r"conv1\."), dimensions=5),
    ),
    ("a KL autoencoder with attention beside the middle", KeyCondition((r"(?:encoder\.down|decoder\.up)\.\d+\.attn\.",
        r"(?:encoder\.down|decoder\.up)_blocks\.\d+\.attentions\."))),
    ("a tiny video autoencoder (TAEHV)", KeyCondition((r"(?:encoder|decoder)\.\d+\.conv\.weight$",))),
    ("a deep-compression autoencoder (DC-AE, SANA)", KeyCondition((
        r"(?:encoder|decoder)\.(?:stages|down_blocks|up_blocks|"
        r"project_in|project_out)\.\d*\.?.*(?:context_module|local_module|conv_depth|to_qkv_multiscale)",))),
    ("Stable Cascade's stage A", KeyCondition((r"in_block\.1\.weight", r"vquantizer\."))),
)  # fmt: skip

OTHER_MODELS = (
    ("a LoRA", "models/Lora", KeyCondition((
        r".*\.?lora_(?:up|down|A|B)\b", r".*\.lora\.(?:up|down)", r"lora_(?:unet|te\d?|transformer)_",
        r".*\.(?:hada_w1_a|lokr_w1|oft_blocks|oft_diag|dora_scale)",
    ))),
    ("a ControlNet", "models/ControlNet", KeyCondition((
        r"control_model\.", r".*input_hint_block\.", r".*controlnet_(?:cond_embedding|down_blocks|blocks|mid_block)\b",
        r"adapter\.(?:body|conv_in)\.", r"lora_controlnet$",
    ))),
    ("an IP-Adapter", "models/ControlNet", KeyCondition((r"image_proj\.", r"ip_adapter\.", r".*to_k_ip\."))),
    ("a checkpoint without VAE weights", "models/Stable-diffusion", KeyCondition((
        r"model\.diffusion_model\.", r"diffusion_model\.", r"input_blocks\.0\.0\.weight", r"joint_blocks\.\d",
        r"double_blocks\.\d", r"(?:unet\.)?(?:down_blocks\.\d.*transformer_blocks|time_embedding\.linear_1)",
        r"transformer_blocks\.\d", r"single_transformer_blocks\.\d", r"cond_stage_model\.", r"conditioner\.embedders\.",
    ))),
    ("a text encoder", "models/text_encoder", KeyCondition((
        r".*text_model\.(?:encoder|embeddings)\.", r".*transformer\.resblocks\.", r".*encoder\.block\.\d+\.layer\.\d",
        r".*token_embedding\.weight", r".*model\.layers\.\d+\.self_attn", r"layers\.\d+\.self_attn", r"shared\.weight",
    ))),
    ("an image encoder", "models/clip_vision", KeyCondition((r".*vision_model\.", r"visual\."))),
    ("an embedding (textual inversion)", "embeddings", KeyCondition((
        r"emb_params$", r"string_to_param", r"clip_[lg]$", r"<.*>$", r"t5xxl$",
    ))),
    ("an upscaler", "models/ESRGAN", KeyCondition((
        r"(?:params_ema\.|params\.)?conv_first\.", r"(?:params_ema\.)?layers\.\d+\.residual_group\.",
        r".*\.(?:RDB|rdb)\d\.", r"model\.1\.sub\.", r"body\.\d+\.(?:weight|rdb)", r"1\.sub\.",
    ))),
    ("a hypernetwork", "models/hypernetworks", KeyCondition((r"(?:320|640|768|1280)\.",))),
)  # fmt: skip

# A checkpoint's own keys tell the family of the VAE baked into it; the first sign found decides.
FAMILY_SIGNS = (
    ("sdxl", r"conditioner\.embedders\."),
    ("sd1", r"cond_stage_model\."),
    ("sd3", r"(?:model\.diffusion_model\.)?joint_blocks\."),
    ("flux", r"(?:model\.diffusion_model\.)?double_blocks\."),
    ("sdxl", r"model\.diffusion_model\.label_emb\."),
    ("sd1", r"model\.diffusion_model\.input_blocks\."),
)


def detect(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None, *, label: str = "the file"
) -> Detection:
    """Say what a file is.

    Args:
        tensors: Names and shapes, as `read_header` gives them.
        metadata: The file's own; `family`, which this program writes, decides between families of equal shape.
        label: What messages call the file.

    Raises:
        UnsupportedVaeError: It is something else; the message says what it looks like, or what is nearest.
        BrokenVaeError: It is a VAE, and incomplete or of contradictory shapes; the message lists names.
    """
    groups = {
        prefix: {rest: tensors[name] for rest, name in names.items()}
        for prefix, names in layouts.group_by_prefix(tensors).items()
    }
    found = [(layout, prefix) for layout in LAYOUTS for prefix, group in groups.items() if layout.signs.match(group)]
    candidates = [(layout, prefix, _translated(layout, groups[prefix])) for layout, prefix in found]
    if not candidates:
        raise UnsupportedVaeError(_what_it_is(label, tensors, groups))
    layout, prefix, names = max(candidates, key=lambda c: len(c[2]))
    group = groups[prefix]
    _refuse_relatives(label, layout, group, names)
    shapes = {canonical: _canonical_shape(canonical, group[rest]) for canonical, rest in names.items()}
    _refuse_quantised(label, {canonical: group[rest] for canonical, rest in names.items()})
    config = _kl_config(label, shapes) if layout.kind == "kl" else _tiny_config(label, shapes)
    kept = _check_complete(label, layout, shapes, config)
    families, warnings = _families(config, shapes, tensors, metadata or {})
    return Detection(
        kind=layout.kind,
        part=_part(shapes),
        layout=layout.name,
        config=config,
        names={canonical: prefix + names[canonical] for canonical in kept},
        families=families,
        warnings=warnings,
    )


def _translated(layout: Layout, group: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Canonical name -> name behind the prefix."""
    return {canonical: rest for rest, canonical in layout.translate(group).items() if canonical is not None}


def _canonical_shape(canonical: str, info: TensorInfo) -> Shape:
    if layouts.is_attention_matrix(canonical) and 2 <= len(info.shape) < 4:
        return (*info.shape[:2], 1, 1)
    return info.shape


def _part(shapes: Iterable[str]) -> Part:
    halves = {name.split(".")[0] for name in shapes} & {"encoder", "decoder"}
    if len(halves) == 2:
        return "both"
    return "encoder" if "encoder" in halves else "decoder"


def _listed(names: Collection[str], limit: int = 4) -> str:
    shown = ", ".join(list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


# --- what it is not --------------------------------------------------------------------------------------------------


def _what_it_is(label: str, tensors: Mapping[str, TensorInfo], groups: Mapping[str, Mapping[str, TensorInfo]]) -> str:
    """The sentence for a file without a usable VAE."""
    if not tensors:
        return f"{label} holds no weights at all; choose a VAE file"
    for name, signs in RELATIVES:
        if any(signs.match(group) for group in groups.values()):
            return f"{label} is {name}, which this program does not run; choose a VAE of SD, SDXL, SD 3 or FLUX"
    for name, folder, signs in OTHER_MODELS:
        if signs.match(tensors):
            return f"{label} is {name}, not a VAE; it belongs into {folder}"
    nearest = max(LAYOUTS, key=lambda layout: _landmarks(layout, groups)[0])
    score, missing = _landmarks(nearest, groups)
    if score == 0:
        return (
            f"{label} is no VAE this program knows; its {len(tensors)} tensors are called {_listed(sorted(tensors), 3)}"
        )
    near = f"nearest is {nearest.label} ({score} of {len(nearest.landmarks)} landmarks)"
    return f"{label} is no VAE this program knows; {near}, but {_listed(missing)} are missing"


def _landmarks(layout: Layout, groups: Mapping[str, Mapping[str, TensorInfo]]) -> tuple[int, list[str]]:
    """How many landmarks of a layout the best group has, and which it lacks."""
    results = [[n for n in layout.landmarks if n not in group] for group in groups.values()]
    missing = min(results, key=len, default=list(layout.landmarks))
    return len(layout.landmarks) - len(missing), missing


def _refuse_relatives(label: str, layout: Layout, group: Mapping[str, TensorInfo], names: Mapping[str, str]) -> None:
    """A layer that no table translates would be left out silently, and the pictures would be wrong."""
    for name, signs in RELATIVES:
        if signs.match(group):
            raise UnsupportedVaeError(
                f"{label} is {name}, which this program does not run; choose a VAE of SD, SDXL, SD 3 or FLUX"
            )
    known = set(names.values())
    foreign = [n for n in group if n not in known and re.match(r"(?:encoder|decoder|quant_conv|post_quant_conv)\.", n)]
    if foreign:
        raise UnsupportedVaeError(
            f"{label} resembles {layout.label} but has layers this program does not know: {_listed(foreign)}"
        )


def _refuse_quantised(label: str, tensors: Mapping[str, TensorInfo]) -> None:
    odd = [name for name, info in tensors.items() if info.dtype is None or not info.dtype.is_floating_point]
    if odd:
        raise UnsupportedVaeError(
            f"{label} is quantised ({_listed(odd, 2)} hold integers); choose a copy in fp16, bf16 or fp32"
        )


# --- hyper-parameters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shapes:
    """Shapes by canonical name, with an error for what is not there."""

    label: str
    shapes: Mapping[str, Shape]

    def size(self, name: str, axis: int) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            raise BrokenVaeError(f"{self.label} is incomplete: {name} is missing; copy or download it again")
        if len(shape) != 4 or not 1 <= shape[axis] <= CHANNEL_LIMIT:
            raise BrokenVaeError(f"{self.label} is damaged: {name} has the shape {shape}; copy or download it again")
        return shape[axis]

    def count(self, pattern: str, limit: int) -> int:
        """One more than the highest number in the names that match."""
        numbers = [int(m[1]) for name in self.shapes if (m := re.match(pattern, name))]
        count = max(numbers, default=-1) + 1
        if count > limit:
            raise UnsupportedVaeError(
                f"{self.label} has {count} levels or blocks where known VAEs have at most {limit}"
            )
        return count


def _net_config(shapes: _Shapes, half: Half) -> NetConfig:
    side = {"encoder": "down", "decoder": "up"}[half]
    levels = shapes.count(rf"{half}\.{side}\.(\d+)\.", LEVEL_LIMIT)
    blocks = shapes.count(rf"{half}\.{side}\.\d+\.block\.(\d+)\.", BLOCK_LIMIT)
    widths = [shapes.size(f"{half}.{side}.{i}.block.0.conv1.weight", 0) for i in range(levels)]
    if odd := [w for w in widths if w % NORM_GROUPS]:
        raise UnsupportedVaeError(
            f"{shapes.label} has layers of {odd[0]} channels; a KL VAE's are multiples of {NORM_GROUPS} (GroupNorm)"
        )
    attention = any(name.startswith(f"{half}.mid.attn_1.") for name in shapes.shapes)
    if half == "encoder":
        ch, z_channels = shapes.size("encoder.conv_in.weight", 0), shapes.size("encoder.conv_out.weight", 0) // 2
        image_channels = shapes.size("encoder.conv_in.weight", 1)
    else:
        ch, z_channels = gcd(*widths), shapes.size("decoder.conv_in.weight", 1)
        image_channels = shapes.size("decoder.conv_out.weight", 0)
    if z_channels < 1 or any(w % ch for w in widths):
        raise UnsupportedVaeError(f"{shapes.label} has {ch}, {widths} and {z_channels} channels; no known VAE has")
    count = blocks if half == "encoder" else blocks - 1
    return NetConfig(ch, tuple(w // ch for w in widths), max(count, 1), image_channels, z_channels, attention)


def _kl_config(label: str, known: Mapping[str, Shape]) -> KlConfig:
    shapes = _Shapes(label, known)
    part = _part(known)
    encoder = _net_config(shapes, "encoder") if part != "decoder" else None
    decoder = _net_config(shapes, "decoder") if part != "encoder" else None
    if encoder and decoder and encoder.z_channels != decoder.z_channels:
        both = f"its encoder has {encoder.z_channels} latent channels, its decoder {decoder.z_channels}"
        raise BrokenVaeError(f"{label} is damaged: {both}; copy or download it again")
    quant, post = ("quant_conv.weight" in known and encoder is not None), "post_quant_conv.weight" in known
    embed_dim = encoder.z_channels if encoder else decoder.z_channels if decoder else 0
    if quant:
        embed_dim = max(shapes.size("quant_conv.weight", 0) // 2, 1)
    elif post:
        embed_dim = shapes.size("post_quant_conv.weight", 1)
    return KlConfig(encoder, decoder, quant, post and decoder is not None, embed_dim)


def _tiny_config(label: str, known: Mapping[str, Shape]) -> TinyConfig:
    shapes = _Shapes(label, known)
    part = _part(known)
    half: Half = "decoder" if part == "decoder" else "encoder"
    numbers = {int(m[1]) for name in known if (m := re.match(rf"{half}\.(\d+)\.weight$", name))}
    variant = _nearest_tiny(numbers, [half])[1]
    if any(".pool." in name for name in known):
        variant = "pooled"
    first, last = (f"{half}.{edge(_tiny_convs(half, variant))}.weight" for edge in (min, max))
    if half == "encoder":
        z_channels, width = shapes.size(last, 0), shapes.size(last, 1)
    else:
        z_channels, width = shapes.size(first, 1), shapes.size(last, 1)
    return TinyConfig(z_channels, width, part != "decoder", part != "encoder", variant)


@lru_cache(maxsize=64)
def expected_shapes(config: KlConfig | TinyConfig) -> Mapping[str, Shape]:
    """Every weight of the module that `config` describes; built on the meta device, which allocates nothing."""
    with torch.device("meta"):
        module = AutoencoderKL(config) if isinstance(config, KlConfig) else TinyAutoencoder(config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def parameter_counts(detection: Detection) -> dict[str, int]:
    """Weights of the file by "encoder" and "decoder", quant_conv and post_quant_conv in the "total" only."""
    counts = {"encoder": 0, "decoder": 0, "total": 0}
    for name, shape in expected_shapes(detection.config).items():
        counts["total"] += prod(shape)
        half = name.split(".")[0]
        if half in counts:
            counts[half] += prod(shape)
    return counts


def _check_complete(
    label: str, layout: Layout, shapes: Mapping[str, Shape], config: KlConfig | TinyConfig
) -> list[str]:
    """The canonical names to keep, in the module's order, then FLUX.2's statistics.

    Raises:
        BrokenVaeError: Names are missing or shapes wrong.
        UnsupportedVaeError: A TAESD has more than its layers; without them it would give another picture.
    """
    expected = expected_shapes(config)
    problems = []
    if missing := [n for n in expected if n not in shapes]:
        problems.append(f"{len(missing)} of {len(expected)} weights are missing ({_listed(missing)})")
    if wrong := [n for n in expected if n in shapes and shapes[n] != expected[n]]:
        described = [f"{n} is {shapes[n]} instead of {expected[n]}" for n in wrong]
        problems.append(f"{len(wrong)} have wrong shapes ({_listed(described, 2)})")
    if isinstance(config, TinyConfig) and (more := [n for n in shapes if n not in expected]):
        raise UnsupportedVaeError(
            f"{label} resembles {layout.label} but has layers this program does not know: {_listed(more)}"
        )
    if problems:
        raise BrokenVaeError(f"{label} is {layout.label}, but {' and '.join(problems)}; copy or download it again")
    return [*expected, *(n for n in shapes if n.startswith("bn."))]


# --- family ----------------------------------------------------------------------------------------------------------


def fitting_families(z_channels: int, downscale: int = 8) -> tuple[str, ...]:
    """Families whose latents have that many channels and cells of that many pixels.

    Any number but 32 is taken as 8: every family with smaller cells has those, and a VAE with fewer levels can be tried
    on their latents.
    """
    cell = 32 if downscale == 32 else 8
    return tuple(f.name for f in FORMATS.values() if f.z_channels == z_channels and f.downscale == cell)


def _families(
    config: KlConfig | TinyConfig,
    shapes: Mapping[str, Shape],
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Latent spaces that fit, and what is unusual."""
    net = _net(config)
    fitting = fitting_families(net.z_channels, net.downscale)
    warnings = list(_oddities(config, shapes, fitting))
    stated = split_family(metadata.get("family", ""))
    if stated and set(stated) <= set(fitting):
        return stated, tuple(warnings)
    if stated:
        warnings.append(f"its metadata say family {metadata['family']!r}, which does not fit; ignored")
    baked = next((f for f, sign in FAMILY_SIGNS if f in fitting and KeyCondition((sign,)).match(tensors)), None)
    return ((baked,) if baked else fitting), tuple(warnings)


def _oddities(config: KlConfig | TinyConfig, shapes: Mapping[str, Shape], fitting: tuple[str, ...]) -> Iterable[str]:
    net = _net(config)
    if not fitting:
        yield f"no known model family has {net.z_channels} latent channels; latents are left unscaled"
    if net.downscale not in {8, *(FORMATS[name].downscale for name in fitting)}:
        yield f"a latent cell covers {net.downscale} x {net.downscale} pixels; Stable Diffusion's cover 8 x 8"
    if isinstance(config, TinyConfig):
        return
    if "sd3" in fitting and (config.quant_conv or config.post_quant_conv):
        yield "SD 3's and FLUX.1's VAEs have no quant_conv, this one has; its family is a guess"
    if "sd1" in fitting and (
        (config.encoder and not config.quant_conv) or (config.decoder and not config.post_quant_conv)
    ):
        yield "quant_conv or post_quant_conv of SD's and SDXL's VAEs is missing; its family is a guess"
    if "flux2" in fitting and not any(name.startswith("bn.") for name in shapes):
        yield "FLUX.2's latent statistics (bn) are missing; its family is a guess"
