"""The service behind the tab "VAE Kit" of a web UI, which the panel asks, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modules import call_queue, shared

from sd_vae_kit.hosts.parts import HostFolders
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.web.catalogue_host import KnownFiles
from sd_vae_kit.web.catalogue_service import CatalogueService

OPEN_TO_OTHERS = (
    "Installing and changing rules is switched off, because this web UI is open to others (--listen, --share, "
    "--server-name or --ngrok); start it with --enable-insecure-extension-access to allow both."
)
FROZEN = "Rules and files cannot be changed here: the web UI was started with --freeze-settings."


class PageHost:
    """The web UI as the catalogue's services see it; implements `CatalogueHost`.

    Args:
        host: The web UI.
        folders: Where its files go.
    """

    def __init__(self, host: WebuiHost, folders: HostFolders) -> None:
        self._host = host
        self._folders = folders

    @property
    def settings(self) -> Settings:
        return self._host.settings

    @property
    def checkpoint(self) -> Checkpoint | None:
        loaded = self._host.registry.loaded
        model = loaded.current
        return loaded.checkpoint_of(model) if model is not None else None

    @property
    def active_vae(self) -> str:
        return self._host.report.status().name

    @property
    def card_folders(self) -> Sequence[Path]:
        return self._folders.checkpoints

    def folder_for(self, known: KnownVae) -> Path:
        return self._folders.folder_for(known)

    def refresh(self) -> None:
        self._host.refresh()

    def apply_rules(self) -> None:
        apply_when_idle(self._host)

    def forget_precision(self) -> int:
        return self._host.api.forget_precision()

    def forbidden(self) -> str:
        return forbidden()


def make_service(host: WebuiHost) -> CatalogueService | None:
    """The service of a web UI; None where that looks after its files itself."""
    files = host.files
    if files is None:
        return None
    if files.catalogue_problem:
        host.base.messages.notify(files.catalogue_problem, "warning")
    tiny = host.taesd.library if host.taesd is not None else None
    known = KnownFiles(host.api.inspector, files.history, tiny)
    return CatalogueService(PageHost(host, files.folders), known, files.rules)


def forbidden() -> str:
    """Why whoever uses the page may not write files; "" if they may.  The web UI's own rule for its extensions."""
    if getattr(shared.cmd_opts, "disable_extension_access", False):
        return OPEN_TO_OTHERS
    return FROZEN if getattr(shared.cmd_opts, "freeze_settings", False) else ""


def apply_when_idle(host: WebuiHost) -> None:
    """Make changed rules count at once, or, while a job runs, from the next job on (`HostJobs.begin_pass`)."""
    if call_queue.queue_lock.acquire(blocking=False):
        try:
            host.switch.apply()
        finally:
            call_queue.queue_lock.release()
