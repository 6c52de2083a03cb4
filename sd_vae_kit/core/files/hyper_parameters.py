"""Hyper-parameters of an autoencoder, read from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd

from sd_vae_kit.core.files.detection import Shape
from sd_vae_kit.core.files.layouts import nearest_tiny, tiny_convs
from sd_vae_kit.core.halves import Half, Part
from sd_vae_kit.core.networks.autoencoder import NORM_GROUPS, KlConfig, NetConfig
from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError

# Far above any published VAE; beyond them a file is nonsense, and building what it describes would take for ever.
LEVEL_LIMIT = 8
BLOCK_LIMIT = 16
CHANNEL_LIMIT = 16384


def part_of(shapes: Iterable[str]) -> Part:
    """Which halves these canonical names belong to."""
    halves = {name.split(".")[0] for name in shapes} & {"encoder", "decoder"}
    if len(halves) == 2:
        return "both"
    return "encoder" if "encoder" in halves else "decoder"


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


def kl_config(label: str, known: Mapping[str, Shape]) -> KlConfig:
    shapes = _Shapes(label, known)
    part = part_of(known)
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


def tiny_config(label: str, known: Mapping[str, Shape]) -> TinyConfig:
    shapes = _Shapes(label, known)
    part = part_of(known)
    half: Half = "decoder" if part == "decoder" else "encoder"
    numbers = {int(m[1]) for name in known if (m := re.match(rf"{half}\.(\d+)\.weight$", name))}
    variant = nearest_tiny(numbers, [half])[1]
    if any(".pool." in name for name in known):
        variant = "pooled"
    first, last = (f"{half}.{edge(tiny_convs(half, variant))}.weight" for edge in (min, max))
    if half == "encoder":
        z_channels, width = shapes.size(last, 0), shapes.size(last, 1)
    else:
        z_channels, width = shapes.size(first, 1), shapes.size(last, 1)
    return TinyConfig(z_channels, width, part != "decoder", part != "encoder", variant)
