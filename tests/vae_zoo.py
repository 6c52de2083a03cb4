"""Small VAEs in the layouts of the hosts, written from their structure, and the ways hosts change them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig

SMALL = NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)


def small_vae(config: NetConfig = SMALL, seed: int = 0, quant: bool = True) -> AutoencoderKL:
    """A random VAE in this package's layout, with norms that scale and shift."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(KlConfig(encoder=config, decoder=config, quant_conv=quant, post_quant_conv=quant))
    return liven(vae)


def liven(vae: nn.Module) -> nn.Module:
    """Norms that are not the identity, everything in eval mode."""
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return vae.eval()


def picture(channels: int, height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


class LdmResnet(nn.Module):
    """ldm's block: called with a time embedding that is None, activation in a function, dropout, `nin_shortcut`."""

    def __init__(self, channels_in: int, channels: int, wide_shortcut: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, channels_in, eps=1e-6), nn.Conv2d(channels_in, channels, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(32, channels, eps=1e-6), nn.Conv2d(channels, channels, 3, 1, 1)
        self.dropout = nn.Dropout(0.1)
        if wide_shortcut:
            self.conv_shortcut = nn.Conv2d(channels_in, channels, 3, 1, 1)
        elif channels_in != channels:
            self.nin_shortcut = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        for name in ("nin_shortcut", "conv_shortcut"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x + h


class LdmAttention(nn.Module):
    """ldm's block with the attention written out, as hosts without a fast kernel run it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, 2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class LdmUpsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class LdmDecoder(nn.Module):
    """ldm's decoder: levels without forward, an `attn` list per level (here with one attention), `tanh_out`."""

    def __init__(self, ch: int = 32, tanh_out: bool = False, wide_shortcut: bool = False) -> None:
        super().__init__()
        self.tanh_out, self.give_pre_end = tanh_out, False
        self.conv_in = nn.Conv2d(4, 2 * ch, 3, 1, 1)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = LdmResnet(2 * ch, 2 * ch), LdmAttention(2 * ch)
        self.mid.block_2 = LdmResnet(2 * ch, 2 * ch)
        self.up = nn.ModuleList([nn.Module(), nn.Module()])
        self.up[1].block, self.up[1].attn = nn.ModuleList([LdmResnet(2 * ch, 2 * ch)]), nn.ModuleList()
        self.up[1].attn.append(LdmAttention(2 * ch))
        self.up[1].upsample = LdmUpsample(2 * ch)
        self.up[0].block, self.up[0].attn = nn.ModuleList([LdmResnet(2 * ch, ch, wide_shortcut)]), nn.ModuleList()
        self.norm_out, self.conv_out = nn.GroupNorm(32, ch, eps=1e-6), nn.Conv2d(ch, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z), None)), None)
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(h, None)
                if len(level.attn):
                    h = level.attn[i](h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h


class LdmVae(nn.Module):
    """A decoder with `post_quant_conv`; None stands for SD3's, which has none."""

    def __init__(self, decoder: nn.Module, post_quant: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.post_quant_conv = nn.Conv2d(4, 4, 1) if post_quant else None

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class CastingConv(nn.Conv2d):
    """Keeps its weights in fp16 and casts them when called, as Forge's and Neo's layers do; counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class SeamlessXConv(nn.Conv2d):
    """Circular sideways, zeros above and below, as the asymmetric tiling extensions patch it."""

    def forward(self, x: Tensor) -> Tensor:
        across, down = self.padding[1], self.padding[0]
        x = F.pad(F.pad(x, (across, across, 0, 0), mode="circular"), (0, 0, down, down))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation)


class GlobalConv(nn.Conv2d):
    """Not local: every value depends on the whole picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean()


def recast(vae: nn.Module, kind: type[nn.Conv2d], *, only: int = 0) -> nn.Module:
    """Turn the VAE's convolutions with a kernel of at least `only` into another class, in place."""
    for module in vae.modules():
        if type(module) is nn.Conv2d and module.kernel_size[0] >= only:
            module.__class__ = kind
            if kind is CastingConv:
                module.to(torch.float16)
    return vae


def set_padding_mode(vae: nn.Module, mode: str) -> nn.Module:
    """What A1111's "Tiling" does: only the attribute changes."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = mode
    return vae
