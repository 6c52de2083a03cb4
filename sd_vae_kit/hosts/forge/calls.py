"""Encodes and decodes in Forge: room is asked for by our prediction, and its inexact tiling is the last resort."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from backend import memory_management
from torch import Tensor, nn

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.planning import graph_of, planned
from sd_vae_kit.errors import NoMemoryError, StepAsideError
from sd_vae_kit.hosts.a1111.calls import A1111Calls
from sd_vae_kit.units import MIB

ESTIMATES: dict[str, tuple[str, Half]] = {
    "decode": ("memory_used_decode", "decoder"),
    "encode": ("memory_used_encode", "encoder"),
}


@dataclass(frozen=True)
class Estimate:
    """`memory_used_decode` and `_encode`, while we run the VAE."""

    own: Callable[..., float]
    ours: Callable[[Sequence[int], torch.dtype], float | None]

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> float:
        predicted = self.ours(shape, dtype)
        return self.own(shape, dtype) if predicted is None else predicted


class ForgeCalls(A1111Calls):
    """As in A1111, around `backend.patcher.vae.VAE`, which loads the model and cuts batches itself."""

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype:
        """The program casts the input to what it wants, and its layers cast their weights to the input's."""
        return x.dtype

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        model: Any = self.model
        vae = model.forge_objects.vae
        dtype: torch.dtype = vae.vae_dtype
        return torch.device(vae.device), dtype

    def out_of_memory(self, error: NoMemoryError) -> Exception:
        """As the program's own error: it then tiles in its way, which is not exact but gives a picture."""
        self.notify(str(error), "warning")
        kind: type[Exception] = memory_management.OOM_EXCEPTION
        return kind(str(error))

    def make_room(self, needed: int) -> bool:
        """Unload other models, as the program does before it loads one."""
        device = memory_management.vae_device()
        if device.type == "cpu":
            return False
        loaded = memory_management.current_loaded_models
        kept = [model for model in loaded if model.model.model is self.live_vae()]
        before = len(loaded)
        memory_management.free_memory(needed * 1.1, device, keep_loaded=kept)
        return len(memory_management.current_loaded_models) < before

    def around_call(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of `VAE.<name>(vae, samples)`."""
        vae, samples = args[:2]
        if memory_management.VAE_ALWAYS_TILED:
            self.notify_once("Never OOM tiles the VAE, which is not exact; VAE Kit's tiling steps aside.", "warning")
            with self.calls.aside():
                return original(*args, **kwargs)
        self.calls.look_for_others()
        if name not in ESTIMATES:
            return original(*args, **kwargs)
        with self._our_estimate(vae, *ESTIMATES[name]):
            if name == "encode":
                return original(*args, **kwargs)
            return self.calls.decoding(lambda: original(*args, **kwargs), lambda: self._sketch_of_z(vae, samples))

    def _sketch_of_z(self, vae: Any, z: Tensor) -> Tensor:
        """(B, C, h, w) in the first stage's own space -> (B, 8h, 8w, 3) in [0, 1], as `VAE.decode` gives it."""
        image = self.sketch(vae.first_stage_model.process_in(z))
        return (image * 0.5 + 0.5).movedim(1, -1).to(vae.output_device)

    @contextmanager
    def _our_estimate(self, vae: Any, attribute: str, part: Half) -> Iterator[None]:
        """The program makes room for what we predict; its own numbers are those of the whole picture.

        Not by `Patches`: it would keep the object, and with it a dropped model's weights.
        """
        current = getattr(vae, attribute)
        own = current.own if isinstance(current, Estimate) else current  # another thread's call, or a clone made in one
        setattr(vae, attribute, Estimate(own, functools.partial(self._estimate, vae, part)))
        try:
            yield
        finally:
            setattr(vae, attribute, own)

    def _estimate(self, vae: Any, part: Half, shape: Sequence[int], dtype: torch.dtype) -> float | None:
        """Bytes for one picture; the program decides by them how many it hands over at once.  None: not ours to say."""
        network, device = getattr(vae.first_stage_model, part, None), torch.device(vae.device)
        if network is None or len(shape) != 4:
            return None
        try:
            tiling = self.calls.tiling_for(network, part, dtype, device)
            program = graph_of(network, part)
            one = (1, program.channels_in, int(shape[2]), int(shape[3]))
            return None if tiling is None else planned(program, one, dtype, device, tiling).predicted_mb * float(MIB)
        except StepAsideError:
            return None
