"""What each VAE needed to stay finite, kept on disk so that the next picture pays nothing.

A small JSON file by the weights' fingerprint.  It may be deleted at any time, or be damaged: then what it said is found
out again.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from sd_vae_kit.core.engine.ranges import MAX_SHIFT, PrecisionFixes

FORMAT = 1
MOST = 500  # VAEs remembered; the oldest are forgotten first

_log = logging.getLogger(__name__)


@dataclass
class PrecisionFixesFile:
    """Fixes by fingerprint and part; safe to use from several threads and programs, the last writer wins.

    Attributes:
        path: The file, which need not exist; None: remember only as long as this object lives.
    """

    path: Path | None
    _found: dict[str, dict[str, PrecisionFixes]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def get(self, fingerprint: str, part: str) -> PrecisionFixes:
        """What is known about the "encoder" or "decoder" of these weights; a copy."""
        with self._lock:
            return self._read().get(fingerprint, {}).get(part, PrecisionFixes()).copy()

    def put(self, fingerprint: str, part: str, needs: PrecisionFixes) -> None:
        """Remember; a folder that cannot be written costs only time and is logged."""
        with self._lock:
            found = self._read()
            if found.get(fingerprint, {}).get(part, PrecisionFixes()) == needs:
                return
            parts = {**found.pop(fingerprint, {}), part: needs.copy()}
            found[fingerprint] = parts  # now the newest
            for oldest in list(found)[: max(0, len(found) - MOST)]:
                del found[oldest]
            self._write(found)

    def forget(self) -> int:
        """Forget everything; how many VAEs that were."""
        with self._lock:
            count = len(self._read())
            self._found = {}
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            return count

    @property
    def count(self) -> int:
        """How many VAEs something is known about."""
        with self._lock:
            return len(self._read())

    def _read(self) -> dict[str, dict[str, PrecisionFixes]]:
        if self._found is None:
            self._found = {} if self.path is None else _parsed(self.path)
        return self._found

    def _write(self, found: dict[str, dict[str, PrecisionFixes]]) -> None:
        if self.path is None:
            return
        vaes = {name: {part: _plain(needs) for part, needs in parts.items()} for name, parts in found.items()}
        temporary = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"format": FORMAT, "vaes": vaes}, indent=1), "utf-8")
            temporary.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            _log.warning("what VAEs needed cannot be kept in %s: %s", self.path, error)


def _plain(needs: PrecisionFixes) -> dict[str, object]:
    return {"shifts": needs.shifts, "fp32": sorted(needs.fp32), "whole": needs.whole}


def _parsed(path: Path) -> dict[str, dict[str, PrecisionFixes]]:
    """What the file says; nothing if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {
            str(name): {str(part): _needs(plain) for part, plain in parts.items()}
            for name, parts in content["vaes"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _log.warning("what VAEs needed (%s) is damaged and is found out anew: %s", path, error)
        return {}


def _needs(plain: dict[str, object]) -> PrecisionFixes:
    shifts, names, whole = plain["shifts"], plain["fp32"], plain["whole"]
    if not isinstance(shifts, dict) or not isinstance(names, list) or whole not in ("", "fp32", "bf16"):
        raise ValueError(f"not a record: {plain}")
    numbers = {str(name): int(bits) for name, bits in shifts.items()}
    if any(abs(bits) > MAX_SHIFT for bits in numbers.values()):
        raise ValueError(f"an exponent is beyond {MAX_SHIFT}")
    return PrecisionFixes(numbers, {str(name) for name in names}, str(whole))


def forgotten_line(count: int) -> str:
    """What to tell the user after `PrecisionFixesFile.forget`; encoders and decoders are counted apart."""
    if not count:
        return "There was nothing to forget."
    return f"Forgotten: what {count} encoder{'s' if count > 1 else ''} or decoder{'s' if count > 1 else ''} needed."
