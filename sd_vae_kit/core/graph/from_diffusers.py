"""diffusers' AutoencoderKL as steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from sd_vae_kit.core.graph.builder import Builder, has, resample, residual_block, without_reach
from sd_vae_kit.core.graph.nodes import AttentionStep, Step
from sd_vae_kit.errors import UnsupportedVaeError

PROCESSORS = ("AttnProcessor", "XFormersAttnProcessor")  # prefixes; all compute plain softmax attention


def graph_from_diffusers(builder: Builder, network: nn.Module, part: str) -> None:
    parts: Any = network
    conv_in = builder.conv(parts.conv_in)
    builder.add(Step(conv_in.name, builder.last, conv=conv_in))
    if part == "decoder":
        _diffusers_middle(builder, parts.mid_block)
    for block in parts.up_blocks if part == "decoder" else parts.down_blocks:
        builder.untouched(block)
        if not has(block, "resnets"):
            raise UnsupportedVaeError(f"{builder.name(block)} ({type(block).__name__}) is an unknown block.")
        _diffusers_blocks(builder, block.resnets, getattr(block, "attentions", None) or ())
        for sampler in getattr(block, "upsamplers" if part == "decoder" else "downsamplers", None) or ():
            _diffusers_resample(builder, sampler, "up" if part == "decoder" else "down")
    if part == "encoder":
        _diffusers_middle(builder, parts.mid_block)
    act = builder.activation(getattr(parts, "conv_act", None))
    conv_out = builder.conv(parts.conv_out)
    builder.add(Step(conv_out.name, builder.last, builder.norm(parts.conv_norm_out), act, conv_out))


def _diffusers_middle(builder: Builder, mid: Any) -> None:
    builder.untouched(mid)
    resnets, attentions = list(mid.resnets), list(mid.attentions)
    residual_block(builder, resnets[0])
    for attention, resnet in zip(attentions, resnets[1:], strict=True):
        if attention is not None:
            _diffusers_attention(builder, attention)
        residual_block(builder, resnet)


def _diffusers_blocks(builder: Builder, resnets: Iterable[Any], attentions: Iterable[Any]) -> None:
    after = dict(enumerate(attentions))
    for i, resnet in enumerate(resnets):
        residual_block(builder, resnet)
        if after.get(i) is not None:
            _diffusers_attention(builder, after[i])


def _diffusers_resample(builder: Builder, sampler: Any, resize: Literal["up", "down"]) -> None:
    if getattr(sampler, "norm", None) is not None or getattr(sampler, "use_conv_transpose", False):
        raise UnsupportedVaeError(f"{builder.name(sampler)} normalises or is transposed.")
    if not getattr(sampler, "interpolate", True):
        raise UnsupportedVaeError(f"{builder.name(sampler)} does not interpolate.")
    resample(builder, sampler, resize)


def _diffusers_attention(builder: Builder, block: Any) -> None:
    builder.untouched(block)
    name = builder.name(block)
    if not has(block, "to_q", "to_k", "to_v", "to_out", "heads", "group_norm"):
        raise UnsupportedVaeError(f"{name} ({type(block).__name__}) is an unknown kind of attention.")
    if any(getattr(block, extra, None) is not None for extra in ("spatial_norm", "norm_q", "norm_k")):
        raise UnsupportedVaeError(f"{name} has norms of its own on queries, keys or values.")
    processor = type(getattr(block, "processor", None)).__name__
    if not processor.startswith(PROCESSORS):
        raise UnsupportedVaeError(f"{name} runs with {processor}, which may not be plain attention.")
    out = block.to_out[0]
    for dropout in block.to_out[1:]:
        builder.dropout(dropout)
    for module in (block.to_q, block.to_k, block.to_v, out):
        without_reach(builder, module)
    norm = None if block.group_norm is None else builder.norm(block.group_norm)
    parts = (block.to_q, block.to_k, block.to_v, out)
    residual = bool(getattr(block, "residual_connection", True))
    divisor = float(getattr(block, "rescale_output_factor", 1.0))
    builder.add(AttentionStep(name, builder.last, norm, *parts, int(block.heads), True, residual, divisor))
