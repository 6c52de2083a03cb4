"""Convolutions of bands of rows: by their weights, packed once per pass, or by calling the module.

A convolution may be asked for its answer times a power of two, with its bias divided by another: that is how a value
is stored with an exponent (see `ranges`).  The module itself is never changed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.engine.device_tensors import dense
from sd_vae_kit.core.engine.edges import SourceRows, call_on_band
from sd_vae_kit.core.engine.layer_call import call_module
from sd_vae_kit.core.engine.padding import zero_padded
from sd_vae_kit.core.engine.subpixel import subpixel_weight, upsampled
from sd_vae_kit.core.graph.nodes import Conv, is_subpixel
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.schedule import Handling, input_range

HALF_MAX = torch.finfo(torch.float16).max
SMALL_WEIGHT = 2.0**-10  # half-precision weights of this size (RMS) lose nothing yet to subnormal numbers


@dataclass(frozen=True)
class Scaling:
    """What is wanted of a convolution with weight W and bias b: (W x) * 2**gain + b * 2**-bias, computed in `dtype`."""

    dtype: torch.dtype
    gain: int = 0
    bias: int = 0


@dataclass(frozen=True)
class _Packed:
    """How a scaling is carried out.

    Attributes:
        weight, bias: For F.conv2d; of a module that is called: None, and what to take from its answer.
        input_gain: What enters has to be multiplied by 2**input_gain; never positive.
        lift: The answer has to be multiplied by 2**lift; never negative.
    """

    weight: Tensor | None
    bias: Tensor | None
    input_gain: int = 0
    lift: int = 0


class Convolver:
    """The convolutions of one run; packed weights live for one pass.

    Args:
        plan: Device and type of the run.
        handling: How each module is run.
    """

    def __init__(self, plan: Plan, handling: dict[nn.Module, Handling]) -> None:
        self.plan, self.handling = plan, handling
        self.packed: dict[tuple[Conv, Scaling], _Packed] = {}

    def forget(self) -> None:
        """Let go of packed weights."""
        self.packed.clear()

    def input_gain(self, conv: Conv, scaling: Scaling) -> int:
        """The power of two by which the rows that `__call__` asks for have to be multiplied already."""
        return self._pack(conv, scaling).input_gain

    def __call__(self, conv: Conv, source: SourceRows, top: int, bottom: int, scaling: Scaling) -> Tensor:
        """Output rows [top, bottom), in `scaling.dtype`.

        Args:
            source: The stored activation, in `scaling.dtype`, times 2**`input_gain`.
        """
        packed = self._pack(conv, scaling)
        if packed.weight is None:
            y = self._called(conv, source, top, bottom).to(
                scaling.dtype, copy=True, memory_format=traits(self.plan.device).memory_format
            )  # hosts may compute in another type; a crop keeps the whole alive, and may belong to the module
            if packed.bias is not None:
                y.sub_(packed.bias[:, None, None])
        elif is_subpixel(conv):
            y = upsampled(packed.weight, packed.bias, source, top, bottom)
        else:
            y = _by_weights(conv, packed.weight, packed.bias, entering_rows(conv, source), top, bottom)
        return y.mul_(2.0**packed.lift) if packed.lift else y

    def _called(self, conv: Conv, source: SourceRows, top: int, bottom: int) -> Tensor:
        return call_on_band(conv, self.handling[conv.module], entering_rows(conv, source), top, bottom)

    def _pack(self, conv: Conv, scaling: Scaling) -> _Packed:
        key = (conv, scaling)
        if key not in self.packed:
            by_weights = self.handling[conv.module] == "plain"
            self.packed[key] = self._weights(conv, scaling) if by_weights else self._correction(conv, scaling)
        return self.packed[key]

    def _weights(self, conv: Conv, scaling: Scaling) -> _Packed:
        """Weight and bias of a stock convolution in the layout of the bands."""
        weight, bias, gain, lift = scaled_weights(conv.module, self.plan.device, scaling)
        if is_subpixel(conv):
            weight, bias = subpixel_weight(weight), None if bias is None else bias.repeat(4)
        weight = dense(weight.to(scaling.dtype))
        return _Packed(weight, None if bias is None else bias.to(scaling.dtype), gain, lift)

    def _correction(self, conv: Conv, scaling: Scaling) -> _Packed:
        """What a called module adds too much: its bias is there in full, however small its input was made."""
        lift, too_much = max(0, scaling.gain), None
        if scaling.bias + lift:
            too_much = seen_bias(conv, self.plan.device, scaling.dtype) * (1.0 - 2.0 ** -(scaling.bias + lift))
        return _Packed(None, too_much, min(0, scaling.gain), lift)


def scaled_weights(module: nn.Module, device: torch.device, scaling: Scaling) -> tuple[Tensor, Tensor | None, int, int]:
    """(weight, bias, input gain, lift) of a stock layer that carry out a scaling; weight and bias still to be cast.

    Weights take as much of the gain as they can without losing digits or overflowing, what enters takes the rest of a
    negative gain, the answer that of a positive one.
    """
    layer: Any = module
    weight: Tensor = layer.weight.detach().to(device)
    bias: Tensor | None = None if layer.bias is None else layer.bias.detach().to(device)
    gain, rest = scaling.gain, 0
    if gain and scaling.dtype == torch.float16:
        low, high = weight_room(weight)
        rest = gain - max(-low, min(gain, high))
    if gain - rest:
        weight = weight.float() * 2.0 ** (gain - rest)
    exponent = scaling.bias + max(0, rest)
    if bias is not None and exponent:
        bias = bias.float() * 2.0**-exponent
    return weight, bias, min(0, rest), max(0, rest)


def weight_room(weight: Tensor) -> tuple[int, int]:
    """By how many powers of two these weights can be made smaller and larger in half precision without harm."""
    weight = weight.float()
    size, largest = float(weight.square().mean().sqrt()), float(weight.abs().max())
    if not 0.0 < size < float("inf"):
        return 0, 0
    # the sum of four taps (see `subpixel`) must stay finite too
    return max(0, floor(log2(size / SMALL_WEIGHT))), max(0, floor(log2(HALF_MAX / 4 / largest)))


def seen_bias(conv: Conv, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(C_out,): what the module answers to zeros, far from its edges, patches and casts included."""
    zeros = torch.zeros(1, conv.channels_in, 2 * conv.reach[0], 2 * conv.reach[1], device=device, dtype=dtype)
    answer = call_module(conv.module, dense(zeros))
    return answer[0, :, answer.shape[2] // 2, answer.shape[3] // 2].detach().to(dtype)


def _by_weights(conv: Conv, weight: Tensor, bias: Tensor | None, entering: SourceRows, top: int, bottom: int) -> Tensor:
    first, last = input_range(conv, top, bottom)
    a, b = max(first, 0), min(last, entering.height)
    x = entering.rows(a, b)
    above, below = a - first, last - b
    if above != below:
        x, above = zero_padded(x, above=above, below=below), 0
    return F.conv2d(dense(x), weight, bias, conv.stride, (above, conv.padding[1]), conv.dilation, conv.groups)


def entering_rows(conv: Conv, source: SourceRows) -> SourceRows:
    """The module's input, made from the stored activation."""

    def rows(top: int, bottom: int) -> Tensor:
        if conv.resize == "up":
            first = top // 2
            x = F.interpolate(source.rows(first, (bottom + 1) // 2), scale_factor=2.0, mode="nearest")
            return x[:, :, top - 2 * first : bottom - 2 * first]
        last = min(bottom, source.height)
        x = source.rows(top, last)
        return zero_padded(x, below=bottom - last, right=1) if conv.resize == "down" else x

    return SourceRows(rows, conv.input_size((source.height, 1))[0])
