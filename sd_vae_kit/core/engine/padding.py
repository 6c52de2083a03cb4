"""Zeros around a band, without writing the band twice."""

from __future__ import annotations

from torch import Tensor

from sd_vae_kit.core.engine.device_tensors import empty


def zero_padded(x: Tensor, *, above: int = 0, below: int = 0, right: int = 0) -> Tensor:
    """X (1, C, h, w) with rows of zeros above and below and columns to the right, newly made.

    torch's `pad` fills everything first and copies then; a band is large and its edge is not.
    """
    _, channels, height, width = x.shape
    out = empty((1, channels, height + above + below, width + right), x.dtype, x.device)
    out[:, :, above : above + height, :width] = x
    out[:, :, :above], out[:, :, above + height :], out[:, :, :, width:] = 0.0, 0.0, 0.0
    return out
