"""What the host's convolutions do at the edges: padding modes, subclasses, patches and hooks.

"plain": torch's own convolution with zeros outside, run by its weights.  "edge": the module is called on a band with
its halo, and its own padding is right at the picture's edge.  "circular": the halo of the first and the last band comes
from the opposite edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.device_tensors import dense
from sd_vae_kit.core.engine.layer_call import call_module, has_stock_forward
from sd_vae_kit.core.graph.nodes import Conv, LayerGraph
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.schedule import Handling, convolutions, rows_fetched
from sd_vae_kit.errors import PlanError

Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class SourceRows:
    """What a convolution reads: rows [a, b) of an activation `height` rows high."""

    rows: Rows
    height: int


def edge_handlings(graph: LayerGraph, plan: Plan) -> dict[nn.Module, Handling]:
    """How each convolution is run: by its weights, or called on a band with the edges that its padding wants.

    Raises:
        PlanError: A convolution whose forward was replaced is not local.
    """
    return {conv.module: _handling(conv, plan.device, plan.dtype) for conv in convolutions(graph)}


def _handling(conv: Conv, device: torch.device, dtype: torch.dtype) -> Handling:
    module: Any = conv.module
    if not has_stock_forward(conv.module):
        return _proven_handling(conv, device, dtype)
    mode = module.padding_mode if conv.padding[0] > 0 else "zeros"
    if mode == "circular":
        return "circular"
    sideways = module.padding_mode if conv.padding[1] > 0 else "zeros"
    return "plain" if mode == sideways == "zeros" and not isinstance(module.padding, str) else "edge"


def _proven_handling(conv: Conv, device: torch.device, dtype: torch.dtype) -> Handling:
    """Try the module on a small picture, whole and in bands: it is local if one way of giving it edges agrees."""
    stride, reach = conv.stride[0], conv.reach[0]
    height, width = 4 * stride * max(2, reach), conv.reach[1] + 3
    generator = torch.Generator().manual_seed(0)  # the host's own random numbers are left alone
    x = torch.rand(1, conv.channels_in, height, width, generator=generator).sub_(0.5).to(device, dtype)
    x = dense(x)
    whole = call_module(conv.module, x)
    out_rows = (height + 2 * conv.padding[0] - reach) // stride + 1
    tolerance = (1e-4 if dtype in (torch.float32, torch.float64) else 3e-2) * float(
        whole.nan_to_num(0.0, 0.0, 0.0).abs().max() + 1e-6
    )
    whole_input = SourceRows(lambda top, bottom: x[:, :, top:bottom], height)
    modes: tuple[Handling, ...] = ("edge", "circular")
    for mode in modes:
        if whole.shape[2] != out_rows:
            break
        cuts = [0, out_rows // 3, out_rows // 2, out_rows]
        bands = [call_on_band(conv, mode, whole_input, top, bottom) for top, bottom in pairwise(cuts)]
        joined = torch.cat(bands, 2)
        # weights that are not finite are nobody's patch: whoever looks at the picture says what is wrong
        difference = torch.where(torch.isfinite(whole), joined - whole, 0.0) if joined.shape == whole.shape else None
        if difference is not None and float(difference.abs().max()) <= tolerance:
            return mode
    raise PlanError(f"{conv.name} ({type(conv.module).__name__}) was changed by another extension and is not local.")


def call_on_band(conv: Conv, handling: Handling, entering: SourceRows, top: int, bottom: int) -> Tensor:
    """Call the module on the input rows of output rows [top, bottom) and crop what its own padding spoiled.

    Args:
        entering: The module's input.
    """
    first, last = rows_fetched(conv, entering.height, top, bottom, handling)
    if first >= 0 and last <= entering.height:
        band = entering.rows(first, last)
    else:
        band = torch.cat([entering.rows(a, b) for a, b in _wrapped(first, last, entering.height)], 2)
    y = call_module(conv.module, band)
    start = top - first // conv.stride[0]
    return y[:, :, start : start + bottom - top]


def _wrapped(first: int, last: int, period: int) -> list[tuple[int, int]]:
    """[first, last) on a circle of `period` rows, as ranges inside [0, period)."""
    pieces = []
    while first < last:
        start = first % period
        stop = min(period, start + last - first)
        pieces.append((start, stop))
        first += stop - start
    return pieces
