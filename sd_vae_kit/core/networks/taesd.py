"""The TAESD family of tiny autoencoders (madebyollin/taesd, MIT): no attention, and in only one variant a norm.

Their latents are those the sampler sees, their pictures are in [0, 1].  Module indices are the key names of the
published files: an encoder or decoder file holds `N.weight`, `N.conv.M.weight`, TAEF2's also `N.pool.M.weight`.

    variant   files                           cells      what differs
    plain     taesd, taesdxl, taesd3, taef1   8 x 8
    pooled    taef2                           8 x 8      a normalised branch in the blocks of the latent's size
    f32       taesana                         32 x 32    two more halvings; the decoder begins with 256 channels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.halves import Half

LATENT_LIMIT = 3.0  # the decoder squashes its input smoothly into (-3, 3)
POOL_GROUPS = 4  # of the GroupNorm in TAEF2's blocks, over four times the block's channels

Variant = Literal["plain", "pooled", "f32"]


@dataclass(frozen=True)
class TinyConfig:
    """Hyper-parameters, read from the weights' shapes.

    Attributes:
        z_channels: Latent channels: 4 (SD, SDXL), 16 (SD3, FLUX.1) or 32 (FLUX.2, SANA).
        width: Channels of the hidden layers at the picture's resolution, 64 in the published files.
        encoder, decoder: Which parts the file has.
        variant: Which of the table above.
    """

    z_channels: int = 4
    width: int = 64
    encoder: bool = True
    decoder: bool = True
    variant: Variant = "plain"

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return 32 if self.variant == "f32" else 8


class Clamp(nn.Module):
    """Smooth limit of the latent, so that outliers do not upset the first convolution."""

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(latent / LATENT_LIMIT) * LATENT_LIMIT


class Block(nn.Module):
    """Three convolutions with ReLU between them, plus the input, then ReLU.

    A pooled block adds to its input what a GroupNorm over the whole picture makes of it; only there TAEF2 is not local.
    """

    def __init__(self, width: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )  # fmt: skip
        if pooled:
            wide = POOL_GROUPS * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def _conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, stride=stride, bias=bias)


def _blocks(width: int, *, pooled: bool = False) -> Iterator[nn.Module]:
    return (Block(width, pooled=pooled) for _ in range(3))


def tiny_encoder(z_channels: int, width: int, variant: Variant = "plain") -> nn.Sequential:
    """RGB (B, 3, H, W) in [0, 1] -> latent (B, z_channels, H/8, W/8), for "f32" (B, z_channels, H/32, W/32)."""
    layers: list[nn.Module] = [_conv(3, width)]
    if variant == "f32":
        layers = [_conv(3, width // 2, stride=2), nn.ReLU(), _conv(width // 2, width, stride=2), nn.ReLU()]
    layers.append(Block(width))
    for level in range(3):
        pooled = variant == "pooled" and level == 2
        layers += [_conv(width, width, stride=2, bias=False), *_blocks(width, pooled=pooled)]
    return nn.Sequential(*layers, _conv(width, z_channels))


def tiny_decoder(z_channels: int, width: int, variant: Variant = "plain") -> nn.Sequential:
    """Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w), for "f32" (B, 3, 32h, 32w), in about [0, 1], not clamped."""
    widths = [4 * width, 2 * width, width, width, width, width] if variant == "f32" else [width] * 4
    layers: list[nn.Module] = [Clamp(), _conv(z_channels, widths[0]), nn.ReLU()]
    for level, (above, below) in enumerate(pairwise(widths)):
        pooled = variant == "pooled" and level == 0
        layers += [*_blocks(above, pooled=pooled), nn.Upsample(scale_factor=2), _conv(above, below, bias=False)]
    return nn.Sequential(*layers, Block(width), _conv(width, 3))


def numbered_convs(half: Half, variant: Variant) -> frozenset[int]:
    """Module numbers of the convolutions outside of blocks: how a file tells which half and variant it is."""
    with torch.device("meta"):
        network = tiny_encoder(4, 4, variant) if half == "encoder" else tiny_decoder(4, 4, variant)
    return frozenset(i for i, layer in enumerate(network) if isinstance(layer, nn.Conv2d))


class TinyAutoencoder(nn.Module):
    """Both halves; a half the file does not have is absent."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder:
            self.encoder = tiny_encoder(config.z_channels, config.width, config.variant)
        if config.decoder:
            self.decoder = tiny_decoder(config.z_channels, config.width, config.variant)

    def encode(self, rgb: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1], sides multiples of `downscale` -> latent (B, z_channels, H/8, W/8)."""
        latent: Tensor = self.encoder(rgb)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w) in about [0, 1], not clamped."""
        rgb: Tensor = self.decoder(latent)
        return rgb
