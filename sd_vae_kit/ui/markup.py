"""HTML from plain data; every text that is shown goes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Piece, Sentence


def status_lines(messages: Iterable[Message]) -> str:
    """One line per message, coloured by its level; nothing at all if there is none."""
    lines = [f'<div class="vk-{escape(m.level)}" role="status">{marked(m.text)}</div>' for m in messages]
    return f'<div class="vk-status vk-shown">{"".join(lines)}</div>' if lines else ""


def forecast_line(forecast: Sentence) -> str:
    """The sentence on what will happen, its numbers set apart."""
    return f'<div class="vk-forecast vk-shown">{marked(forecast)}</div>'


def marked(text: str) -> str:
    """A sentence as HTML: words in `span`, names and numbers in `b`; a plain text as it is.

    A web UI translates an element whose whole text is a key of the chosen language's file (localizations/).  So spaces
    stay outside of the elements.
    """
    return "".join(map(_element, text.pieces)) if isinstance(text, Sentence) else escape(text)


def _element(piece: Piece) -> str:
    if not piece.is_words:
        return f"<b>{escape(piece.text)}</b>"
    words = piece.text.strip()
    if not any(map(str.isalpha, words)):  # a comma has no translation
        return escape(piece.text)
    before, _, after = piece.text.partition(words)
    return f"{before}<span>{escape(words)}</span>{after}"
