"""The stand-alone app, as the services behind the catalogue's pages see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.standalone.folders import Folders
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.vae_selection import VaeSelection
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library


@dataclass(frozen=True)
class StandaloneCatalogueHost:
    """Implements `CatalogueHost`."""

    host: StandaloneHost
    folders: Folders
    library: Library
    selection: VaeSelection
    fixes: PrecisionFixesFile

    @property
    def settings(self) -> Settings:
        return self.host.settings

    @property
    def checkpoint(self) -> Checkpoint:
        return self.host.checkpoint

    @property
    def active_vae(self) -> str:
        return self.selection.live_entry.name

    @property
    def card_folders(self) -> Sequence[Path]:
        return (self.folders.own_checkpoints, *self.folders.checkpoints)

    def folder_for(self, known: KnownVae) -> Path:
        return self.folders.own_tiny_vaes if known.kind == "tiny" else self.folders.own_vaes

    def refresh(self) -> None:
        self.library.refresh()

    def apply_rules(self) -> None:
        self.selection.choose()

    def forget_precision(self) -> int:
        return self.fixes.forget()

    def forbidden(self) -> str:
        return ""
