"""A1111's list of VAEs, and the name and hash of the live one that it writes into pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_vae

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.vaes.entry import Entry


class VaeListing:
    """Functions of `modules.sd_vae` that list and name VAEs; it is the `InfotextNames` of A1111, too.

    Args:
        base: What the host's parts share.
        registry: Knows what is live.
        report: Works out hashes.
    """

    def __init__(self, base: HostBase, registry: ModelRegistry, report: StatusReport) -> None:
        self._library = base.library
        self._patches = base.patches
        self._options = base.options
        self._registry = registry
        self._report = report

    def install(self) -> None:
        """Put the patches in place."""
        features, wrap = self._options.features, self._patches.wrap
        if features.has("names"):
            wrap(sd_vae, "refresh_vae_list", self._refresh_vae_list)
            wrap(sd_vae, "get_loaded_vae_name", self._get_loaded_vae_name)
        if features.has("exact_stem"):
            wrap(sd_vae, "find_vae_near_checkpoint", self._find_vae_near_checkpoint)
        if features.has("hashes"):
            wrap(sd_vae, "get_loaded_vae_hash", self._get_loaded_vae_hash)

    def refresh(self) -> None:
        """Look for new and changed files."""
        if self._options.features.has("names"):
            sd_vae.refresh_vae_list()
        else:
            self._library.refresh()

    def write(self, p: Any) -> None:
        features = self._options.features
        if features.has("names"):
            p.sd_vae_name = sd_vae.get_loaded_vae_name()
        if features.has("hashes"):
            p.sd_vae_hash = sd_vae.get_loaded_vae_hash()

    def _refresh_vae_list(self, original: Callable[[], None]) -> None:
        self._library.refresh()
        if not self._options.repairs.names:
            return original()
        listed = {entry.name: str(entry.path) for entry in self._library.entries}
        sd_vae.vae_dict.clear()
        sd_vae.vae_dict.update(listed)
        return None

    def _find_vae_near_checkpoint(self, original: Callable[[str], str | None], checkpoint_file: str) -> str | None:
        if not self._options.repairs.exact_stem:
            return original(checkpoint_file)
        stem = Path(checkpoint_file).stem
        same = (file for file in sd_vae.vae_dict.values() if Path(file).stem.removesuffix(".vae") == stem)
        return next(same, None)

    def _live_entry(self) -> Entry | None:
        active = self._registry.active()
        entry = active.decision.entry if active else None
        return entry if entry and str(entry.path) == sd_vae.loaded_vae_file else None

    def _get_loaded_vae_name(self, original: Callable[[], str | None]) -> str | None:
        entry = self._live_entry() if self._options.repairs.names else None
        return entry.name if entry else original()

    def _get_loaded_vae_hash(self, original: Callable[[], str | None]) -> str | None:
        if not self._options.repairs.hashes:
            return original()
        if sd_vae.loaded_vae_file is None or not self._options.source.may_hash:
            return None
        try:
            entry = self._live_entry() or self._library.entry_at(Path(sd_vae.loaded_vae_file))
            return self._report.hash_of(entry)[:10]
        except VaeKitError:
            return None
