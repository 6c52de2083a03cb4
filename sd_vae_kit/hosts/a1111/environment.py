"""Where encodes and decodes run in A1111: its progress bar, its Interrupt, and the room its other models take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from modules import devices, shared
from torch import nn

from sd_vae_kit.core.run.precision_policy import PrecisionPolicy, policy_of, with_host_options
from sd_vae_kit.hosts.call_environment import PlainEnvironment
from sd_vae_kit.hosts.host_names import HostFeatures
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.parts import LoadedModels

MOVED = ("model", "cond_stage_model", "conditioner")


def policy_beside_own_options(options: HostOptions) -> PrecisionPolicy:
    """With the web UI's options for black pictures: `auto_vae_precision` and `auto_vae_precision_bfloat16`."""
    value = options.source.value
    prefers_bf16 = bool(value("auto_vae_precision_bfloat16", False))
    may_use_fp32 = prefers_bf16 or bool(value("auto_vae_precision", True))
    policy = policy_of(options.settings.precision)
    return with_host_options(policy, may_use_fp32=may_use_fp32, prefers_bf16=prefers_bf16)


def job_is_stopped(features: HostFeatures) -> bool:
    """Whether the user pressed Interrupt or Skip."""
    return features.has("progress") and bool(shared.state.interrupted or shared.state.skipped)


def show_beside_bar(text: str | None, features: HostFeatures) -> None:
    """Show a few words beside the progress bar; None takes them away."""
    if features.has("progress"):
        shared.state.textinfo = text


class A1111Environment(PlainEnvironment):
    """A `CallEnvironment` by `modules.shared.state` and `modules.devices`.

    Args:
        options: The values now.
        loaded: The models.
    """

    def __init__(self, options: HostOptions, loaded: LoadedModels) -> None:
        super().__init__(options)
        self._loaded = loaded
        self._thread = threading.local()

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        """With --medvram the weights are elsewhere between calls."""
        device, dtype = super().place(network)
        return (devices.device if self._options.features.has("room") else device), dtype

    def policy(self) -> PrecisionPolicy:
        return policy_beside_own_options(self._options)

    def is_stopped(self) -> bool:
        return job_is_stopped(self._options.features)

    def show_progress(self, text: str | None) -> None:
        show_beside_bar(text, self._options.features)

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Bring back with the call's end what `make_room` moves away in it."""
        outer, moved = self._moved, list[nn.Module]()
        self._thread.moved = moved
        try:
            yield
        finally:
            self._thread.moved = outer
            for module in moved:
                module.to(devices.device)

    def make_room(self, needed: int) -> bool:
        """Move the diffusion model and the text encoders to the CPU until the call ends."""
        if not self._options.features.has("room"):
            return False
        devices.torch_gc()
        moved, model = self._moved, self._loaded.current
        if moved is None or moved or devices.device.type == "cpu" or getattr(model, "lowvram", False):
            return False  # outside of a call, done already, or they take no memory on the VAE's device
        for name in MOVED:
            module = getattr(model, name, None)
            if isinstance(module, nn.Module):
                moved.append(module.to(devices.cpu))
        devices.torch_gc()
        return bool(moved)

    @property
    def _moved(self) -> list[nn.Module] | None:
        """What this thread's call has moved away; None outside of a call."""
        return getattr(self._thread, "moved", None)
