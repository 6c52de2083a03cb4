"""Sentences in pieces that a web UI can translate: what is language apart from names, numbers and conditions.

A web UI replaces the text of an element if all of it is a key of the chosen language's file (localizations/).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.settings.sections import AUTOMATIC, NONE

LABELS = sorted((family.label for family in FORMATS.values()), key=len, reverse=True)
CONDITIONS = r"\((?:always|(?:checkpoint|glob|family|folder|pass) [^)]*)\)"
PATTERNS = (
    r'"[^"]*"',  # what the catalogue calls a VAE
    r"(?<=its hash is that of )[^)]+",
    r"(?<=its weights are those of )[^)]+",
    *map(re.escape, LABELS),
    rf"\d+ {CONDITIONS}",  # a rule
    CONDITIONS,
    r"\b[0-9a-f]{8,64}\b",
    r"\b\d+\b",
)


def marked(text: str, names: Iterable[str] = ()) -> str:
    """A sentence as HTML: words in `span`, names and numbers in `b`.

    Args:
        text: For users.
        names: Files and checkpoints that may occur in it.
    """
    return "".join(f"<{tag}>{escape(part)}</{tag}>" for tag, part in pieces(text, names))


def pieces(text: str, names: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(tag, text) one after the other; together the sentence."""
    known = sorted({name for name in names if name and name not in (NONE, AUTOMATIC)}, key=len, reverse=True)
    pattern = "|".join([*(rf"(?<![\w.]){re.escape(name)}(?!\w)" for name in known), *PATTERNS])
    parts = re.split(f"({pattern})", text)
    return [("b" if i % 2 else "span", part) for i, part in enumerate(parts) if part]
