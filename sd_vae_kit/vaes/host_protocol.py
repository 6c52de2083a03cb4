"""What VAE handling may ask of the web UI it runs in.  Hosts implement it; nothing below them knows more of a host."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import nn

from sd_vae_kit.core.networks.latent_format import LatentFormat
from sd_vae_kit.settings.sections import Settings

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Checkpoint:
    """The diffusion model that is loaded.

    Attributes:
        name: As the host's checkpoint dropdown shows it.
        path: Its file; None for the demo model.
        latent_format: The latent space its sampler works in.
        preferred_vae: VAE name from the checkpoint's card or the host's per-checkpoint metadata, if any.
    """

    name: str
    path: Path | None
    latent_format: LatentFormat
    preferred_vae: str | None = None


class Host(Protocol):
    """One running program."""

    @property
    def name(self) -> str:
        """Shown to users: "A1111 1.10.1", "VAE Kit"."""

    @property
    def settings(self) -> Settings:
        """The values now; read when used, never kept."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The loaded model, None while there is none."""

    @property
    def forced_vae(self) -> Path | None:
        """A VAE named on the command line (`--vae-path`), which beats every rule."""

    @property
    def first_stage(self) -> nn.Module | None:
        """The live VAE module of the loaded model, in any layout `core.detect` knows."""

    @property
    def can_replace_first_stage(self) -> bool:
        """Whether a VAE of another architecture may take the live module's place."""

    def replace_first_stage(self, module: nn.Module) -> None:
        """Make `module` the live VAE; only called when `can_replace_first_stage`."""

    def vae_writing(self) -> AbstractContextManager[None]:
        """Hold while weights change: waits for running encodes and decodes, keeps new ones waiting."""

    def on_vae_changed(self) -> None:
        """Called after the live weights changed: anything packed or remembered about them is stale."""

    def notify(self, message: str, level: Level = "info") -> None:
        """Show one line to the user."""
