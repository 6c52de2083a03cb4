"""TAESD, the tiny autoencoder (madebyollin/taesd, MIT): no normalisation, no attention.

Its latents are those the sampler sees, its pictures are in [0, 1].  Module indices are the key names of the published
files: an encoder or decoder file holds `N.weight`, `N.conv.M.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LATENT_LIMIT = 3.0  # the decoder squashes its input smoothly into (-3, 3)


@dataclass(frozen=True)
class TinyConfig:
    """Hyper-parameters, read from the weights' shapes.

    Attributes:
        z_channels: Latent channels: 4 (SD, SDXL) or 16 (SD3, FLUX.1).
        width: Channels of every hidden layer, 64 in the published files.
        encoder, decoder: Which parts the file has.
    """

    z_channels: int = 4
    width: int = 64
    encoder: bool = True
    decoder: bool = True

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return 8


class Clamp(nn.Module):
    """Smooth limit of the latent, so that outliers do not upset the first convolution."""

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(latent / LATENT_LIMIT) * LATENT_LIMIT


class Block(nn.Module):
    """Three convolutions with ReLU between them, plus the input, then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def _conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, stride=stride, bias=bias)


def tiny_encoder(z_channels: int, width: int) -> nn.Sequential:
    """RGB (B, 3, H, W) in [0, 1] -> latent (B, z_channels, H/8, W/8)."""
    layers: list[nn.Module] = [_conv(3, width), Block(width)]
    for _ in range(3):
        layers += [_conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, z_channels))


def tiny_decoder(z_channels: int, width: int) -> nn.Sequential:
    """Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w) in about [0, 1], not clamped."""
    layers: list[nn.Module] = [Clamp(), _conv(z_channels, width), nn.ReLU()]
    for _ in range(3):
        layers += [Block(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width), _conv(width, 3))


class TinyAutoencoder(nn.Module):
    """Both halves; a half the file does not have is absent."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder:
            self.encoder = tiny_encoder(config.z_channels, config.width)
        if config.decoder:
            self.decoder = tiny_decoder(config.z_channels, config.width)

    def encode(self, rgb: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1], sides multiples of 8 -> latent (B, z_channels, H/8, W/8)."""
        latent: Tensor = self.encoder(rgb)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w) in about [0, 1], not clamped."""
        rgb: Tensor = self.decoder(latent)
        return rgb
