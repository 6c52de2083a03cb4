"""Encodes and decodes as Forge calls them: `backend.patcher.vae.VAE` loads the model and cuts batches itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from backend import memory_management
from torch import Tensor

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.planning import graph_of, planned
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.hosts.a1111.sketch import PreviewSketch
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.units import MIB

VAE_CALLS = ("decode", "encode", "decode_tiled", "encode_tiled")
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


class ForgeCalls:
    """What happens around a call of `VAE.<name>(vae, samples)`.

    Args:
        interceptor: Runs the VAE, and knows whether the user stopped a decode.
        sketch: Stands in for a decode that was stopped.
        messages: Tell whose tiling is used.
    """

    def __init__(self, interceptor: VaeInterceptor, sketch: PreviewSketch, messages: HostMessages) -> None:
        self._interceptor = interceptor
        self._sketch = sketch
        self._messages = messages

    def __call__(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        vae, samples = args[:2]
        if memory_management.VAE_ALWAYS_TILED:
            line = "Never OOM tiles the VAE, which is not exact; VAE Kit's tiling steps aside."
            self._messages.notify_once(line, "warning")
            with self._interceptor.context.left_to_host():
                return original(*args, **kwargs)
        self._interceptor.say_who_tiles_instead()
        if name not in ESTIMATES:
            return original(*args, **kwargs)
        with self._our_estimate(vae, *ESTIMATES[name]):
            if name == "encode":
                return original(*args, **kwargs)
            return self._interceptor.decoding(
                functools.partial(original, *args, **kwargs), lambda: self._sketch_of_z(vae, samples)
            )

    def _sketch_of_z(self, vae: Any, z: Tensor) -> Tensor:
        """(B, C, h, w) in the first stage's own space -> (B, 8h, 8w, 3) in [0, 1], as `VAE.decode` gives it."""
        image = self._sketch.picture(vae.first_stage_model.process_in(z))
        return (image * 0.5 + 0.5).movedim(1, -1).to(vae.output_device)

    @contextmanager
    def _our_estimate(self, vae: Any, attribute: str, half: Half) -> Iterator[None]:
        """Let the web UI make room for what we predict; its own numbers are those of the whole picture.

        Not by `Patches`: it would keep the object, and with it a dropped model's weights.
        """
        current = getattr(vae, attribute)
        own = current.own if isinstance(current, Estimate) else current  # another thread's call, or a clone made in one
        setattr(vae, attribute, Estimate(own, functools.partial(self._estimate, vae, half)))
        try:
            yield
        finally:
            setattr(vae, attribute, own)

    def _estimate(self, vae: Any, half: Half, shape: Sequence[int], dtype: torch.dtype) -> float | None:
        """Bytes for one picture; the web UI decides by them how many it hands over at once.  None: not ours to say."""
        network, device = getattr(vae.first_stage_model, half, None), torch.device(vae.device)
        if network is None or len(shape) != 4:
            return None
        try:
            tiling = self._interceptor.settings.tiling_for(network, half, dtype, device)
            graph = graph_of(network, half)
            one = (1, graph.channels_in, int(shape[2]), int(shape[3]))
            return None if tiling is None else planned(graph, one, dtype, device, tiling).predicted_mb * float(MIB)
        except StepAsideError:
            return None
