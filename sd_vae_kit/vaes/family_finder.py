"""Whose VAE a file is.  docs/family-guard.md explains.

The cheapest certain answer counts: the catalogue's hash, known weights, what the file says of itself, a try on a small
picture.  What was found is kept in a file of its own, which may be deleted or damaged at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sd_vae_kit.core.family import tell_family
from sd_vae_kit.core.files.family_of_header import fitting_families
from sd_vae_kit.core.networks.latent_format import split_family
from sd_vae_kit.core.vae import VaeWeights
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.state.json_store import JsonStore
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.finding import FINDINGS, Finding, still_there
from sd_vae_kit.vaes.known_weights import KnownWeights, shipped_weights
from sd_vae_kit.vaes.library import Library

EVERY_WAY = GuardSettings()
SETTLED_NS = 2_000_000_000  # a file that changed less than this before it was looked at may have changed again unseen


class FamilyFinder:
    """Finds out families and remembers them; safe to use from several threads.

    Args:
        library: Where hashes, identities and weights come from.
        cache_file: What was found, by path, size and time; `None` remembers it in memory only.
        known: The catalogue.
    """

    def __init__(self, library: Library, cache_file: Path | None, known: Catalogue | None = None) -> None:
        self.library = library
        self.catalogue = known or catalogue()
        self._found = JsonStore(cache_file, FINDINGS)

    def find(self, entry: Entry, ways: GuardSettings = EVERY_WAY, weights: VaeWeights | None = None) -> Finding:
        """Whose VAE it is; from the cache if the file is what it was and the same ways are allowed.

        Args:
            entry: The file.
            ways: Which ways of finding out may be used.
            weights: The file's, if they are at hand; they are read where needed otherwise.

        Raises:
            VaeKitError: The file cannot be read.
        """
        key = f"{_key(entry)}{_allowed(ways)}"
        if known := self._found.value.get(key):
            return known
        started = time.time_ns()
        finding = next(found for found in self._steps(entry, ways, weights) if found)
        if abs(started - entry.mtime_ns) >= SETTLED_NS:
            self._found.remember(lambda found: {**still_there(found), key: finding})
        return finding

    def remembered(self, entry: Entry) -> Finding:
        """What is known without reading the file: by its hash, as found earlier, or as its header says."""
        if known := self.catalogue.by_hash(entry.sha256):
            return Finding(known.family, "hash", known.name)
        found = [f for key, f in self._found.value.items() if key.startswith(_key(entry)) and f.is_certain]
        return found[0] if found else Finding(entry.family, entry.family_known_by)

    def _steps(self, entry: Entry, ways: GuardSettings, weights: VaeWeights | None) -> Iterator[Finding | None]:
        """The ways to find out, cheapest certain one first; each is only gone if those before found nothing."""
        fitting = fitting_families(entry.z_channels, entry.downscale)
        if ways.by_hash:
            yield self._by_hash(entry, weights)
        if len(fitting) == 1:
            yield Finding(fitting[0], "channels")
        if ways.by_fingerprint:
            yield self._by_weights(entry, weights)
        if len(split_family(entry.family)) == 1:
            yield Finding(entry.family, entry.family_known_by)
        if ways.by_behaviour and entry.state == "ok":
            tried = tell_family(weights or self.library.load(entry))
            yield Finding(tried.family, "behaviour") if tried.family else None
        yield Finding(entry.family or "|".join(fitting), "undecided")

    def _by_hash(self, entry: Entry, weights: VaeWeights | None) -> Finding | None:
        known = self.catalogue.by_hash(self.library.sha256(entry))
        if known is None:
            return None
        if entry.state == "ok" and entry.fingerprint is None:
            with suppress(VaeKitError):  # its copies will be recognised by its weights
                self.library.identify(entry, weights)
        return Finding(known.family, "hash", known.name)

    def _by_weights(self, entry: Entry, weights: VaeWeights | None) -> Finding | None:
        if entry.state != "ok":
            return None
        own = self.library.identify(entry, weights)
        for known in (*shipped_weights(), *self._weights_in_library()):
            if known.match(own):
                return Finding(known.family, "weights", known.name)
        return None

    def _weights_in_library(self) -> Iterator[KnownWeights]:
        """Weights of installed files that the catalogue knows by their hash, those that were read before."""
        for entry in self.library.entries:
            known = self.catalogue.by_hash(entry.sha256)
            if known and entry.fingerprint:
                with suppress(VaeKitError):
                    yield KnownWeights(known.name, known.family, self.library.identify(entry))


def _key(entry: Entry) -> str:
    """The file and its version, as the beginning of a cache key."""
    return f"{entry.path}|{entry.size}|{entry.mtime_ns}|"


def _allowed(ways: GuardSettings) -> str:
    """The ways that are allowed, as the end of a cache key."""
    return "".join("01"[way] for way in (ways.by_hash, ways.by_fingerprint, ways.by_behaviour))
