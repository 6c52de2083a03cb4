"""HTML from plain data; every text that is shown goes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Piece


def status_lines(messages: Iterable[Message]) -> str:
    """One line per message, coloured by its level; nothing at all if there is none."""
    lines = [f'<div class="vk-{escape(m.level)}" role="status">{escape(m.text)}</div>' for m in messages]
    return f'<div class="vk-status vk-shown">{"".join(lines)}</div>' if lines else ""


def forecast_line(pieces: Iterable[Piece]) -> str:
    """The sentence on what will happen, its numbers set apart."""
    parts = [escape(p.text) if p.is_words else f"<b>{escape(p.text)}</b>{escape(p.after)}" for p in pieces]
    return f'<div class="vk-forecast vk-shown">{" ".join(parts)}</div>'
