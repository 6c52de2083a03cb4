"""Calling a layer of the VAE in a type that its weights may not have, without changing it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.dtypes import dtype_word
from sd_vae_kit.errors import NanError

STOCK: dict[type[nn.Module], str] = {nn.Conv2d: "torch.nn.modules.conv", nn.Linear: "torch.nn.modules.linear"}


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
        layer, word = type(module).__name__, dtype_word(x.dtype)
        raise NanError(
            f"A layer of the VAE ({layer}) does not work in {word}, which is needed here; "
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
