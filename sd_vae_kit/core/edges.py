"""What the host's convolutions do at the edges: padding modes, subclasses, patches and hooks.

"plain": torch's own convolution with zeros outside, run by its weights.  "edge": the module is called on a band with
its halo, and its own padding is right at the picture's edge.  "circular": the halo of the first and the last band comes
from the opposite edge.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.devices import dense
from sd_vae_kit.core.plan import Plan
from sd_vae_kit.core.schedule import Handling, convolutions, rows_fetched
from sd_vae_kit.core.steps import Conv, Program
from sd_vae_kit.errors import NanError, PlanError

STOCK: dict[type[nn.Module], str] = {nn.Conv2d: "torch.nn.modules.conv", nn.Linear: "torch.nn.modules.linear"}
Rows = Callable[[int, int], Tensor]


def edge_handlings(program: Program, plan: Plan) -> dict[nn.Module, Handling]:
    """How each convolution is run: by its weights, or called on a band with the edges that its padding wants.

    Raises:
        PlanError: A convolution whose forward was replaced is not local.
    """
    return {conv.module: _handling(conv, plan.device, plan.dtype) for conv in convolutions(program)}


def _handling(conv: Conv, device: torch.device, dtype: torch.dtype) -> Handling:
    module: Any = conv.module
    if not has_stock_forward(conv.module):
        return _proven_handling(conv, device, dtype)
    mode = module.padding_mode if conv.padding[0] > 0 else "zeros"
    if mode == "circular":
        return "circular"
    sideways = module.padding_mode if conv.padding[1] > 0 else "zeros"
    return "plain" if mode == sideways == "zeros" and not isinstance(module.padding, str) else "edge"


def has_stock_forward(module: nn.Module) -> bool:
    """Whether this is exactly torch's Conv2d or Linear: no subclass, patch, hook, parametrisation or override."""
    own, kind = vars(module), type(module)
    if kind not in STOCK or "forward" in own or "_conv_forward" in own:
        return False
    if any(
        getattr(kind, name).__module__ != STOCK[kind] for name in ("forward", "_conv_forward") if hasattr(kind, name)
    ):
        return False  # A1111's Lora extension replaces them for the whole program
    facts: Any = module
    shared: Any = torch.nn.modules.module
    hooks = [facts._forward_hooks, facts._forward_pre_hooks]
    hooks += [shared._global_forward_hooks, shared._global_forward_pre_hooks]
    return not any(hooks) and type(facts.weight) in (nn.Parameter, Tensor)


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
    modes: tuple[Handling, ...] = ("edge", "circular")
    for mode in modes:
        if whole.shape[2] != out_rows:
            break
        cuts = [0, out_rows // 3, out_rows // 2, out_rows]
        bands = [
            call_on_band(conv, mode, lambda top, bottom: x[:, :, top:bottom], height, top, bottom)
            for top, bottom in pairwise(cuts)
        ]
        joined = torch.cat(bands, 2)
        # weights that are not finite are nobody's patch: whoever looks at the picture says what is wrong
        difference = torch.where(torch.isfinite(whole), joined - whole, 0.0) if joined.shape == whole.shape else None
        if difference is not None and float(difference.abs().max()) <= tolerance:
            return mode
    raise PlanError(f"{conv.name} ({type(conv.module).__name__}) was changed by another extension and is not local.")


def call_on_band(conv: Conv, mode: Handling, rows: Rows, tall: int, top: int, bottom: int) -> Tensor:
    """Call the module on the input rows of output rows [top, bottom) and crop what its own padding spoiled.

    Args:
        rows: Gives rows [a, b) of the module's input, inside the picture of `tall` rows.
    """
    first, last = rows_fetched(conv, tall, top, bottom, mode)
    if first >= 0 and last <= tall:
        band = rows(first, last)
    else:
        band = torch.cat([rows(a, b) for a, b in _wrapped(first, last, tall)], 2)
    y = call_module(conv.module, band)
    start = top - first // conv.stride[0]
    return y[:, :, start : start + bottom - top]


def call_module(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), also where its weights have another type than x: then they are cast for this call.

    Layers that cast by themselves (Forge, Neo) are simply called.  Of others a copy with cast weights is called, so
    that other threads never see the module changed.

    Raises:
        NanError: The layer refuses this type even so.
    """
    if all(p.dtype == x.dtype for p in module.parameters() if p.is_floating_point()):
        y: Tensor = module(x)
        return y
    if has_stock_forward(module):
        return _cast_copy(module, x)(x)  # type: ignore[no-any-return]
    try:
        return module(x)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "type" not in str(error):
            raise
    try:
        return _cast_copy(module, x)(x)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        raise NanError(
            f"A layer of the VAE ({type(module).__name__}) does not work in {_word(x.dtype)}, which is needed here; "
            "load the VAE in fp32 (--no-half-vae) or switch off the extension that changed the layer."
        ) from error


def _cast_copy(module: nn.Module, like: Tensor) -> nn.Module:
    """A module of the same class and attributes whose weights are copies on the device and in the type of `like`."""
    clone = copy.copy(module)
    clone._parameters = {
        name: None if p is None else nn.Parameter(p.detach().to(like.device, like.dtype), requires_grad=False)
        for name, p in module._parameters.items()
    }
    clone._modules = {name: None if m is None else _cast_copy(m, like) for name, m in module._modules.items()}
    return clone


def _word(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, str(dtype))


def _wrapped(first: int, last: int, period: int) -> list[tuple[int, int]]:
    """[first, last) on a circle of `period` rows, as ranges inside [0, period)."""
    pieces = []
    while first < last:
        start = first % period
        stop = min(period, start + last - first)
        pieces.append((start, stop))
        first += stop - start
    return pieces
