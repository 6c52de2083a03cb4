"""The models that A1111 and its relatives keep loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import extra_networks, sd_models
from torch import nn

from sd_vae_kit.hosts.choice import vae_on_card
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.model_facts import latent_format_of
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library


class A1111Models:
    """`modules.sd_models.model_data`.

    Args:
        library: Where the VAE on a checkpoint's card is looked up.
        messages: Hear of a card that names none.
    """

    def __init__(self, library: Library, messages: HostMessages) -> None:
        self._library = library
        self._messages = messages

    @property
    def current(self) -> Any:
        return getattr(getattr(sd_models, "model_data", None), "sd_model", None)

    def all(self) -> list[Any]:
        loaded = list(getattr(getattr(sd_models, "model_data", None), "loaded_sd_models", ()))
        current = self.current
        return loaded if current is None or current in loaded else [*loaded, current]

    def first_stage_of(self, model: Any) -> nn.Module | None:
        return getattr(model, "first_stage_model", None)

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        info = getattr(model, "sd_checkpoint_info", None)
        path = file or getattr(info, "filename", None)
        if path is None:
            return None
        flags = {flag: bool(getattr(model, flag, False)) for flag in ("is_sd3", "is_sdxl")}
        card = extra_networks.get_user_metadata(path)
        return Checkpoint(
            name=getattr(info, "name_for_extra", None) or Path(path).stem,
            path=Path(path),
            latent_format=latent_format_of(flags),
            preferred_vae=vae_on_card(card.get("vae"), self._library, self._messages),
        )
