"""The stand-alone app as VAE handling sees it: settings, the demo checkpoint and its live VAE."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone.demo_model import FAMILY, NAME
from sd_vae_kit.standalone.demo_vaes import device
from sd_vae_kit.vaes.call_gate import CallGate
from sd_vae_kit.vaes.host_protocol import Checkpoint, Level


@dataclass(frozen=True)
class Notice:
    """One line for the user."""

    text: str
    level: Level


class StandaloneHost:
    """Implements `Host`.

    Args:
        store: The settings.
        first_stage: The module whose weights are exchanged.
        forced_vae: `--vae-path`.

    Attributes:
        gate: Keeps the live weights from being exchanged while they are used.
    """

    def __init__(self, store: SettingsStore, first_stage: nn.Module, forced_vae: Path | None = None) -> None:
        self._store = store
        self._first_stage = first_stage
        self._forced_vae = forced_vae
        self._notices: list[Notice] = []
        self.gate = CallGate()

    @property
    def name(self) -> str:
        return "VAE Kit"

    @property
    def settings(self) -> Settings:
        return self._store.settings

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(NAME, None, FAMILY)

    @property
    def forced_vae(self) -> Path | None:
        return self._forced_vae

    @property
    def first_stage(self) -> nn.Module:
        return self._first_stage

    @property
    def can_replace_first_stage(self) -> bool:
        return True

    def replace_first_stage(self, module: nn.Module) -> None:
        self._first_stage = module.to(device(), torch.float32)

    def vae_writing(self) -> AbstractContextManager[None]:
        return self.gate.writing()

    def on_vae_changed(self) -> None:
        """Nothing is remembered about live weights."""

    def notify(self, message: str, level: Level = "info") -> None:
        self._notices.append(Notice(message, level))

    def take_notices(self) -> list[Notice]:
        """Lines for the user since the last call."""
        taken, self._notices = self._notices, []
        return taken
