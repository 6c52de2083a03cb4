"""A1111's own handling of NaN: its check of one value, and its switch of the VAE to 32 bits that nothing undoes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from modules import devices, processing
from torch import Tensor

from sd_vae_kit.hosts.base import HostBase


class NanRepairs:
    """Replaces `devices.test_for_nans` and `processing.decode_latent_batch`; their switches are read at each call.

    Args:
        base: What the host's parts share.
    """

    def __init__(self, base: HostBase) -> None:
        self._patches = base.patches
        self._options = base.options

    def install(self) -> None:
        """Put the repairs of faults that this web UI has in place."""
        if self._options.features.has("nan_check"):
            self._patches.wrap(devices, "test_for_nans", self._test_for_nans)
        if self._options.features.has("sticky_fp32"):
            self._patches.wrap(processing, "decode_latent_batch", self._decode_latent_batch)

    def _test_for_nans(self, original: Callable[..., None], x: Tensor, where: str, *args: object) -> None:
        """Raise the web UI's own error wherever the value is, and say whose fault it is (modules/devices.py:242)."""
        if not self._options.repairs.nan_check or bool(torch.isfinite(x).all()):
            original(x, where, *args)
            return
        try:
            original(torch.full_like(x, float("nan")), where, *args)  # switched off by --disable-nan-check
        except devices.NansException as error:
            if where != "unet":
                raise
            raise devices.NansException(f"the latent already contains NaN: the sampler, not the VAE. {error}") from None

    def _decode_latent_batch(self, original: Callable[..., Any], model: Any, *args: object, **kwargs: object) -> Any:
        """Give the VAE the type back that it had (modules/processing.py:661)."""
        before = devices.dtype_vae
        try:
            return original(model, *args, **kwargs)
        finally:
            if devices.dtype_vae != before and self._options.repairs.sticky_fp32:
                devices.dtype_vae = before
                model.first_stage_model.to(before)
