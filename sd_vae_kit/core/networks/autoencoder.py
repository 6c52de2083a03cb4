"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), in the key names of its checkpoints.

Checked against diffusers' AutoencoderKL on the same weights.  Encoder and decoder carry their own hyper-parameters,
because files exist with only one of them, and with a decoder smaller than its encoder (FLUX.2's small decoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32  # files do not record it; every published KL VAE uses 32
NORM_EPS = 1e-6


@dataclass(frozen=True)
class NetConfig:
    """Hyper-parameters of one encoder or decoder; all of them can be read from the weights' shapes.

    Attributes:
        ch: Channels of the widest-resolution level before its multiplier.
        ch_mult: Multiplier per level, from full resolution down; `len(ch_mult) - 1` halvings.
        num_res_blocks: Residual blocks per encoder level; the decoder has one more.
        image_channels: 3 for RGB.
        z_channels: Latent channels at the bottom; an encoder ends in twice as many (mean and log-variance).
        mid_attention: Whether the middle has its attention block.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    image_channels: int = 3
    z_channels: int = 4
    mid_attention: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, from full resolution down."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True)
class KlConfig:
    """A whole file: `None` where it has no such part.

    Attributes:
        encoder, decoder: Their hyper-parameters.
        quant_conv: Whether a 1x1 convolution follows the encoder (SD 1/2, SDXL; not SD3, FLUX.1).
        post_quant_conv: Whether one precedes the decoder.
        embed_dim: Channels between `quant_conv` and `post_quant_conv`, z_channels in every known file.
    """

    encoder: NetConfig | None = NetConfig()
    decoder: NetConfig | None = NetConfig()
    quant_conv: bool = True
    post_quant_conv: bool = True
    embed_dim: int = 4


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


def conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


def conv1(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=1)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input; a 1x1 convolution where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = conv3(channels_in, channels_out)
        self.norm2 = group_norm(channels_out)
        self.conv2 = conv3(channels_out, channels_out)
        if channels_in != channels_out:
            self.nin_shortcut = conv1(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the picture, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = conv1(channels, channels)
        self.k = conv1(channels, channels)
        self.v = conv1(channels, channels)
        self.proj_out = conv1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1, H*W, C): SDPA's memory-saving kernels want four dimensions
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj_out(h.squeeze(1).transpose(1, 2).reshape(B, C, H, W))
        return x + y


class Downsample(nn.Module):
    """Halve both sides; the padding is one row below and one column to the right, as in ldm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Double both sides by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """The residual blocks of one resolution and, except at the end, the step to the next."""

    block: nn.ModuleList
    downsample: Downsample
    upsample: Upsample

    def __init__(self, blocks: list[ResnetBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    """Two residual blocks around the attention, at latent resolution."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        if attention:
            self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        y: Tensor = self.block_2(x)
        return y


class Encoder(nn.Module):
    """(B, 3, H, W) image in [-1, 1] -> (B, 2 * z_channels, H / downscale, W / downscale)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = conv3(config.image_channels, config.ch)
        self.down = nn.ModuleList()
        for i, (channels_in, channels) in enumerate(pairwise((config.ch, *widths))):
            blocks = [ResnetBlock(channels_in if j == 0 else channels, channels) for j in range(config.num_res_blocks)]
            level = Level(blocks)
            if i < len(widths) - 1:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.mid_attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], 2 * config.z_channels)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        y: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return y


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, 3, h * downscale, w * downscale) image in about [-1, 1]."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], config.mid_attention)
        # up[0] is full resolution, as in the checkpoints; the network runs through the list from its end
        self.up = nn.ModuleList()
        for i, channels in enumerate(widths):
            channels_in = widths[min(i + 1, len(widths) - 1)]
            count = config.num_res_blocks + 1
            level = Level([ResnetBlock(channels_in if j == 0 else channels, channels) for j in range(count)])
            if i > 0:
                level.upsample = Upsample(channels)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], config.image_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        y: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return y


class AutoencoderKL(nn.Module):
    """Encoder, decoder and the 1x1 convolutions between; parts a file does not have are absent."""

    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder is not None:
            self.encoder = Encoder(config.encoder)
            if config.quant_conv:
                self.quant_conv = conv1(2 * config.encoder.z_channels, 2 * config.embed_dim)
        if config.decoder is not None:
            self.decoder = Decoder(config.decoder)
            if config.post_quant_conv:
                self.post_quant_conv = conv1(config.embed_dim, config.decoder.z_channels)

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of the downscale -> moments (B, 2 * z_channels, h, w)."""
        h: Tensor = self.encoder(image)
        return self.quant_conv(h) if hasattr(self, "quant_conv") else h

    def decode(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> image (B, 3, H, W) in about [-1, 1], not clamped."""
        image: Tensor = self.decoder(self.post_quant_conv(z) if hasattr(self, "post_quant_conv") else z)
        return image


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Moments (B, 2 * z_channels, h, w) -> mean and standard deviation, (B, z_channels, h, w) each.

    The log-variance is clamped to [-30, 20] as ldm's DiagonalGaussianDistribution does.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
