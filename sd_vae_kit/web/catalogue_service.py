"""Catalogue, downloads and rules behind the VAE tab, in the stand-alone app and in web UIs."""

from __future__ import annotations

from sd_vae_kit.core.run.precision_fixes_file import forgotten_line
from sd_vae_kit.vaes.rules import RulesFile
from sd_vae_kit.web.catalogue_host import CatalogueHost, KnownFiles, refuse_if_forbidden
from sd_vae_kit.web.downloads import Downloads
from sd_vae_kit.web.installed_files import InstalledFiles
from sd_vae_kit.web.message import Message
from sd_vae_kit.web.rules_editor import RulesEditor
from sd_vae_kit.web.vae_gallery import VaeGallery


class CatalogueService:
    """Implements `CatalogueBackend`.

    Args:
        host: The app or web UI that runs it.
        files: The VAE files and what is known of them.
        rules_file: The user's rules, as the swapper uses them.

    Attributes:
        gallery: The list of installed and known VAEs.
        downloads: What is being installed.
        files: What can be done with an installed file.
        rules: The editor of the user's rules.
    """

    def __init__(self, host: CatalogueHost, files: KnownFiles, rules_file: RulesFile) -> None:
        self._host = host
        self.gallery = VaeGallery(host, files, rules_file)
        self.downloads = Downloads(host, files)
        self.files = InstalledFiles(host, files)
        self.rules = RulesEditor(host, rules_file)

    def close(self) -> None:
        """Stop downloads; what has arrived is kept for the next try."""
        self.downloads.close()

    def notice(self) -> str:
        if reason := self._host.forbidden():
            return reason
        if self._host.settings.download.offline:
            return "Downloads are switched off: what is not installed can be looked up only."
        return ""

    def forget_precision(self) -> Message:
        refuse_if_forbidden(self._host)
        return Message(forgotten_line(self._host.forget_precision()))
