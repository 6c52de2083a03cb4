"""What each VAE needed to stay finite, kept on disk so that the next picture pays nothing.

A small JSON file by the weights' fingerprint.  It may be deleted at any time, or be damaged: then what it said is found
out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from sd_vae_kit.core.engine.ranges import MAX_SHIFT, PrecisionFixes
from sd_vae_kit.state.json_store import JsonFormat, JsonStore
from sd_vae_kit.wording import Sentence

MOST = 500  # VAEs remembered; the oldest are forgotten first

Found: TypeAlias = dict[str, dict[str, PrecisionFixes]]  # by fingerprint and part, the newest last


def _decoded(content: Mapping[str, object]) -> Found:
    """Raises ValueError, TypeError, KeyError or AttributeError for a record that is not one."""
    vaes: Mapping[str, Mapping[str, dict[str, object]]] = content["vaes"]  # type: ignore[assignment]
    return {str(name): {str(part): _needs(plain) for part, plain in parts.items()} for name, parts in vaes.items()}


def _encoded(found: Found) -> dict[str, object]:
    return {"vaes": {name: {part: _plain(fixes) for part, fixes in parts.items()} for name, parts in found.items()}}


def _plain(fixes: PrecisionFixes) -> dict[str, object]:
    return {"shifts": fixes.shifts, "fp32": sorted(fixes.fp32), "whole": fixes.whole}


def _needs(plain: dict[str, object]) -> PrecisionFixes:
    shifts, names, whole = plain["shifts"], plain["fp32"], plain["whole"]
    if not isinstance(shifts, dict) or not isinstance(names, list) or whole not in ("", "fp32", "bf16"):
        raise ValueError(f"not a record: {plain}")
    numbers = {str(name): int(bits) for name, bits in shifts.items()}
    if any(abs(bits) > MAX_SHIFT for bits in numbers.values()):
        raise ValueError(f"an exponent is beyond {MAX_SHIFT}")
    return PrecisionFixes(numbers, {str(name) for name in names}, str(whole))


FORMAT: JsonFormat[Found] = JsonFormat(
    _decoded,
    _encoded,
    dict,
    version=("format", 1),
    damaged="what VAEs needed ({path}) is damaged and is found out anew: {error}",
    unwritable="what VAEs needed cannot be kept in {path}: {error}",
    indent=1,
)


class PrecisionFixesFile:
    """Fixes by fingerprint and part; safe to use from several threads and programs.

    Args:
        path: The file, which need not exist; None: remember only as long as this object lives.
    """

    def __init__(self, path: Path | None) -> None:
        self._store = JsonStore(path, FORMAT)

    def get(self, fingerprint: str, part: str) -> PrecisionFixes:
        """What is known about the "encoder" or "decoder" of these weights; a copy."""
        return self._store.value.get(fingerprint, {}).get(part, PrecisionFixes()).copy()

    def put(self, fingerprint: str, part: str, fixes: PrecisionFixes) -> None:
        """Remember; a folder that cannot be written costs only time and is logged."""
        if self.get(fingerprint, part) != fixes:
            kept = fixes.copy()
            self._store.remember(lambda found: _with_newest(found, fingerprint, part, kept))

    def forget(self) -> int:
        """Forget everything; how many VAEs that were."""
        count = len(self._store.reload())
        self._store.clear()
        return count

    @property
    def count(self) -> int:
        """How many VAEs something is known about."""
        return len(self._store.reload())


def _with_newest(found: Found, fingerprint: str, part: str, fixes: PrecisionFixes) -> Found:
    """The fixes with these as the latest, without those that are too many."""
    parts = {**found.get(fingerprint, {}), part: fixes}
    others = [(name, known) for name, known in found.items() if name != fingerprint]
    return dict([*others, (fingerprint, parts)][-MOST:])


def forgotten_line(count: int) -> Sentence:
    """What to tell the user after `PrecisionFixesFile.forget`; encoders and decoders are counted apart."""
    if not count:
        return Sentence.of("There was nothing to forget.")
    many = "Forgotten: what {} encoders or decoders needed."
    return Sentence.of("Forgotten: what {} encoder or decoder needed." if count == 1 else many, count)
