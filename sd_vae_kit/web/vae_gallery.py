"""The list of installed and known VAEs, for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sd_vae_kit.errors import RulesError
from sd_vae_kit.vaes import gallery, rules
from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.vaes.rules import RulesFile
from sd_vae_kit.web.catalogue_host import CatalogueHost, KnownFiles
from sd_vae_kit.wording import NOTHING, Sentence

PASTED = Sentence.of("the pasted picture")


class VaeGallery:
    """Implements `GalleryBackend`.

    Args:
        host: Says which file is live.
        files: What is listed.
        rules_file: The user's rules; a row names those that lead to it.
    """

    def __init__(self, host: CatalogueHost, files: KnownFiles, rules_file: RulesFile) -> None:
        self._host = host
        self._files = files
        self._rules = rules_file
        self._wanted = ""  # the name of the VAE that the last pasted text asked for

    def families(self) -> Sequence[tuple[str, str]]:
        return [(label, name) for label, name in gallery.family_choices() if name]

    def rows(self) -> list[GalleryRow]:
        entries = list(self._files.entries)
        rows = gallery.rows(
            entries,
            self._files.catalogue,
            found=self._files.inspector.finder.remembered,
            rules=self._readable_rules(),
            active=self._host.active_vae,
            used=lambda entry: self._files.history.checkpoints_of(entry.path, entry.sha256),
        )
        rows = [replace(row, used_by=(PASTED,)) if row.key == self._wanted else row for row in rows]
        return sorted(rows, key=lambda row: row.key != self._wanted)

    def is_missing(self, key: str) -> bool:
        return any(row.key == key for row in self.rows())

    def missing(self, digits: str) -> tuple[str, Sentence]:
        """The catalogue's name of the VAE with that hash, and how to get it; empty if the catalogue has none.

        The VAE leads the list from now on, until another one is asked for.
        """
        known = self._files.catalogue.by_hash(digits)
        self._wanted = known.name if known else ""
        if known is None:
            return "", NOTHING
        how = Sentence.of("; it can be installed." if known.can_install else "; no download is known for it.")
        line = Sentence.of("The catalogue knows hash {}: it is {}{}", digits, f'"{known.name}"', how)
        return known.name if known.can_install else "", line

    def _readable_rules(self) -> tuple[rules.Rule, ...]:
        try:
            return self._rules.rules
        except RulesError:
            return ()  # the editor and every choice say what is wrong; a list need not fail
