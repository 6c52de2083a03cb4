"""What a page does with an installed VAE file: read it again and compare it with what is known, show it on the disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.vaes import gallery
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.web.catalogue_host import CatalogueHost, KnownFiles, refuse_if_forbidden
from sd_vae_kit.web.catalogue_protocol import InstallView
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence, pieces_of

STEP = 0.02  # of a file: verifying says so often how far it is


class InstalledFiles:
    """Implements `FilesBackend`.

    Args:
        host: Says whether a file may be shown on the disk.
        files: The files and what is known of them.
    """

    def __init__(self, host: CatalogueHost, files: KnownFiles) -> None:
        self._host = host
        self._files = files

    def verify(self, key: str) -> Iterator[InstallView]:
        entry = self._files.get(key)
        size, shown, digits = max(entry.size, 1), -1.0, ""
        for done, found in gallery.read_again(entry):
            if done / size - shown >= STEP:
                shown = done / size
                yield InstallView((Message(Sentence.of("Reading {}.", entry.name)),), min(shown, 1.0), True)
            digits = found
        right, line = gallery.compare(entry, digits, self._files.catalogue)
        if entry.state == "ok":
            yield InstallView((Message(Sentence.of("{} Finding out its family.", line)),), 1.0, True)
            line = Sentence.of("{} {}", line, self._family_of(entry))
        yield InstallView((Message(line, "info" if right else "error"),))

    def reveal(self, key: str) -> Message:
        refuse_if_forbidden(self._host)
        path = self._files.get(key).path
        try:
            with subprocess.Popen(gallery.reveal_command(path)):
                pass
        except OSError:
            return Message(Sentence.of("No file manager could be started; the file is {}.", path), "warning")
        return Message(Sentence.of("The file is {}.", path))

    def _family_of(self, entry: Entry) -> Sentence:
        try:
            finding = self._files.inspector.family(entry)
        except VaeKitError as error:
            return Sentence(pieces_of(str(error)))
        return Sentence.of("Family: {} ({}).", finding.label, finding.sentence)
