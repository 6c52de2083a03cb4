"""What the catalogue's and the rules' part of the VAE tab asks of its backend: plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.web.message import Message


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
    why: str


class CatalogueBackend(Protocol):
    """The side behind the pages.  Methods may raise `VaeKitError`; then nothing has changed."""

    def families(self) -> Sequence[tuple[str, str]]:
        """(label, name) of every family, for the filter."""

    def rows(self) -> list[GalleryRow]:
        """Installed and known VAEs."""

    def install(self, key: str, accepted: bool) -> None:
        """Begin to fetch a known VAE; how far it is comes from `watch`."""

    def is_missing(self, key: str) -> bool:
        """Whether a known VAE is not among the installed files."""

    def install_tiny(self) -> str:
        """Begin to fetch TAESD's encoder and decoder for the loaded model's family; one line about what began."""

    def tiny_label(self) -> str:
        """The family that `install_tiny` is for, as users call it; "" if there is no TAESD for it."""

    def cancel(self) -> None:
        """Stop every download."""

    def installing(self) -> InstallView:
        """Downloads as they are now."""

    def watch(self) -> Iterator[InstallView]:
        """Downloads as they are, then again whenever something changed, until none runs."""

    def verify(self, key: str) -> Iterator[InstallView]:
        """Read an installed file again and compare it with what is known: how far it is, at last what came of it."""

    def notice(self) -> str:
        """What cannot be done here, and why; "" if everything can."""

    def reveal(self, key: str) -> Message:
        """Show an installed file in the system's file manager."""

    def forget_precision(self) -> Message:
        """Forget what VAEs needed to stay finite in half precision."""

    def rules_text(self) -> str:
        """The rules file."""

    def save_rules(self, text: str) -> Message:
        """Check and save the rules file, and apply it."""

    def import_cards(self, text: str) -> tuple[str, Message]:
        """`text` with rules for the checkpoints' cards appended; nothing is saved."""

    def passes(self) -> Sequence[str]:
        """What a rule can be for, the ordinary picture first."""

    def explain(self, text: str, run: str) -> list[RuleLine]:
        """Each rule of `text` for the loaded checkpoint and a pass."""
