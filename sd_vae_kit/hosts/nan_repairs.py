"""A1111's own handling of NaN: its check of one value, and its switch of the VAE to 32 bits that nothing undoes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from modules import devices, processing
from torch import Tensor

from sd_vae_kit.hosts.base import WebuiHost

Replace = Callable[[object, str, Any], None]


class NanRepairs:
    """Replaces `devices.test_for_nans` and `processing.decode_latent_batch`; their switches are read at each call."""

    def __init__(self, host: WebuiHost) -> None:
        self._host = host

    def install(self, replace: Replace) -> None:
        """Put the repairs of faults that this program has in place."""
        if "nan_check" not in self._host.faultless:
            replace(devices, "test_for_nans", self._test_for_nans)
        if "sticky_fp32" not in self._host.faultless:
            replace(processing, "decode_latent_batch", self._decode_latent_batch)

    def _test_for_nans(self, original: Callable[..., None], x: Tensor, where: str, *args: object) -> None:
        """The program's own error wherever the value is, and whose fault it is (modules/devices.py:242)."""
        if not self._host.repairs.nan_check or bool(torch.isfinite(x).all()):
            original(x, where, *args)
            return
        try:
            original(torch.full_like(x, float("nan")), where, *args)  # switched off by --disable-nan-check
        except devices.NansException as error:
            if where != "unet":
                raise
            raise devices.NansException(f"the latent already contains NaN: the sampler, not the VAE. {error}") from None

    def _decode_latent_batch(self, original: Callable[..., Any], model: Any, *args: object, **kwargs: object) -> Any:
        """The VAE goes back to the type it had (modules/processing.py:661)."""
        before = devices.dtype_vae
        try:
            return original(model, *args, **kwargs)
        finally:
            if devices.dtype_vae != before and self._host.repairs.sticky_fp32:
                devices.dtype_vae = before
                model.first_stage_model.to(before)
                self._host.on_vae_changed()
