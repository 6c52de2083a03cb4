"""One file of a library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.vaes.library_cache import Facts


@dataclass(frozen=True, kw_only=True)
class Entry(Facts):
    """One file of the library as it was when the list was made.

    Attributes:
        name: Path below its folder with `/` and suffix, unique in the library; what settings and infotexts hold.
        path: Where it lies.
        size, mtime_ns: Of the file that was looked at.
        state, reason, kind, ...: As in `Facts`.
        sha256, fingerprint: `None` until they were computed once.
    """

    name: str
    path: Path
    size: int
    mtime_ns: int
    sha256: str | None = None
    fingerprint: str | None = None
