"""Catalogue, downloads and rules behind the VAE tab, in the stand-alone app and in web UIs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile, forgotten_line
from sd_vae_kit.errors import OptionError, RulesError, VaeKitError, VaeNotFoundError
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes import gallery, rules
from sd_vae_kit.vaes.catalogue import Catalogue, KnownVae
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.install import Installation, Installer
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import RUNS, RulesFile
from sd_vae_kit.web.catalogue_protocol import InstallView, RuleLine
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import NOTHING, Sentence

POLL_SECONDS = 0.3
STEP = 0.02  # of a file: verifying says so often how far it is
LEVELS = {"running": "info", "done": "info", "cancelled": "warning", "failed": "error"}


class LoadedModel(Protocol):
    """The part of `host.Host` that is asked here."""

    @property
    def settings(self) -> Settings:
        """The values now."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The loaded model."""


class CatalogueService:
    """Implements `ui.catalogue_program.CatalogueBackend`.

    Args:
        host: Its settings and loaded checkpoint are read.
        library: Its files; installed ones appear in it.
        known: The catalogue.
        guard, rules_file, history: As the swapper uses them.
        folder: Where an installed file goes.
        cards: Folders of checkpoints, searched for A1111's cards.
        active: Name of the live file.
        apply: Makes changed rules take effect.
        refresh: Lists files that have come.
        tiny: Files of the TAESD family, where the program keeps them apart.
        forbidden: Why files may not be written or opened for whoever uses the page; "" if they may.
        needs: What VAEs needed to stay finite in half precision.
    """

    def __init__(
        self,
        host: LoadedModel,
        library: Library,
        known: Catalogue,
        guard: FamilyGuard,
        rules_file: RulesFile,
        history: History,
        *,
        folder: Callable[[KnownVae], Path],
        cards: Sequence[Path],
        active: Callable[[], str],
        apply: Callable[[], object],
        refresh: Callable[[], object],
        tiny: Library | None = None,
        forbidden: Callable[[], str] = lambda: "",
        needs: PrecisionFixesFile | None = None,
    ) -> None:
        self._host = host
        self._library = library
        self._libraries = (library,) if tiny is None else (library, tiny)
        self._known = known
        self._guard = guard
        self._rules = rules_file
        self._history = history
        self._cards = cards
        self._active = active
        self._apply = apply
        self._refresh = refresh
        self._forbidden = forbidden
        self._needs = PrecisionFixesFile(None) if needs is None else needs
        self._wanted = ""
        self._installer = Installer(folder, lambda: host.settings.download, self._installed)

    def close(self) -> None:
        """Stop downloads; what has arrived is kept for the next try."""
        self._installer.cancel()

    # --- list ---

    def families(self) -> Sequence[tuple[str, str]]:
        return [(label, name) for label, name in gallery.family_choices() if name]

    def rows(self) -> list[GalleryRow]:
        entries = self._entries()
        found = {entry.name: self._guard.remembered(entry) for entry in entries}
        rows = gallery.rows(
            entries,
            self._known,
            families=found,
            rules=self._readable_rules(),
            active=self._active(),
            used=lambda entry: self._history.checkpoints_of(entry.path, entry.sha256),
        )
        return sorted(
            (replace(row, used_by=("the pasted picture",)) if row.key == self._wanted else row for row in rows),
            key=lambda row: row.key != self._wanted,
        )

    def _entries(self) -> list[Entry]:
        return [entry for library in self._libraries for entry in library.entries]

    def _readable_rules(self) -> tuple[rules.Rule, ...]:
        try:
            return self._rules.rules
        except RulesError:
            return ()  # the editor and every choice say what is wrong; a list need not fail

    def notice(self) -> str:
        if reason := self._forbidden():
            return reason
        if self._host.settings.download.offline:
            return "Downloads are switched off: what is not installed can be looked up only."
        return ""

    def _may_write(self) -> None:
        """Raise `OptionError` where whoever uses the page may change nothing."""
        if reason := self._forbidden():
            raise OptionError(reason)

    def forget_precision(self) -> Message:
        self._may_write()
        return Message(forgotten_line(self._needs.forget()))

    # --- downloads ---

    def install(self, key: str, accepted: bool) -> None:
        self._may_write()
        if any(entry.name == key for entry in self._entries()):
            raise OptionError(f"{key} is installed already; Verify reads it again.")
        self._installer.start(self._known.find(key), accepted=accepted)

    def is_missing(self, key: str) -> bool:
        return any(row.key == key for row in self.rows())

    def install_tiny(self) -> str:
        self._may_write()
        pair = self._tiny_pair()
        if pair is None:
            raise OptionError("There is no TAESD for the loaded model's family.")
        for known in pair:
            self._installer.start(known)
        return f"Fetching {pair[0].name} and {pair[1].name}."

    def tiny_label(self) -> str:
        pair = self._tiny_pair()
        return pair[0].family_label if pair else ""

    def _tiny_pair(self) -> tuple[KnownVae, KnownVae] | None:
        checkpoint = self._host.checkpoint
        return self._known.tiny_pair(checkpoint.latent_format.name) if checkpoint else None

    def cancel(self) -> None:
        self._installer.cancel()

    def installing(self) -> InstallView:
        states = self._installer.states
        running = [state for state in states if state.state == "running"]
        lines = tuple(Message(state.line, LEVELS[state.state]) for state in states)
        return InstallView(lines, _fraction(running), bool(running))

    def watch(self) -> Iterator[InstallView]:
        shown = self.installing()
        yield shown
        while shown.is_running:
            self._installer.wait(POLL_SECONDS)
            now = self.installing()
            if now != shown:
                yield now
            shown = now

    def _installed(self, path: Path) -> None:
        self._refresh()
        for library in self._libraries[1:]:
            library.refresh()
        self._hash(path.absolute())

    def _hash(self, path: Path) -> None:
        """Work a new file's hash out, so that the list knows it at once."""
        for library in self._libraries:
            for entry in library.entries:
                if entry.path == path and entry.sha256 is None:
                    library.sha256(entry)

    def missing(self, digits: str) -> tuple[str, Sentence]:
        """The catalogue's name of the VAE with that hash, and how to get it; ("", "") if it is not known.

        It leads the list from now on, until another one is asked for.
        """
        known = self._known.by_hash(digits)
        self._wanted = known.name if known else ""
        if known is None:
            return "", NOTHING
        how = Sentence.of("; it can be installed." if known.can_install else "; no download is known for it.")
        line = Sentence.of("The catalogue knows hash {}: it is {}{}", digits, f'"{known.name}"', how)
        return known.name if known.can_install else "", line

    # --- files ---

    def verify(self, key: str) -> Iterator[InstallView]:
        entry = self._file(key)
        size, shown, digits = max(entry.size, 1), -1.0, ""
        for done, found in gallery.read_again(entry):
            if done / size - shown >= STEP:
                shown = done / size
                yield InstallView((Message(f"Reading {entry.name}."),), min(shown, 1.0), True)
            digits = found
        right, line = gallery.compare(entry, digits, self._known)
        if entry.state == "ok":
            yield InstallView((Message(f"{line} Finding out its family."),), 1.0, True)
            line += self._family_of(entry)
        yield InstallView((Message(line, "info" if right else "error"),))

    def _family_of(self, entry: Entry) -> str:
        try:
            finding = self._guard.identify(entry, self._host.settings.guard)
        except VaeKitError as error:
            return f" {error}"
        return f" Family: {finding.label} ({finding.sentence})."

    def reveal(self, key: str) -> Message:
        self._may_write()
        path = self._file(key).path
        try:
            with subprocess.Popen(gallery.reveal_command(path)):
                pass
        except OSError:
            return Message(f"No file manager could be started; the file is {path}.", "warning")
        return Message(f"The file is {path}.")

    def _file(self, key: str) -> Entry:
        entry = next((entry for entry in self._entries() if entry.name == key), None)
        if entry is None:
            raise VaeNotFoundError(f"{key} is not installed; install it first.")
        return entry

    # --- rules ---

    def rules_text(self) -> str:
        return self._rules.text

    def save_rules(self, text: str) -> Message:
        self._may_write()
        count = len(self._rules.save(text))
        self._apply()
        return Message(f"{count} rule{'s' * (count != 1)} saved to {self._rules.path.name}.")

    def import_cards(self, text: str) -> tuple[str, Message]:
        before = rules.parse(text)
        cards = [rule for folder in self._cards if folder.is_dir() for rule in rules.rules_from_cards(folder)]
        after = rules.merged(before, cards)
        added = len(after) - len(before)
        line = f"{added} rule{'s' * (added != 1)} from {len(cards)} card{'s' * (len(cards) != 1)}; Save keeps them."
        return rules.dump(after), Message(line)

    def passes(self) -> Sequence[str]:
        return RUNS

    def explain(self, text: str, run: str) -> list[RuleLine]:
        checkpoint = self._host.checkpoint
        if checkpoint is None:
            raise OptionError("No checkpoint is loaded, so there is nothing to explain.")
        wanted = next((known for known in RUNS if known == run), RUNS[0])
        return [
            RuleLine(line.number, line.rule.conditions, line.rule.vae, line.decides, line.why)
            for line in rules.explain(rules.parse(text), checkpoint, wanted)
        ]


def _fraction(running: Sequence[Installation]) -> float | None:
    total = sum(state.total or 0 for state in running)
    return sum(state.done for state in running) / total if total and all(state.total for state in running) else None
