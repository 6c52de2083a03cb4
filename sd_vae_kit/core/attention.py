"""The shapes of attention: pictures as tokens, heads, and how many queries are answered at once."""

from __future__ import annotations

from torch import Tensor, nn

from sd_vae_kit.core.plan import Plan


def attention_chunk(plan: Plan, keys: int, heads: int) -> int:
    """How many queries at once: their scores, if torch stores them, fit `plan.attention_bytes`."""
    return max(16, plan.attention_bytes // max(1, keys * heads * max(4, plan.dtype.itemsize)))


def tokens_of(module: nn.Module, picture: Tensor, linear: bool) -> Tensor:
    """(1, C, h, W) through a module without reach -> (1, h * W, C)."""
    if linear:
        y: Tensor = module(picture.permute(0, 2, 3, 1).flatten(1, 2))
        return y
    return module(picture).permute(0, 2, 3, 1).flatten(1, 2).to(picture.dtype)  # type: ignore[no-any-return]


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    """(1, n, C) -> (1, heads, n, C / heads)."""
    return tokens.reshape(1, tokens.shape[1], heads, -1).transpose(1, 2)


def picture_of(tokens: Tensor, height: int) -> Tensor:
    """(1, h * W, C) -> (1, C, h, W)."""
    return tokens.reshape(1, height, -1, tokens.shape[2]).permute(0, 3, 1, 2)
