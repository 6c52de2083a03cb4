"""Downloads of known VAEs, for pages: what is begun, how far it is, what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sd_vae_kit.errors import OptionError
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.install import Installation, Installer
from sd_vae_kit.web.catalogue_host import CatalogueHost, KnownFiles, refuse_if_forbidden
from sd_vae_kit.web.catalogue_protocol import InstallView
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence

POLL_SECONDS = 0.3
LEVELS = {"running": "info", "done": "info", "cancelled": "warning", "failed": "error"}


class Downloads:
    """Implements `DownloadsBackend`.

    Args:
        host: Its settings say how files are fetched, its folders where they go.
        files: Where an installed file is listed.
    """

    def __init__(self, host: CatalogueHost, files: KnownFiles) -> None:
        self._host = host
        self._files = files
        self._installer = Installer(host.folder_for, lambda: host.settings.download, self._list_file)

    def close(self) -> None:
        """Stop downloads; what has arrived is kept for the next try."""
        self._installer.cancel()

    def install(self, key: str, accepted: bool) -> None:
        refuse_if_forbidden(self._host)
        if self._files.find(key) is not None:
            raise OptionError(f"{key} is installed already; Verify reads it again.")
        self._installer.start(self._files.catalogue.find(key), accepted=accepted)

    def install_tiny(self) -> Sentence:
        refuse_if_forbidden(self._host)
        pair = self._tiny_pair()
        if pair is None:
            raise OptionError("There is no TAESD for the loaded model's family.")
        for known in pair:
            self._installer.start(known)
        return Sentence.of("Fetching {} and {}.", pair[0].name, pair[1].name)

    def tiny_label(self) -> str:
        pair = self._tiny_pair()
        return pair[0].family_label if pair else ""

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

    def _tiny_pair(self) -> tuple[KnownVae, KnownVae] | None:
        checkpoint = self._host.checkpoint
        return self._files.catalogue.tiny_pair(checkpoint.latent_format.name) if checkpoint else None

    def _list_file(self, path: Path) -> None:
        self._host.refresh()
        if self._files.tiny is not None:
            self._files.tiny.refresh()
        self._files.hash_new_file(path.absolute())


def _fraction(running: Sequence[Installation]) -> float | None:
    total = sum(state.total or 0 for state in running)
    return sum(state.done for state in running) / total if total and all(state.total for state in running) else None
