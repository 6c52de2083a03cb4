"""Encodes and decodes in A1111: its progress bar, its Interrupt, its previews, and the room its other models take."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from modules import devices, sd_samplers_common, shared
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy, with_host_options
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.hosts.base import WebuiHost
from sd_vae_kit.vaes.library import Library

APPROXIMATIONS = ("Approx NN", "Approx cheap")  # besides the user's own; the last needs neither file nor download


class A1111Calls(WebuiHost):
    """What `VaeInterceptor` needs, by `modules.shared.state` and the functions that make previews."""

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self._moved = threading.local()  # modules that this thread's call has moved away, to be brought back

    def install_calls(self) -> None:
        """Replace forwards, and say which calls are previews; called with the other patches."""
        self.calls.install()
        # the page's polling thread, and with --medvram the sampling thread itself (sd_samplers_common.py:115)
        for owner, name in ((type(shared.state), "do_set_current_image"), (sd_samplers_common, "store_latent")):
            if not self.patches.is_applied(owner, name):
                self.patches.replace(owner, name, lambda original: functools.partial(self._preview, original))

    def _preview(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        with self.calls.preview():
            return original(*args, **kwargs)

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        """With --medvram the weights are elsewhere between calls."""
        return devices.device, super().place(network)[1]

    def policy(self) -> PrecisionPolicy:
        """With the program's options for black pictures: `auto_vae_precision` and `auto_vae_precision_bfloat16`."""
        prefers_bf16 = bool(self.option("auto_vae_precision_bfloat16", False))
        may_use_fp32 = prefers_bf16 or bool(self.option("auto_vae_precision", True))
        return with_host_options(super().policy(), may_use_fp32=may_use_fp32, prefers_bf16=prefers_bf16)

    def is_stopped(self) -> bool:
        return bool(shared.state.interrupted or shared.state.skipped)

    def show_progress(self, text: str | None) -> None:
        shared.state.textinfo = text

    def around_call(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.look_for_others()
        moved: list[nn.Module] = []
        self._moved.modules = moved
        try:
            if name != "decode_first_stage":
                return original(*args, **kwargs)
            return self.calls.decoding(lambda: original(*args, **kwargs), lambda: self.sketch(args[0]))
        finally:
            for module in moved:
                module.to(devices.device)

    def make_room(self, needed: int) -> bool:
        """Move the diffusion model and the text encoders to the CPU until the call ends."""
        devices.torch_gc()
        moved: list[nn.Module] | None = getattr(self._moved, "modules", None)
        if moved is None or moved or self.is_on_cpu():
            return False
        for name in ("model", "cond_stage_model", "conditioner"):
            module = getattr(self.model, name, None)
            if isinstance(module, nn.Module):
                moved.append(module.to(devices.cpu))
        devices.torch_gc()
        return bool(moved)

    def is_on_cpu(self) -> bool:
        """Whether the other models take no memory on the VAE's device: there is nothing to move away."""
        return devices.device.type == "cpu" or bool(getattr(self.model, "lowvram", False))

    def sketch(self, latent: Tensor) -> Tensor:
        """What an interrupted decode gives: the picture as the live preview shows it, in the picture's size.

        Args:
            latent: (B, C, h, w) as the sampler sees it.

        Returns:
            (B, 3, 8h, 8w) in about [-1, 1].
        """
        cell = self._cell()
        size = (latent.shape[2] * cell, latent.shape[3] * cell)
        rgb = self._approximated(latent).to(latent.device, torch.float32)
        return F.interpolate(rgb, size=size, mode="bilinear", align_corners=False).clamp(-1.0, 1.0).to(latent)

    def _approximated(self, latent: Tensor) -> Tensor:
        """By the program's own preview methods, the user's first; one whose network is not there is passed over."""
        indexes = sd_samplers_common.approximation_indexes
        for name in (shared.opts.show_progress_type, *APPROXIMATIONS):
            if not indexes.get(name):  # Full is what was just stopped
                continue
            try:
                with torch.no_grad():
                    rgb: Tensor = sd_samplers_common.samples_to_images_tensor(latent, indexes[name])
                return rgb
            except Exception as error:
                self.notify_once(f"No preview by {name}: {error}", "warning")
        return latent.new_zeros(latent.shape[0], 3, *latent.shape[2:])

    def _cell(self) -> int:
        """Pixels per latent cell."""
        module = self.live_vae()
        try:
            shapes = graph_of(module, "decoder").shapes((16, 16)) if module is not None else []
        except StepAsideError:
            shapes = []
        return shapes[-1][1] // 16 if shapes else 8
