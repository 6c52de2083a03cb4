"""Where encodes and decodes run in Forge; room is asked for by our prediction, its inexact tiling is a last resort."""

from __future__ import annotations

import torch
from backend import memory_management
from torch import Tensor, nn

from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.errors import NoMemoryError
from sd_vae_kit.hosts.a1111.environment import job_is_stopped, policy_beside_own_options, show_beside_bar
from sd_vae_kit.hosts.call_environment import PlainEnvironment
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.parts import LoadedModels, live_vae


class ForgeEnvironment(PlainEnvironment):
    """A `CallEnvironment` by `backend.memory_management`.

    Args:
        options: The values now.
        loaded: The models.
        messages: Hear of memory that was not enough.
    """

    def __init__(self, options: HostOptions, loaded: LoadedModels, messages: HostMessages) -> None:
        super().__init__(options)
        self._loaded = loaded
        self._messages = messages

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype:
        """The web UI casts the input to what it wants, and its layers cast their weights to the input's."""
        return x.dtype

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        vae = self._loaded.current.forge_objects.vae
        dtype: torch.dtype = vae.vae_dtype
        return torch.device(vae.device), dtype

    def policy(self) -> PrecisionPolicy:
        return policy_beside_own_options(self._options)

    def make_room(self, needed: int) -> bool:
        """Unload other models, as the web UI does before it loads one."""
        if not self._options.features.has("room"):
            return False
        device = memory_management.vae_device()
        if device.type == "cpu":
            return False
        loaded, vae = memory_management.current_loaded_models, live_vae(self._loaded)
        kept = [model for model in loaded if model.model.model is vae]
        before = len(loaded)
        memory_management.free_memory(needed * 1.1, device, keep_loaded=kept)
        return len(memory_management.current_loaded_models) < before

    def is_stopped(self) -> bool:
        return job_is_stopped(self._options.features)

    def show_progress(self, text: str | None) -> None:
        show_beside_bar(text, self._options.features)

    def out_of_memory(self, error: NoMemoryError) -> Exception:
        """As the web UI's own error: it then tiles in its way, which is not exact but gives a picture."""
        self._messages.notify(str(error), "warning")
        kind: type[Exception] = memory_management.OOM_EXCEPTION
        return kind(str(error))
