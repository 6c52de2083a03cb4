"""One line for the user on a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One line for the user; `level` is "info", "warning" or "error"."""

    text: str
    level: str = "info"
