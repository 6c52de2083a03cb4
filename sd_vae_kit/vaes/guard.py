"""Whose VAE a file is, found out before it is put to use, and what to choose instead.  docs/family-guard.md explains.

The cheapest certain answer counts: the catalogue's hash, known weights, what the file says of itself, a try on a small
picture.  What was found is kept in a file of its own, which may be deleted or damaged at any time.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from sd_vae_kit.core.family import tell_family
from sd_vae_kit.core.files.family_of_header import fitting_families
from sd_vae_kit.core.files.identity import weight_sketches_match
from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.core.vae import VaeWeights
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.state.json_store import JsonFormat, JsonStore
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.library_cache import Identity
from sd_vae_kit.wording import NOTHING, Sentence

MARKS = Path(__file__).with_name("family_marks.json")
SETTLED_NS = 2_000_000_000  # a file that changed less than this before it was looked at may have changed again unseen

How = Literal["hash", "weights", "file", "behaviour", "channels", "undecided"]
State = Literal["fits", "unsure", "wrong", "impossible"]


@dataclass(frozen=True)
class Finding:
    """Whose VAE a file is.

    Attributes:
        family: A name in `FORMATS`, or of a family this program does not run; "sd1|sdxl" where it stayed undecided.
        how: What told: the catalogue's hash, known weights, the file itself, a try, its channels alone, or nothing.
        known_as: Name of the catalogue's or library's VAE that it equals; "" if none.
    """

    family: str
    how: How
    known_as: str = ""

    @property
    def is_certain(self) -> bool:
        """Whether one family is left."""
        return bool(self.family) and "|" not in self.family

    @property
    def sentence(self) -> Sentence:
        """How it is known, for a user."""
        return {
            "hash": Sentence.of("its hash is that of {}", self.known_as),
            "weights": Sentence.of("its weights are those of {}", self.known_as),
            "file": Sentence.of("the file says so"),
            "behaviour": Sentence.of("tried on a small picture"),
            "channels": Sentence.of("by its number of latent channels"),
            "undecided": Sentence.of("it could not be told which"),
        }[self.how]

    @property
    def label(self) -> Sentence:
        """What to call the family; one that VAE Kit does not run by its bare name."""
        names = split_family(self.family)
        if not names:
            return Sentence.of("unknown")
        known = set(names) <= FORMATS.keys()
        return Sentence.joined(" or ", [FORMATS[name].label for name in names] if known else [self.family])


@dataclass(frozen=True)
class Verdict:
    """Whether a VAE may serve a checkpoint.

    Attributes:
        state: "impossible" (other channels), "wrong" (another family), "unsure" or "fits".
        finding: Whose VAE it is.
        message: One line for the user; "" if it fits.
        installed: Names of library files of the right family.
        available: Name of the catalogue's VAE to install, "" if one is installed or none is known.
    """

    state: State
    finding: Finding
    message: Sentence = NOTHING
    installed: tuple[str, ...] = ()
    available: str = ""


@dataclass(frozen=True)
class _Mark:
    """The weights of a known VAE."""

    name: str
    family: str
    identity: Identity


def _decoded(content: Mapping[str, object]) -> dict[str, Finding]:
    """Raises ValueError, TypeError or AttributeError for an entry that is not one."""
    return {str(key): _finding(**values) for key, values in content["found"].items()}  # type: ignore[attr-defined]


def _finding(family: str, how: str, known_as: str) -> Finding:
    for possible in get_args(How):
        if how == possible and isinstance(family, str) and isinstance(known_as, str):
            return Finding(family, possible, known_as)
    raise ValueError(f"not a finding: {family!r}, {how!r}, {known_as!r}")


def _encoded(found: dict[str, Finding]) -> dict[str, object]:
    return {"found": {key: asdict(finding) for key, finding in found.items()}}


def _still_there(found: dict[str, Finding]) -> dict[str, Finding]:
    """Findings about files that were not deleted."""
    return {key: finding for key, finding in found.items() if os.path.exists(key.split("|")[0])}  # noqa: PTH110


CACHE: JsonFormat[dict[str, Finding]] = JsonFormat(_decoded, _encoded, dict, version=("format", 1))


class FamilyGuard:
    """Finds out families and remembers them; safe to use from several threads.

    Args:
        library: Where hashes and identities come from, and the files to offer.
        cache_file: What was found, by path, size and time.
        known: The catalogue.
    """

    def __init__(self, library: Library, cache_file: Path, known: Catalogue | None = None) -> None:
        self._library = library
        self._catalogue = known or catalogue()
        self._found = JsonStore(cache_file, CACHE)

    def check(
        self, entry: Entry, checkpoint: Checkpoint, settings: GuardSettings, weights: VaeWeights | None = None
    ) -> Verdict:
        """Judge a file before it is put to use.

        Args:
            entry: The file.
            checkpoint: The loaded model.
            settings: Which ways of finding out may be used.
            weights: The file's, if they are at hand; they are read where needed otherwise.

        Raises:
            VaeKitError: The file cannot be read.
        """
        needed = checkpoint.latent_format
        if entry.z_channels and entry.z_channels != needed.z_channels:
            return self._impossible(entry, checkpoint)
        finding = self.identify(entry, settings, weights)
        if not finding.is_certain:
            if needed.name not in split_family(finding.family):
                return self._wrong(entry, finding, checkpoint)
            message = Sentence.of(
                "{} may be a VAE for {}, {}; if colours are off, choose another for {}.",
                entry.name,
                finding.label,
                finding.sentence,
                needed.label,
            )
            return Verdict("unsure", finding, message)
        return Verdict("fits", finding) if finding.family == needed.name else self._wrong(entry, finding, checkpoint)

    def identify(self, entry: Entry, settings: GuardSettings, weights: VaeWeights | None = None) -> Finding:
        """Whose VAE it is; from the cache if the file is what it was and the same ways are allowed.

        Raises:
            VaeKitError: The file cannot be read.
        """
        key = f"{entry.path}|{entry.size}|{entry.mtime_ns}|{_ways(settings)}"
        if known := self._found.value.get(key):
            return known
        started = time.time_ns()
        finding = next(found for found in self._steps(entry, settings, weights) if found)
        if abs(started - entry.mtime_ns) >= SETTLED_NS:
            self._found.remember(lambda found: {**_still_there(found), key: finding})
        return finding

    def _steps(self, entry: Entry, settings: GuardSettings, weights: VaeWeights | None) -> Iterator[Finding | None]:
        """The ways to find out, cheapest certain one first; each is only gone if those before found nothing."""
        shape = fitting_families(entry.z_channels, 32 if entry.family == "sana" else 8)
        if settings.by_hash:
            yield self._by_hash(entry)
        if len(shape) == 1:
            yield Finding(shape[0], "channels")
        if settings.by_fingerprint:
            yield self._by_weights(entry)
        if entry.family and len(split_family(entry.family)) == 1:
            yield Finding(entry.family, "file")
        if settings.by_behaviour and entry.state == "ok":
            tried = tell_family(weights or self._library.load(entry))
            yield Finding(tried.family, "behaviour") if tried.family else None
        yield Finding("|".join(shape), "undecided")

    def _by_hash(self, entry: Entry) -> Finding | None:
        known = self._catalogue.by_hash(self._library.sha256(entry))
        if known is None:
            return None
        if entry.state == "ok" and entry.fingerprint is None:
            with suppress(VaeKitError):  # its copies will be recognised by its weights
                self._library.identify(entry)
        return Finding(known.family, "hash", known.name)

    def _by_weights(self, entry: Entry) -> Finding | None:
        if entry.state != "ok":
            return None
        own = self._library.identify(entry)
        for mark in (*_shipped_marks(), *self._marks_in_library()):
            same = own.fingerprint == mark.identity.fingerprint or weight_sketches_match(
                own.weight_sketch, mark.identity.weight_sketch
            )
            if same:
                return Finding(mark.family, "weights", mark.name)
        return None

    def _marks_in_library(self) -> Iterator[_Mark]:
        """Weights of installed files that the catalogue knows by their hash, those that were read before."""
        for entry in self._library.entries:
            known = self._catalogue.by_hash(entry.sha256)
            if known and entry.fingerprint:
                with suppress(VaeKitError):
                    yield _Mark(known.name, known.family, self._library.identify(entry))

    def _impossible(self, entry: Entry, checkpoint: Checkpoint) -> Verdict:
        needed = checkpoint.latent_format
        families = "|".join(fitting_families(entry.z_channels))
        installed, available = self._offers(needed.name)
        message = Sentence.of(
            "{} has {} latent channels, the loaded model ({}) needs {}{}",
            entry.name,
            entry.z_channels,
            needed.label,
            needed.z_channels,
            _remedy(needed.label, installed, available),
        )
        return Verdict("impossible", Finding(families, "channels"), message, installed, available)

    def _wrong(self, entry: Entry, finding: Finding, checkpoint: Checkpoint) -> Verdict:
        needed = checkpoint.latent_format
        installed, available = self._offers(needed.name)
        message = Sentence.of(
            "{} is a VAE for {} ({}), the loaded model is {}: colours would be wrong{}",
            entry.name,
            finding.label,
            finding.sentence,
            needed.label,
            _remedy(needed.label, installed, available),
        )
        return Verdict("wrong", finding, message, installed, available)

    def _offers(self, family: str) -> tuple[tuple[str, ...], str]:
        """Installed files known to be of the family, and what to install where there is none."""
        certain = {e.name: self._catalogue.by_hash(e.sha256) for e in self._library.entries if e.state == "ok"}
        installed = tuple(
            e.name
            for e in self._library.entries
            if e.name in certain and (known.family if (known := certain[e.name]) else self.remembered(e)) == family
        )
        standard = self._catalogue.standard(family)
        return installed, "" if installed or standard is None or not standard.can_install else standard.name

    def standard(self, family: str) -> Entry | None:
        """The installed file that is the catalogue's standard VAE of a family, told by its hash; None without one."""
        known = self._catalogue.standard(family)
        if known is None or known.sha256 is None:
            return None
        alike = (e for e in self._library.entries if e.state == "ok" and known.size in (None, e.size))
        for entry in alike:  # a file of another size cannot be it, so few are read
            with suppress(VaeKitError):
                if self._library.sha256(entry) == known.sha256:
                    return entry
        return None

    def remembered(self, entry: Entry) -> str:
        """The family found earlier, or what the file says; nothing is computed."""
        start = f"{entry.path}|{entry.size}|{entry.mtime_ns}|"
        findings = self._found.value.items()
        found = [finding for key, finding in findings if key.startswith(start) and finding.is_certain]
        return found[0].family if found else entry.family


def _remedy(label: str, installed: Sequence[str], available: str) -> Sentence:
    if installed:
        return Sentence.of("; choose {}.", installed[0])
    if available:
        return Sentence.of("; install {} from the catalogue.", f'"{available}"')
    return Sentence.of("; choose a VAE for {}.", label)


def _ways(settings: GuardSettings) -> str:
    """The ways that are allowed, as part of a cache key."""
    return "".join("01"[way] for way in (settings.by_hash, settings.by_fingerprint, settings.by_behaviour))


@functools.cache
def _shipped_marks() -> tuple[_Mark, ...]:
    """The TAESD family's weights (vaes/family_marks.json, made by tools/make_family_probe.py)."""
    marks = json.loads(MARKS.read_text("utf-8"))["marks"]
    return tuple(_Mark(m["name"], m["family"], Identity(m["fingerprint"], _unpacked(m["sketch"]))) for m in marks)


def _unpacked(text: str) -> tuple[float, ...]:
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)
