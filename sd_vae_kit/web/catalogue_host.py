"""What the services behind the catalogue's pages need: the app or web UI that runs them, and the files they know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sd_vae_kit.errors import OptionError, VaeNotFoundError
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes.catalogue import Catalogue, KnownVae
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library


class CatalogueHost(Protocol):
    """The stand-alone app or the web UI, as the catalogue's services see it."""

    @property
    def settings(self) -> Settings:
        """The values now."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The loaded model, None while there is none."""

    @property
    def active_vae(self) -> str:
        """Name of the live file, or "None"."""

    @property
    def card_folders(self) -> Sequence[Path]:
        """Folders of checkpoints, which are searched for A1111's cards."""

    def folder_for(self, known: KnownVae) -> Path:
        """Where an installed file of the catalogue goes."""

    def refresh(self) -> None:
        """List files that have come."""

    def apply_rules(self) -> None:
        """Make changed rules take effect."""

    def forget_precision(self) -> int:
        """Forget what VAEs needed to stay finite in half precision; returns how many halves that were."""

    def forbidden(self) -> str:
        """Why the user of the page may not write or open files; "" if they may."""


def refuse_if_forbidden(host: CatalogueHost) -> None:
    """Raise `OptionError` where the user of the page may change nothing."""
    if reason := host.forbidden():
        raise OptionError(reason)


@dataclass(frozen=True)
class KnownFiles:
    """VAE files, and what is known of them.

    Attributes:
        inspector: Says what files are; its library holds those that a user chooses among.
        history: Says which checkpoints a file was used with.
        tiny: Files of the TAESD family, where the web UI keeps them in a folder of their own.
    """

    inspector: Inspector
    history: History
    tiny: Library | None = None

    @property
    def library(self) -> Library:
        """The files that a user chooses among."""
        return self.inspector.library

    @property
    def catalogue(self) -> Catalogue:
        """Known VAEs, installed or not."""
        return self.inspector.finder.catalogue

    @property
    def libraries(self) -> tuple[Library, ...]:
        """Every library, the user's first."""
        return (self.library,) if self.tiny is None else (self.library, self.tiny)

    @property
    def entries(self) -> Iterator[Entry]:
        """The files of all libraries."""
        return (entry for library in self.libraries for entry in library.entries)

    def find(self, name: str) -> Entry | None:
        """The file of that name in the list."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def get(self, name: str) -> Entry:
        """The file of that name in the list.

        Raises:
            VaeNotFoundError: There is none.
        """
        entry = self.find(name)
        if entry is None:
            raise VaeNotFoundError(f"{name} is not installed; install it first.")
        return entry

    def hash_new_file(self, path: Path) -> None:
        """Work a new file's hash out, so that the list shows it at once."""
        for library in self.libraries:
            for entry in library.entries:
                if entry.path == path and entry.sha256 is None:
                    library.sha256(entry)
