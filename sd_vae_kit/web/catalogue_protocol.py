"""What the catalogue's and the rules' part of the VAE tab asks of its backend: plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence


@dataclass(frozen=True)
class InstallView:
    """Downloads as they are now, or a file being verified.

    Attributes:
        lines: One per download since the start, the latest last.
        fraction: How far the running one is, None where its length is unknown or nothing runs.
        is_running: Whether any is.
    """

    lines: tuple[Message, ...] = ()
    fraction: float | None = None
    is_running: bool = False


@dataclass(frozen=True)
class RuleLine:
    """One rule explained: its conditions and VAE, whether it decides, and why it did or did not match."""

    number: int
    conditions: str
    vae: str
    decides: bool
    why: Sentence


class GalleryBackend(Protocol):
    """The list of installed and known VAEs."""

    def families(self) -> Sequence[tuple[str, str]]:
        """(label, name) of every family, for the filter."""

    def rows(self) -> list[GalleryRow]:
        """Installed and known VAEs."""

    def is_missing(self, key: str) -> bool:
        """Whether a known VAE is not among the installed files."""


class DownloadsBackend(Protocol):
    """What is being installed.  Methods may raise `VaeKitError`; then nothing has changed."""

    def install(self, key: str, accepted: bool) -> None:
        """Begin to fetch a known VAE; `watch` says how far it is."""

    def install_tiny(self) -> Sentence:
        """Begin to fetch TAESD's encoder and decoder for the loaded model's family; returns one line on what began."""

    def tiny_label(self) -> str:
        """The family that `install_tiny` is for, as users call it; "" if there is no TAESD for it."""

    def cancel(self) -> None:
        """Stop every download."""

    def installing(self) -> InstallView:
        """Downloads as they are now."""

    def watch(self) -> Iterator[InstallView]:
        """Downloads as they are, then again whenever something changed, until none runs."""


class FilesBackend(Protocol):
    """What can be done with an installed file.  Methods may raise `VaeKitError`; then nothing has changed."""

    def verify(self, key: str) -> Iterator[InstallView]:
        """Read an installed file again and compare it with what is known: how far it is, at last what came of it."""

    def reveal(self, key: str) -> Message:
        """Show an installed file in the system's file manager."""


class RulesBackend(Protocol):
    """The user's rules.  Methods may raise `VaeKitError`; then nothing has changed."""

    def text(self) -> str:
        """The rules file."""

    def save(self, text: str) -> Message:
        """Check and save the rules file, and apply it."""

    def import_cards(self, text: str) -> tuple[str, Message]:
        """`text` with rules for the checkpoints' cards appended; nothing is saved."""

    def passes(self) -> Sequence[str]:
        """What a rule can be for, the ordinary picture first."""

    def explain(self, text: str, run: str) -> list[RuleLine]:
        """Each rule of `text` for the loaded checkpoint and a pass."""


class CatalogueBackend(Protocol):
    """The side behind the pages, by section of the tab."""

    @property
    def gallery(self) -> GalleryBackend:
        """The list."""

    @property
    def downloads(self) -> DownloadsBackend:
        """What is being installed."""

    @property
    def files(self) -> FilesBackend:
        """What can be done with an installed file."""

    @property
    def rules(self) -> RulesBackend:
        """The user's rules."""

    def notice(self) -> str:
        """What cannot be done here, and why; "" if everything can."""

    def forget_precision(self) -> Message:
        """Forget what VAEs needed to stay finite in half precision."""
