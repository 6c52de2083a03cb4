"""The entry that a name means, whether it is the full one, a base name or a stem, and what is near a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.vaes.entry import Entry

NEAR_NAMES = 3


def entry_named(entries: Sequence[Entry], name: str) -> Entry:
    """The entry of that name.

    Args:
        entries: Where to look.
        name: As listed; or a base name, with or without suffix, that only one file has.

    Raises:
        VaeNotFoundError: None, or several; the message lists them, or names that are near.
    """
    for entry in entries:
        if entry.name == name:
            return entry
    wanted = name.replace("\\", "/").casefold()
    for short in (_same, _base_name, _stem, _stem_without_vae):
        matches = [entry for entry in entries if short(entry.name).casefold() == wanted]
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(entry.name for entry in matches)
            raise VaeNotFoundError(f"several VAEs are called {name}: {listed}; give the full name")
    raise VaeNotFoundError(f"there is no VAE {name!r}; {_near(wanted, entries)}")


def _same(name: str) -> str:
    return name


def _base_name(name: str) -> str:
    return re.sub(r"^\[[^\]]*\] ", "", name).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return PurePosixPath(_base_name(name)).stem


def _stem_without_vae(name: str) -> str:
    return re.sub(r"(?i)\.vae$", "", _stem(name))


def _near(wanted: str, entries: Sequence[Entry]) -> str:
    """What the user may have meant."""
    names = {key(entry.name).casefold(): entry.name for key in (_stem, _base_name, _same) for entry in entries}
    near = [names[match] for match in difflib.get_close_matches(wanted, names, NEAR_NAMES * 3, cutoff=0.5)]
    if near:
        return f"similar are {', '.join(list(dict.fromkeys(near))[:NEAR_NAMES])}"
    if entries:
        return f"there are {', '.join(entry.name for entry in entries[:NEAR_NAMES])}" + (
            f" and {len(entries) - NEAR_NAMES} more" if len(entries) > NEAR_NAMES else ""
        )
    return "the folders that were searched hold none"
