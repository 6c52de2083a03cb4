"""The app's VAE files, as its pages list, choose and describe them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sd_vae_kit.errors import OptionError, VaeKitError
from sd_vae_kit.settings.sections import AUTOMATIC, NONE, spec_of
from sd_vae_kit.standalone import vae_facts
from sd_vae_kit.standalone.demo_model import NAME
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.page_settings import PageSettings
from sd_vae_kit.standalone.pages.backend_protocol import TopBar, VaeFacts, VaeRow
from sd_vae_kit.standalone.vae_selection import VaeSelection
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library

HASHED_AT_ONCE = 400_000_000  # bytes; reading that much takes well under a second


@dataclass(frozen=True)
class PageVaes:
    """Implements `VaesBackend`.

    Attributes:
        host: Is told what a refresh has found.
        library: The files.
        inspector: Says what they are.
        selection: Says which is live.
        settings: Where a choice is kept.
    """

    host: StandaloneHost
    library: Library
    inspector: Inspector
    selection: VaeSelection
    settings: PageSettings

    def top_bar(self) -> TopBar:
        chosen = self.host.settings.vae.sd_vae
        usable = [entry for entry in self.library.entries if entry.state == "ok"]
        vaes = [AUTOMATIC, NONE, *(entry.name for entry in usable)]
        if chosen not in vaes:
            vaes.append(chosen)
        live, reason = self.selection.live_entry, self.selection.active.decision.reason
        finder = self.inspector.finder
        notes = {e.name: vae_facts.tiny_note(e, finder.remembered(e)) for e in usable if e.kind == "tiny"}
        return TopBar((NAME,), NAME, tuple(vaes), chosen, live.name, self._short_hash(live), reason, notes)

    def refresh(self) -> None:
        entries = self.library.refresh()
        broken = sum(entry.state != "ok" for entry in entries)
        unusable = f", {broken} cannot be used (see the VAE tab)" if broken else ""
        self.host.notify(f"{len(entries)} VAE files{unusable}.")
        self.selection.choose()

    def choose_checkpoint(self, name: str) -> None:
        if name != NAME:
            raise OptionError(f"There is no checkpoint {name!r}; this version runs the demo model only.")

    def choose(self, name: str) -> None:
        self.settings.change({spec_of("sd_vae").key: name})

    def rows(self) -> list[VaeRow]:
        live = self.selection.live_entry.path
        remembered = self.inspector.finder.remembered
        return [vae_facts.row_of(entry, remembered(entry), entry.path == live) for entry in self.library.entries]

    def facts(self, name: str) -> Iterator[VaeFacts]:
        return vae_facts.facts_of(self.inspector, self.library.get(name))

    def _short_hash(self, entry: Entry) -> str:
        """The VAE hash, if it is known or quickly worked out."""
        digits = entry.sha256
        if digits is None and entry.size <= HASHED_AT_ONCE:
            try:
                digits = self.library.sha256(entry)
            except VaeKitError:
                digits = None
        return (digits or "")[:10]
