"""The TAESD family, the original's and diffusers' AutoencoderTiny, as steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.graph.builder import Builder, has, relu_
from sd_vae_kit.core.graph.nodes import Conv, Pointwise, Step
from sd_vae_kit.errors import UnsupportedVaeError


def _limit_latent(x: Tensor) -> Tensor:
    return torch.tanh(x / 3) * 3


def _from_unit(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], as diffusers' DecoderTiny ends."""
    return x.mul(2).sub(1)


def _to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], as diffusers' EncoderTiny begins."""
    return x.add(1).div(2)


def graph_from_tiny(builder: Builder, layers: nn.Sequential, diffusers_part: str | None) -> None:
    """Convolutions, residual blocks, ReLU, nearest upsampling and parameterless functions, in order."""
    reader = _TinyReader(builder, {"decoder": _limit_latent, "encoder": _to_unit}.get(diffusers_part or ""))
    for layer in layers:
        reader.read(layer)
    if not reader.is_free:
        raise UnsupportedVaeError(f"{builder.name(layers)} ends in a layer without a convolution.")
    last = builder.steps[-1]
    if diffusers_part == "decoder" and isinstance(last, Step):
        builder.steps[-1] = replace(last, post=_from_unit)


class _TinyReader:
    """Joins each layer to the convolution before or after it.

    Args:
        act: A function before the first convolution.
    """

    def __init__(self, builder: Builder, act: Pointwise | None) -> None:
        self.builder = builder
        self.act = act  # of the convolution to come
        self.resize: Literal["none", "up"] = "none"  # before it

    @property
    def is_free(self) -> bool:
        """Whether nothing waits for a convolution."""
        return self.act is None and self.resize == "none"

    def read(self, layer: nn.Module) -> None:
        """Add the steps of the next layer."""
        if isinstance(layer, nn.Identity):
            return
        if isinstance(layer, nn.Upsample):
            self._upsample(layer)
        elif has(layer, "conv") and isinstance(layer.conv, nn.Sequential):
            self._refuse_waiting(layer)
            _tiny_block(self.builder, layer)
        elif has(layer, "kernel_size", "out_channels"):
            conv = self.builder.conv(layer, self.resize)
            self.builder.add(Step(conv.name, self.builder.last, act=self.act, conv=conv))
            self.act, self.resize = None, "none"
        else:
            self._function(layer)

    def _upsample(self, layer: nn.Upsample) -> None:
        if layer.mode != "nearest" or layer.scale_factor not in (2, 2.0, (2, 2), (2.0, 2.0)):
            raise UnsupportedVaeError(f"{self.builder.name(layer)} does not repeat each pixel twice.")
        self.resize = "up"

    def _function(self, layer: nn.Module) -> None:
        """A function of each value alone: the end of the step before, or the beginning of the next one."""
        function, steps = self.builder.activation(layer), self.builder.steps
        self._refuse_waiting(layer)
        if steps and isinstance(steps[-1], Step) and steps[-1].post is None:
            steps[-1] = replace(steps[-1], post=function)
        else:
            self.act = function

    def _refuse_waiting(self, layer: nn.Module) -> None:
        if not self.is_free:
            raise UnsupportedVaeError(f"{self.builder.name(layer)} follows a layer it cannot be joined to.")


def _tiny_block(builder: Builder, block: Any) -> None:
    """Convolutions and activations, plus the input, then an activation; TAEF2's block adds a pool first."""
    builder.untouched(block)
    pool = getattr(block, "pool", None)
    if isinstance(pool, nn.Sequential) and len(pool) > 0:
        _tiny_chain(builder, pool, builder.last, None, None)
    elif pool is not None:
        raise UnsupportedVaeError(f"{builder.name(pool)} ({type(pool).__name__}) is an unknown part of a tiny block.")
    skip = getattr(block, "skip", None)
    shortcut = None
    if isinstance(skip, nn.Module) and not isinstance(skip, nn.Identity):
        shortcut = builder.conv(skip)
    fuse = getattr(block, "fuse", None)
    post = relu_ if fuse is None else builder.activation(fuse)
    _tiny_chain(builder, block.conv, builder.last, shortcut, post)


def _tiny_chain(
    builder: Builder, chain: nn.Sequential, source: int, shortcut: Conv | None, post: Pointwise | None
) -> None:
    """Add source + chain(source), where a chain is [norm] [activation] convolution, repeated."""
    norm: nn.Module | None = None
    act: Pointwise | None = None
    first = builder.last
    for layer in chain:
        if has(layer, "num_groups"):
            norm = builder.norm(layer)
        elif has(layer, "kernel_size"):
            conv = builder.conv(layer)
            builder.add(Step(conv.name, builder.last, norm, act, conv))
            norm = act = None
        elif norm is None and builder.last > first and isinstance(last := builder.steps[-1], Step):
            builder.steps[-1] = replace(last, post=builder.activation(layer))
        else:
            act = builder.activation(layer)
    last = builder.steps[-1]
    if norm is not None or act is not None or not isinstance(last, Step):
        raise UnsupportedVaeError(f"{builder.name(chain)} does not end in a convolution.")
    builder.steps[-1] = replace(last, residual=source, shortcut=shortcut, post=post)
