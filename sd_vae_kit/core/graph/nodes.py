"""What a VAE is taken apart into: a flat list of steps with the VAE's own modules, and the nodes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from sd_vae_kit.core.halves import Half
from sd_vae_kit.errors import UnsupportedVaeError

Pointwise = Callable[[Tensor], Tensor]
"""A function of each value alone; it may write into its argument."""


@dataclass(frozen=True)
class Conv:
    """A convolution module and what is done to the rows that enter it.

    Attributes:
        module: The VAE's own module.
        name: Its place in the VAE, as in its state dict.
        resize: "up": both sides doubled by repetition first; "down": one row of zeros below and one column to the
            right, as ldm pads before its stride of 2.
        kernel, stride, padding, dilation: (height, width) of each, from the module's attributes.
        groups: The module's; 0 where it does not say.
    """

    module: nn.Module
    name: str
    resize: Literal["none", "up", "down"] = "none"
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    channels_in: int = 0
    channels_out: int = 0
    groups: int = 1

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that one output value sees."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that the module sees when the stored activation is `size`."""
        height, width = size
        if self.resize == "up":
            return 2 * height, 2 * width
        return (height + 1, width + 1) if self.resize == "down" else size

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        sides = zip(self.input_size(size), self.padding, self.reach, self.stride, strict=True)
        height, width = ((side + 2 * pad - reach) // stride + 1 for side, pad, reach, stride in sides)
        return height, width


@dataclass(frozen=True)
class Step:
    """node = post(conv(act(norm(node[source]))) + shortcut(node[residual])) / divisor; absent parts are left out.

    Attributes:
        name: Place in the VAE, such as "decoder.up.0.block.1.conv2".
        source: Index of the node it reads: 0 is the graph's input, i + 1 the output of step i.
        norm: A GroupNorm over the whole source.
        residual: Index of the node that is added.
        shortcut: Convolution on the way of that node, where the channels change.
        divisor: diffusers' `output_scale_factor`.
    """

    name: str
    source: int
    norm: nn.Module | None = None
    act: Pointwise | None = None
    conv: Conv | None = None
    residual: int | None = None
    shortcut: Conv | None = None
    divisor: float = 1.0
    post: Pointwise | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,) if self.residual is None else (self.source, self.residual)


@dataclass(frozen=True)
class AttentionStep:
    """node = (node[source] + out(attention(query, key, value of norm(node[source])))) / divisor.

    Attributes:
        query, key, value, out: Modules without reach: 1x1 convolutions, or linear layers if `linear`.
        heads: The channels are split into this many.
        residual: Whether the source is added.
    """

    name: str
    source: int
    norm: nn.Module | None
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int = 1
    linear: bool = False
    residual: bool = True
    divisor: float = 1.0

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


AnyStep: TypeAlias = "Step | AttentionStep"


@dataclass(frozen=True)
class LayerGraph:
    """The steps of one encoder or decoder.

    Attributes:
        steps: Step i makes node i + 1; the last node is the result.
        channels_in: Channels of the input.
        name: "encoder" or "decoder", for messages.
    """

    steps: tuple[AnyStep, ...]
    channels_in: int
    name: Half = "decoder"
    root: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight; fp32 if that is stored in a format that needs casting (fp8, quantised)."""
        dtype = next((p.dtype for p in self._parameters()), torch.float32)
        return dtype if dtype in (torch.float16, torch.bfloat16, torch.float64) else torch.float32

    @property
    def device(self) -> torch.device:
        """Of the first weight, the CPU if there is none."""
        return next((p.device for p in self._parameters()), torch.device("cpu"))

    @property
    def readers(self) -> list[list[int]]:
        """For each node, the steps (as node indexes) that read it."""
        result: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for i, step in enumerate(self.steps):
            for source in step.reads:
                result[source].append(i + 1)
        return result

    def outline(self) -> LayerGraph:
        """The same steps with stand-ins for modules and functions: enough to plan with, equal for equal structures.

        It holds nobody's weights, so it can be kept.
        """
        return LayerGraph(tuple(_outlined(step) for step in self.steps), self.channels_in, self.name)

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(channels, height, width) of every node, the input of (height, width) first.

        Raises:
            UnsupportedVaeError: The picture is too small for this network.
        """
        result = [(self.channels_in, *size)]
        for step in self.steps:
            channels, height, width = result[step.source]
            if isinstance(step, Step) and step.conv is not None:
                channels = step.conv.channels_out
                height, width = step.conv.output_size((height, width))
            if height < 1 or width < 1:
                raise UnsupportedVaeError(
                    f"A {self.name} input of {size[0]}x{size[1]} is too small: {step.name} would have no output."
                )
            result.append((channels, height, width))
        return result

    def _parameters(self) -> Iterator[Tensor]:
        for step in self.steps:
            if isinstance(step, AttentionStep):
                yield from step.query.parameters()
            elif step.conv is not None:
                yield from step.conv.module.parameters()


def _no_function(x: Tensor) -> Tensor:
    raise AssertionError("an outline is never run")


_NO_MODULE = nn.Identity()


def _outlined(step: AnyStep) -> AnyStep:
    norm = None if step.norm is None else _NO_MODULE
    if isinstance(step, AttentionStep):
        return replace(step, norm=norm, query=_NO_MODULE, key=_NO_MODULE, value=_NO_MODULE, out=_NO_MODULE)
    convs = [None if conv is None else replace(conv, module=_NO_MODULE) for conv in (step.conv, step.shortcut)]
    act = None if step.act is None else _no_function
    return replace(step, norm=norm, act=act, conv=convs[0], shortcut=convs[1], post=None)


def is_subpixel(conv: Conv) -> bool:
    """Whether repetition and convolution can be one convolution of the small picture: see `upsampled`."""
    facts = (conv.resize, conv.kernel, conv.stride, conv.padding, conv.dilation, conv.groups)
    return facts == ("up", (3, 3), (1, 1), (1, 1), (1, 1), 1)
