"""GroupNorm over a picture that is seen in bands: moments per band, merged exactly, applied as scale and shift.

Each band gives every channel's mean and centred second moment in fp32; they are merged in float64 on the CPU with the
formula of Chan, Golub and LeVeque (1979).  Sums of squares in fp32 would not do: at mean/std = 100 over 4 million
values the variance is off by 3e-4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.engine.device_tensors import dense
from sd_vae_kit.core.engine.layer_call import call_module
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.errors import UnsupportedVaeError

NO_EPSILON = 1e-30  # torch 2.10 refuses 0; 1 + 1e-30 is 1 in every type, so nothing is added
OFFSET_LIMIT = 8.0  # mean/std from which fp32 sums of one band are taken again about their mean


@dataclass(frozen=True)
class BandMoments:
    """Statistics of one band of one sample.

    Attributes:
        count: Values per channel.
        mean, variance: (C,) fp32 (fp64 for an fp64 stream), on the band's device; biased variance.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @cached_property
    def host(self) -> Tensor:
        """(2, C): means and variances, float64 on the CPU; the first access waits for the device."""
        return torch.stack([self.mean, self.variance]).cpu().double()

    def divided(self, exponent: int) -> BandMoments:
        """The moments of the same band divided by 2**exponent."""
        return BandMoments(self.count, self.mean * 0.5**exponent, self.variance * 0.25**exponent)


def band_moments(x: Tensor) -> BandMoments:
    """Moments per channel of x (1, C, h, W), which is not changed."""
    count = x.shape[2] * x.shape[3]
    mean, variance = _mean_and_variance(x)
    if x.device.type == "cpu" and bool((mean.square() > OFFSET_LIMIT**2 * variance).any()):
        # one pass of fp32 sums leaves mean/std * 1e-6 of error in the mean; the second pass starts from values near 0
        # (torch's CUDA kernel is Welford's and needs no second pass)
        rest, variance = _mean_and_variance(x.to(mean.dtype) - mean[:, None, None])
        mean = mean + rest
    return BandMoments(count, mean, variance)


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Biased, in one sweep where torch has a kernel for it."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.device.type == "cpu" and x.dtype == torch.float16:
        x = x.float()  # torch before 2.3 has no half-precision batch statistics on the CPU
    if traits(x.device).has_moments_kernel:
        scratch = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        mean, variance = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
        return mean.to(dtype), variance.to(dtype)
    mean = x.mean((0, 2, 3), dtype=dtype)
    return mean, (x.to(dtype) - mean[:, None, None]).square_().mean((0, 2, 3))


