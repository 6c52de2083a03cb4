"""Sentences for users in parts, so that words can be translated and numbers and names cannot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A run of words that can be translated, or a number or name that cannot, and the comma after it."""

    text: str
    is_words: bool = True
    after: str = ""
