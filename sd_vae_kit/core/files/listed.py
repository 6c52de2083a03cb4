"""Names in a message."""

from __future__ import annotations

from collections.abc import Collection


def listed(names: Collection[str], limit: int = 4) -> str:
    """The first names, and how many more there are: "a, b and 3 more"."""
    shown = ", ".join(list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