@dataclass
class Moments:
    """Statistics of a whole activation, gathered band by band; bands may come in any order, each row once."""

    parts: list[BandMoments] = field(default_factory=list)

    def add(self, part: BandMoments) -> None:
        self.parts.append(part)

    def divide(self, exponent: int) -> None:
        """What was seen so far is now stored divided by 2**exponent."""
        self.parts = [part.divided(exponent) for part in self.parts]

    def per_channel(self) -> tuple[int, Tensor, Tensor]:
        """(count, mean (C,), sum of squared deviations (C,)), float64 on the CPU."""
        counts = torch.tensor([part.count for part in self.parts], dtype=torch.float64)[:, None]
        means, variances = torch.stack([part.host for part in self.parts]).unbind(1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # Chan: within the bands, plus between them
        deviations = (counts * variances).sum(0) + (counts * (means - mean).square()).sum(0)
        return int(total), mean, deviations

    def per_group(self, groups: int) -> tuple[Tensor, Tensor]:
        """(mean, biased variance) of every group, (groups,) float64 on the CPU."""
        count, mean, deviations = self.per_channel()
        means = mean.reshape(groups, -1)
        group_mean = means.mean(1)
        between = count * (means - group_mean[:, None]).square().sum(1)
        variance = (deviations.reshape(groups, -1).sum(1) + between) / (count * means.shape[1])
        return group_mean, variance


@dataclass(frozen=True)
class ScaleShift:
    """What a GroupNorm does once its statistics are known: x * scale + shift per channel.

    Attributes:
        scale, shift: (C,) fp32 (fp64 for an fp64 stream) on the stream's device.
    """

    scale: Tensor
    shift: Tensor
    zeros: Tensor
    ones: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x (1, C, h, W): a new tensor of the same shape, dtype and layout; computed in fp32."""
        if traits(x.device).has_affine_kernel and not (x.device.type == "cpu" and x.dtype == torch.float16):
            # inference batch norm is torch's one-pass kernel for this, with fp32 parameters on bf16 data
            return F.batch_norm(x, self.zeros, self.ones, self.scale, self.shift, False, 0.0, NO_EPSILON)
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
        return dense(torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype))


def scale_and_shift(
    norm: nn.Module, moments: Moments, device: torch.device, dtype: torch.dtype, exponent: int = 0
) -> ScaleShift:
    """The module's normalisation for an activation with these moments.

    Args:
        norm: nn.GroupNorm or a subclass of it; its affine parameters may be absent or cast when it is called.
        moments: Of the whole activation, as it is stored.
        device, dtype: Of the stream.
        exponent: The stream is stored divided by 2**exponent: epsilon shrinks by its square, and the result is the
            same as that of the full-size stream.
    """
    facts: Any = norm
    groups, eps = int(facts.num_groups), float(facts.eps) * 0.25**exponent
    mean, variance = moments.per_group(groups)
    weight, bias = affine(norm, device, dtype)
    repeat = weight.numel() // groups
    scale = weight * (variance + eps).rsqrt().repeat_interleave(repeat)
    shift = bias - mean.repeat_interleave(repeat) * scale
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    packed = torch.stack([scale, shift, torch.zeros_like(scale), torch.ones_like(scale)]).to(wide).to(device)
    return ScaleShift(packed[0], packed[1], packed[2], packed[3])


def affine(norm: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(weight, bias) that the module really applies, (C,) float64 on the CPU.

    A module with the stock forward is read.  Any other (casting, offloading, patched) is called on a probe whose
    normalised values are known, and the attributes are used only if the call agrees with them: they are more exact.
    """
    facts: Any = norm
    channels = int(facts.num_channels)
    weight, bias = _parameter(facts.weight, channels, 1.0), _parameter(facts.bias, channels, 0.0)
    if _has_stock_forward(norm) and weight is not None and bias is not None:
        return weight, bias
    seen_weight, seen_bias = _probe(norm, channels, float(facts.eps), device, dtype)
    if weight is not None and bias is not None:
        tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
        size = weight.abs() + bias.abs() + 1e-3
        if bool(((seen_weight - weight).abs() + (seen_bias - bias).abs() <= tolerance * size).all()):
            return weight, bias
    return seen_weight, seen_bias


def _parameter(value: object, channels: int, default: float) -> Tensor | None:
    if value is None:
        return torch.full((channels,), default, dtype=torch.float64)
    if isinstance(value, Tensor) and value.shape == (channels,) and value.is_floating_point() and not value.is_meta:
        return value.detach().to("cpu").double()
    return None


def _has_stock_forward(norm: nn.Module) -> bool:
    forward = getattr(type(norm), "forward", None)
    hooked = norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm)
    return getattr(forward, "__module__", "") == "torch.nn.modules.normalization" and not hooked


def _probe(
    norm: nn.Module, channels: int, eps: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight and bias from the module's answer to a row of +1 and -1: mean 0, variance 1 in every group."""
    signs = torch.tensor([1.0, -1.0], device=device, dtype=dtype).expand(1, channels, 1, 2).contiguous()
    answer = call_module(norm, signs)
    if not isinstance(answer, Tensor) or answer.shape != signs.shape:
        raise UnsupportedVaeError(f"A {type(norm).__name__} does not behave like a GroupNorm.")
    plus, minus = answer.detach().to("cpu").double()[0, :, 0].unbind(1)
    return (plus - minus) / 2 * (1.0 + eps) ** 0.5, (plus + minus) / 2
