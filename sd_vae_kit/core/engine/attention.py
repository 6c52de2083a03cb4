"""Attention over the whole picture: keys and values resident, queries in chunks of rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.engine.band_guard import OutOfRange
from sd_vae_kit.core.engine.convolution import Scaling, scaled_weights
from sd_vae_kit.core.engine.device_tensors import dense
from sd_vae_kit.core.engine.layer_call import call_module, has_stock_forward
from sd_vae_kit.core.engine.overflow import HalfIsNotEnough, RangeGuard
from sd_vae_kit.core.engine.ranges import MAX_SHIFT, SHIFT_STEP, Ranges
from sd_vae_kit.core.graph.nodes import AttentionStep
from sd_vae_kit.core.plan.plan import Plan, RunStats

FUSED_QUERIES = 16384  # 512 blocks for a GPU's processors; one call stays far below the 2 s that Windows allows
ENTERING = 8  # normalised values are small enough to be made 2**8 times larger


@dataclass(frozen=True)
class AttentionSite:
    """An attention step and the picture that it sees.

    Attributes:
        step, node: The step and the index of what it makes.
        count: Tokens, h * W.
        channels: Of each token.
    """

    step: AttentionStep
    node: int
    count: int
    channels: int


class AttentionPass:
    """Keys and values of one attention step, and its answers.

    Queries are stored divided by 2**balance and keys multiplied by it, so that scores stay what they are; values are
    stored divided by 2**exponent, which the projection after them takes into account.  In an fp32 step, queries, keys,
    values and scores are fp32.

    Args:
        site: The step and the picture that it sees.
        stats: Its `chunks` are counted.
        guard: Whether queries, keys and values are checked; their norms are nobody's statistics.

    Attributes:
        is_stale: Keys and values were only adapted to a repair; they keep more digits if they are taken again.
    """

    def __init__(
        self, site: AttentionSite, plan: Plan, ranges: Ranges, stats: RunStats, guard: RangeGuard | None
    ) -> None:
        self.site, self.plan, self.ranges, self.stats, self.guard = site, plan, ranges, stats, guard
        self.step, self.node = site.step, site.node
        self.keys = self.values = torch.empty(0)
        self.restart()

    @property
    def dtype(self) -> torch.dtype:
        return self.ranges.compute_dtype(self.node, self.plan.dtype)

    @property
    def balance(self) -> int:
        return self.ranges.fixes.shifts.get(f"{self.step.name}.query", 0)

    @property
    def exponent(self) -> int:
        return self.ranges.fixes.shifts.get(f"{self.step.name}.value", 0)

    def restart(self) -> None:
        """Throw keys and values away: `take` is called for all rows again."""
        self.keys = torch.empty(1, self.site.count, self.site.channels, device=self.plan.device, dtype=self.dtype)
        self.values = torch.empty_like(self.keys)
        self.is_stale = False

    def take(self, normed: Tensor, first: int) -> None:
        """Keys and values of tokens `first` and following, from normed rows (1, C, h, W) in `dtype`.

        Raises:
            OutOfRange: They are too large; the ranges are changed, and all of them have to be taken again.
        """
        last = first + normed.shape[2] * normed.shape[3]
        key = self._tokens(self.step.key, normed, self.balance)
        value = self._tokens(self.step.value, normed, -self.exponent)
        self._check(key, normed, "key")
        self._check(value, normed, "value")
        self.keys[:, first:last], self.values[:, first:last] = key, value

    def answer(self, normed: Tensor, *, is_careful: bool = False) -> Tensor:
        """out(attention(query)) for normed rows (1, C, h, W): the same shape, new, with the node's exponent.

        Args:
            normed: In `dtype`.
            is_careful: Look at the answers themselves too, to find out why a band was not finite.

        Raises:
            OutOfRange: A query is too large; the ranges and the keys are changed for another try.
        """
        step, height = self.step, normed.shape[2]
        query = self._tokens(step.query, normed, -self.balance)
        self._check(query, normed, "query")
        q, k, v = (heads_of(tokens, step.heads) for tokens in (query, self.keys, self.values))
        stores = stores_scores(self.plan.device, q.dtype, q.shape[3])
        chunk = attention_chunk(self.plan, self.site.count, step.heads, stores=stores)
        answers = []
        for start in range(0, q.shape[2], chunk):
            # (1, heads, n, C/heads): with 3 dimensions or a flash kernel's limit of 256, torch would store n^2 scores
            answer = F.scaled_dot_product_attention(q[:, :, start : start + chunk], k, v)
            answers.append(answer.transpose(1, 2).reshape(1, answer.shape[2], -1))
            self.stats.chunks += 1
        tokens = answers[0] if len(answers) == 1 else torch.cat(answers, 1)
        if is_careful and self.guard is not None and not self.guard.is_in_range(tokens):
            self.widen()  # scores beyond the range: only fp32 holds them
            raise OutOfRange(f"{step.name}, scores", is_repaired=True)
        exponent = self.ranges.exponent(self.node)
        if step.linear:
            projected = self._project(step.out, tokens, self.exponent - exponent, exponent)
            return picture_of(projected, height).to(self.dtype, copy=True)
        y = self._project(step.out, dense(picture_of(tokens, height)), self.exponent - exponent, exponent)
        return dense(y)

    def _tokens(self, module: nn.Module, picture: Tensor, gain: int) -> Tensor:
        """(1, C, h, W) through a module without reach, times 2**gain -> (1, h * W, C)."""
        if self.step.linear:
            return self._project(module, picture.permute(0, 2, 3, 1).flatten(1, 2), gain, -gain)
        return self._project(module, picture, gain, -gain).permute(0, 2, 3, 1).flatten(1, 2)

    def _project(self, module: nn.Module, x: Tensor, gain: int, bias: int) -> Tensor:
        """(W x) * 2**gain + b * 2**-bias of a linear layer or 1x1 convolution."""
        if gain == bias == 0:
            return call_module(module, x).to(self.dtype)
        if has_stock_forward(module):
            return self._by_weights(module, x, Scaling(self.dtype, gain, bias))
        entering = min(gain, ENTERING)  # before the layer, so that a small answer keeps its digits
        rest = gain - entering
        y = call_module(module, x * 2.0**entering)
        zeros = torch.zeros_like(x[:, :1] if self.step.linear else x[:, :, :1, :1])
        seen = call_module(module, zeros)  # the bias, patches and casts included
        return ((y.float() + seen.float() * (2.0 ** -(bias + rest) - 1.0)) * 2.0**rest).to(self.dtype)

    def _by_weights(self, layer: nn.Module, x: Tensor, scaling: Scaling) -> Tensor:
        weight, bias, gain, lift = scaled_weights(layer, self.plan.device, scaling)
        x = x * 2.0**gain if gain else x
        apply = F.linear if self.step.linear else F.conv2d
        y = apply(x, weight.to(self.dtype), None if bias is None else bias.to(self.dtype))
        return y * 2.0**lift if lift else y

    def _check(self, tokens: Tensor, normed: Tensor, which: str) -> None:
        """Change the ranges if these tokens are out of range, and say so."""
        if self.guard is None or self.guard.is_in_range(tokens):
            return
        self.guard.examine(self.step)
        if not self.guard.is_in_range(normed):
            self.widen()
        elif which == "value":
            self._move("value", SHIFT_STEP)
        elif which == "key":
            self._move("query", -SHIFT_STEP)
        elif self.guard.fits(self.keys, SHIFT_STEP):
            self._move("query", SHIFT_STEP)
            self.keys.mul_(2.0**SHIFT_STEP)
            self.is_stale = True
        else:
            self.widen()
        raise OutOfRange(f"{self.step.name}, {which}", is_repaired=True)

    def _move(self, which: str, bits: int) -> None:
        shifts, name = self.ranges.fixes.shifts, f"{self.step.name}.{which}"
        if abs(shifts.get(name, 0) + bits) > MAX_SHIFT:
            self.widen()
        else:
            shifts[name] = shifts.get(name, 0) + bits

    def widen(self) -> None:
        """Go on in fp32: keys and values that are there already were finite, and stay.

        Raises:
            HalfIsNotEnough: The step is in fp32 already, or must not be.
        """
        assert self.guard is not None
        if not self.guard.widen(self.node):
            raise HalfIsNotEnough(self.step.name)
        self.keys, self.values, self.is_stale = self.keys.to(self.dtype), self.values.to(self.dtype), True


def attention_chunk(plan: Plan, keys: int, heads: int, *, stores: bool) -> int:
    """How many queries at once.

    Args:
        plan: Scores that are stored fit its `attention_bytes`.
        keys: Tokens.
        heads: Of the attention.
        stores: Whether torch stores scores.
    """
    fitting = max(16, plan.attention_bytes // max(1, keys * heads * max(4, plan.dtype.itemsize)))
    return fitting if stores else max(fitting, FUSED_QUERIES)


@functools.cache
def stores_scores(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether torch has to store the scores of heads so wide, as far as is known.

    CUDA's memory-efficient kernel does not, but takes 32 queries of a wide head per block: few queries at once would
    leave most of a GPU idle.  It is tried once, by itself, since choosing kernels is a switch of the whole process.
    """
    switches: Any = torch.backends.cuda
    if device.type != "cuda" or not switches.mem_efficient_sdp_enabled():
        return True
    few = torch.zeros(1, 1, 64, width, device=device, dtype=dtype)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    try:
        kernel(few, few, few, None, False)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):  # not for this GPU, type or width
        return True
    return False


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    """(1, n, C) -> (1, heads, n, C / heads)."""
    return tokens.reshape(1, tokens.shape[1], heads, -1).transpose(1, 2)


def picture_of(tokens: Tensor, height: int) -> Tensor:
    """(1, h * W, C) -> (1, C, h, W)."""
    return tokens.reshape(1, height, -1, tokens.shape[2]).permute(0, 3, 1, 2)
