"""What the pages ask of their backend: plain data in, plain data out, no tensor and no widget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.spec import Value
from sd_vae_kit.standalone.job import Snapshot, Txt2Img
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence


@dataclass(frozen=True)
class TopBar:
    """What the top bar shows.

    Attributes:
        checkpoints, checkpoint: Choices and the loaded one.
        vaes, vae: Choices, `Automatic` and `None` first, and the chosen one.
        active: Name of the VAE that is live.
        active_hash: First ten digits of its sha256, empty while unknown.
        reason: One sentence: why this one.
        notes: What to say in the list behind the names of files that are not ordinary VAEs, by name.
    """

    checkpoints: tuple[str, ...]
    checkpoint: str
    vaes: tuple[str, ...]
    vae: str
    active: str
    active_hash: str
    reason: Sentence
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def vae_choices(self) -> list[tuple[str, str]]:
        """(what is shown, name) of every VAE."""
        return [(f"{name} ({self.notes[name]})" if name in self.notes else name, name) for name in self.vaes]


@dataclass(frozen=True)
class VaeRow:
    """One file in the table of all VAEs."""

    name: str
    family: str
    kind: str
    size: str
    active: bool = False
    problem: str = ""


@dataclass(frozen=True)
class VaeFacts:
    """Everything known about one file; `problem` says why it cannot be used."""

    name: str
    rows: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Pasted:
    """What an infotext restores.

    Attributes:
        values: Field name of the job -> value, only for what the text says.
        notes: Sentences for the user, such as which VAE was chosen and why.
        missing: The catalogue's name of the text's VAE, if it is not here and can be installed.
    """

    values: Mapping[str, object]
    notes: tuple[str, ...]
    missing: str = ""


class VaesBackend(Protocol):
    """The VAE files.  Methods may raise `VaeKitError`; then nothing has changed."""

    def top_bar(self) -> TopBar:
        """What the top bar shows now."""

    def refresh(self) -> None:
        """Look for new and changed files."""

    def choose_checkpoint(self, name: str) -> None:
        """Load that checkpoint."""

    def choose(self, name: str) -> None:
        """Make the SD VAE setting `name`, and the VAE live that follows from it."""

    def rows(self) -> list[VaeRow]:
        """All VAE files, broken ones included."""

    def facts(self, name: str) -> Iterator[VaeFacts]:
        """What is known about a file at once, then again as its hash is worked out."""


class JobsBackend(Protocol):
    """Jobs and how far they are.  Methods may raise `VaeKitError`; then nothing has changed."""

    def start(self, tab: str, job: Txt2Img) -> None:
        """Begin a job; `watch` says how far it is."""

    def snapshot(self, tab: str) -> Snapshot:
        """How far the tab's latest job is."""

    def watch(self, tab: str) -> Iterator[Snapshot]:
        """The tab's job as it is, then again whenever something changed, until it has ended."""

    def interrupt(self) -> None:
        """End the running job after its current step."""

    def last_job(self, tab: str) -> Txt2Img | None:
        """What was asked for last in that tab."""

    def forecast(self, size: tuple[int, int], tiling: JobTiling) -> Sentence:
        """What will happen when a picture of (height, width) is decoded."""

    def picture_size(self, path: Path) -> tuple[int, int]:
        """(height, width) of a picture file as it will be read."""


class SettingsBackend(Protocol):
    """The settings."""

    def values(self) -> dict[str, Value]:
        """Every setting by key."""

    def change(self, values: Mapping[str, object]) -> None:
        """Check, apply and save settings.

        Raises:
            VaeKitError: A value does not fit, or the VAE that follows from it cannot be used; nothing has changed.
        """


class PastingBackend(Protocol):
    """Parameters of pictures.  Methods may raise `VaeKitError`; then nothing has changed."""

    def infotext_of(self, path: Path) -> str:
        """The parameters written in a picture."""

    def paste(self, text: str) -> Pasted:
        """Read an infotext, choose its VAE and return the values for the form."""


class PageBackend(Protocol):
    """The side behind the pages, by part of the page."""

    @property
    def vaes(self) -> VaesBackend:
        """The VAE files."""

    @property
    def jobs(self) -> JobsBackend:
        """Jobs and how far they are."""

    @property
    def settings(self) -> SettingsBackend:
        """The settings."""

    @property
    def pasting(self) -> PastingBackend:
        """Parameters of pictures."""

    def take_messages(self) -> list[Message]:
        """Lines for the user that came up since the last call."""
