"""What A1111 itself notes of the live VAE, so that its functions stay right if ours are taken away."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from modules import sd_vae
from torch import Tensor

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.hosts.a1111.calls import VAE_CALLS
from sd_vae_kit.hosts.guarded_calls import GuardedCalls
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.vaes.swap import Active, Swapper

Weights = Mapping[str, Tensor]


class LiveVaeRecords:
    """Globals of `modules.sd_vae` and attributes of the model.

    Args:
        guarded: Replaces the model's calls.
        interceptor: Replaces the forwards of its VAE.
    """

    def __init__(self, guarded: GuardedCalls, interceptor: VaeInterceptor) -> None:
        self._guarded = guarded
        self._interceptor = interceptor
        self._own_states: weakref.WeakKeyDictionary[Any, tuple[Weights, dict[str, Tensor]]]
        self._own_states = weakref.WeakKeyDictionary()

    def record(self, model: Any, swapper: Swapper, active: Active) -> None:
        """Tell the web UI what is live in a model, in its own words."""
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None
        sd_vae.base_vae = self._own_state(model, swapper) if entry else None
        sd_vae.checkpoint_info = model.sd_checkpoint_info if entry else None
        model.base_vae, model.loaded_vae_file = sd_vae.base_vae, sd_vae.loaded_vae_file
        self._guarded.guard(model, VAE_CALLS)
        self._interceptor.install()

    def _own_state(self, model: Any, swapper: Swapper) -> dict[str, Tensor]:
        """The checkpoint's own VAE under the live module's names, sharing memory with what the swapper remembers."""
        own = swapper.own_weights()
        known, state = self._own_states.get(model, (None, {}))
        if known is not own:
            live = LiveWeights(model.first_stage_model)
            named = {live.detection.names[name]: own[name] for name in live.tensors}
            state = {**model.first_stage_model.state_dict(), **named}
            self._own_states[model] = (own, state)
        return state
