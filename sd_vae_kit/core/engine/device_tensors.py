"""Tensors in the layout that a kind of device is fastest with, computed in the dtype they were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sd_vae_kit.core.plan.devices import traits


def dense(x: Tensor) -> Tensor:
    """X in the layout of its device's bands: itself if it is so already, as slices of channels_last pictures are."""
    return x.contiguous(memory_format=traits(x.device).memory_format)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new picture (1, C, h, W) in the layout of the device's bands."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=traits(device).memory_format)


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """A host may have autocast on around us; it would change dtypes in the middle of a step."""
    try:
        context = torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError, AttributeError):  # this kind of device has no autocast in this torch
        yield
        return
    with context:
        yield
