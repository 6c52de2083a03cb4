"""Forge's engine, as far as a VAE is concerned; only one is ever loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import extra_networks, sd_models
from torch import nn

from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat
from sd_vae_kit.hosts.choice import vae_on_card
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library

TOLERANCE = 1e-4  # of scale and shift factors


class ForgeModels:
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
        """The engine; until the first job the web UI holds a stand-in without weights."""
        engine = getattr(getattr(sd_models, "model_data", None), "sd_model", None)
        return engine if getattr(engine, "forge_objects", None) is not None else None

    def all(self) -> list[Any]:
        current = self.current
        return [] if current is None else [current]

    def first_stage_of(self, model: Any) -> nn.Module | None:
        vae = getattr(getattr(model, "forge_objects", None), "vae", None)
        return getattr(vae, "first_stage_model", None)

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        model = self.current if model is None else model
        info = getattr(model, "sd_checkpoint_info", None)
        module = self.first_stage_of(model)
        if info is None or module is None:
            return None
        return Checkpoint(
            name=info.name_for_extra,
            path=Path(info.filename),
            latent_format=latent_format_of(module),
            preferred_vae=self._vae_on_card_of(info.filename),
        )

    def _vae_on_card_of(self, filename: str) -> str | None:
        """The VAE on a checkpoint's card; the web UI keeps a list there, text encoders among it."""
        card = extra_networks.get_user_metadata(filename)
        named = [Path(str(name)).name for name in card.get("vae_te") or ()] or [card.get("vae")]
        listed = {Path(entry.name).name for entry in self._library.entries if entry.state == "ok"}
        known = [name for name in named if name in listed or len(named) == 1]
        return vae_on_card(known[0], self._library, self._messages) if known else None


def latent_format_of(module: Any) -> LatentFormat:
    """The family by what the web UI does to a latent before it decodes it, which is affine for all that are known."""
    first = getattr(getattr(module, "decoder", None), "conv_in", None)
    channels = int(getattr(first, "in_channels", 0))
    try:
        zero, one = (module.process_out(torch.full((1, channels, 1, 1), value)) for value in (0.0, 1.0))
        shift, scale = float(zero.mean()), 1 / float((one - zero).mean())
    except (AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        shift, scale = 0.0, 1.0
    for known in FORMATS.values():
        difference = abs(known.scale_factor - scale) + abs(known.shift_factor - shift)
        if known.z_channels == channels and difference < TOLERANCE:
            return known
    return LatentFormat("unknown", "an unknown family", channels, scale, shift)
