"""One line of the list of installed and known VAEs, as plain data that pages can show; `gallery` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = ("all", "installed", "can be installed", "only recognised")


@dataclass(frozen=True)
class GalleryRow:
    """One VAE as plain data.

    Attributes:
        key: What buttons hand back: the library's name of a file, or the catalogue's of a known VAE.
        name: What it is called.
        is_installed: Whether it is a file of the library.
        family: Label, or what it may be.
        families: Names for filtering.
        known_by: What told the family of a file, in words; "" where it is undecided or nothing is installed.
        size: Bytes, None where not known.
        digits: First ten of the sha256, "" where not known.
        precision: What it needs.
        origin: Where it is from.
        licence: As published.
        used_by: Checkpoints and rules that lead to it.
        note: What it is good for, or what is wrong with it.
        can_install: Whether it can be fetched.
        cautions: Sentences to agree to before.
        is_active: Whether it is live now.
        problem: Why a file cannot be used.
    """

    key: str
    name: str
    is_installed: bool
    family: str
    families: tuple[str, ...]
    size: int | None
    digits: str
    precision: str = ""
    origin: str = ""
    licence: str = ""
    used_by: tuple[str, ...] = ()
    note: str = ""
    can_install: bool = False
    cautions: tuple[str, ...] = ()
    known_by: str = ""
    is_active: bool = False
    problem: str = ""

    @property
    def group(self) -> str:
        """One of `SHOWN`."""
        if self.is_installed:
            return "installed"
        return "can be installed" if self.can_install else "only recognised"


def filtered(found: Sequence[GalleryRow], query: str = "", family: str = "", shown: str = "all") -> list[GalleryRow]:
    """Rows that have every word of the query somewhere, the family, and belong to the group."""
    words = query.lower().split()
    return [
        row
        for row in found
        if all(word in _text(row) for word in words)
        and (not family or family in row.families)
        and shown in ("all", row.group)
    ]


def _text(row: GalleryRow) -> str:
    parts = (row.name, row.family, row.digits, row.precision, row.origin, row.licence, row.note, *row.used_by)
    return " ".join(parts).lower()
