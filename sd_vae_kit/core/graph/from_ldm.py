"""ldm's encoder and decoder, and their many copies, as steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sd_vae_kit.core.graph.builder import Builder, has, resample, residual_block, silu_, without_reach
from sd_vae_kit.core.graph.nodes import AttentionStep, Step
from sd_vae_kit.errors import UnsupportedVaeError


def graph_from_ldm(builder: Builder, network: nn.Module, part: str) -> None:
    parts: Any = network
    if getattr(network, "give_pre_end", False):
        raise UnsupportedVaeError(f"The {part} stops before its last layers (give_pre_end).")
    conv_in = builder.conv(parts.conv_in)
    builder.add(Step(conv_in.name, builder.last, conv=conv_in))
    if part == "decoder":
        _ldm_middle(builder, parts.mid)
    levels = list(parts.up)[::-1] if part == "decoder" else list(parts.down)
    for level in levels:
        _ldm_level(builder, level)
    if part == "encoder":
        _ldm_middle(builder, parts.mid)
    conv_out = builder.conv(parts.conv_out)
    tanh = torch.tanh_ if getattr(network, "tanh_out", False) else None
    norm = builder.norm(parts.norm_out)
    builder.add(Step(conv_out.name, builder.last, norm, silu_, conv_out, post=tanh))


def _ldm_middle(builder: Builder, mid: Any) -> None:
    builder.untouched(mid)
    residual_block(builder, mid.block_1)
    attention = getattr(mid, "attn_1", None)
    if attention is not None:
        _ldm_attention(builder, attention)
    residual_block(builder, mid.block_2)


def _ldm_level(builder: Builder, level: Any) -> None:
    builder.untouched(level)
    attention = list(getattr(level, "attn", ()))
    for i, block in enumerate(level.block):
        residual_block(builder, block)
        if i < len(attention):
            _ldm_attention(builder, attention[i])
    for name, resize in (("downsample", "down"), ("upsample", "up")):
        sampler = getattr(level, name, None)
        if isinstance(sampler, nn.Module) and not isinstance(sampler, nn.Identity):
            resample(builder, sampler, "up" if resize == "up" else "down")


def _ldm_attention(builder: Builder, block: Any) -> None:
    if isinstance(block, nn.Identity):
        return
    builder.untouched(block)
    if not has(block, "norm", "q", "k", "v", "proj_out"):
        raise UnsupportedVaeError(f"{builder.name(block)} ({type(block).__name__}) is an unknown kind of attention.")
    for module in (block.q, block.k, block.v, block.proj_out):
        without_reach(builder, module)
    norm = builder.norm(block.norm)
    builder.add(AttentionStep(builder.name(block), builder.last, norm, block.q, block.k, block.v, block.proj_out))
