"""The tab "VAE Kit" of a web UI: installed and known VAEs, downloads, rules; as in the stand-alone app."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from modules import call_queue, shared

from sd_vae_kit.hosts.base import Storage, WebuiHost
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.ui import catalogue_install, catalogue_tab, gradio_compat
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.web.catalogue_host import KnownFiles
from sd_vae_kit.web.catalogue_service import CatalogueService

TITLE, NAME = "VAE Kit", "vae_kit"
OPEN_TO_OTHERS = (
    "Installing and changing rules is switched off, because this web UI is open to others (--listen, --share, "
    "--server-name or --ngrok); start it with --enable-insecure-extension-access to allow both."
)
FROZEN = "Rules and files cannot be changed here: the web UI was started with --freeze-settings."


class PageHost:
    """The web UI as the catalogue's services see it; implements `CatalogueHost`."""

    def __init__(self, host: WebuiHost, storage: Storage) -> None:
        self._host = host
        self._storage = storage

    @property
    def settings(self) -> Settings:
        return self._host.settings

    @property
    def checkpoint(self) -> Checkpoint | None:
        model = self._host.model
        return self._host.checkpoint_of(model) if model is not None else None

    @property
    def active_vae(self) -> str:
        return self._host.status().name

    @property
    def card_folders(self) -> Sequence[Path]:
        return self._storage.checkpoints

    def folder_for(self, known: KnownVae) -> Path:
        return self._storage.folder_for(known)

    def refresh(self) -> None:
        self._host.refresh()

    def apply_rules(self) -> None:
        apply_when_idle(self._host)

    def forget_precision(self) -> int:
        return self._host.forget_precision()

    def forbidden(self) -> str:
        return forbidden()


def service_of(host: WebuiHost) -> CatalogueService | None:
    """The service behind the tab, one per process; None where this web UI does not say enough for it."""
    storage = host.storage()
    if storage is None or host.guard is None or host.rules is None or host.history is None:
        return None
    if host.catalogue is None:
        if host.known_problem:
            host.notify(host.known_problem, "warning")
        files = KnownFiles(host.inspector, host.history, host.tiny_library())
        host.catalogue = CatalogueService(PageHost(host, storage), files, host.rules)
    service: CatalogueService = host.catalogue
    return service


def forbidden() -> str:
    """Why whoever uses the page may not write files; "" if they may.  The web UI's own rule for its extensions."""
    if getattr(shared.cmd_opts, "disable_extension_access", False):
        return OPEN_TO_OTHERS
    return FROZEN if getattr(shared.cmd_opts, "freeze_settings", False) else ""


def apply_when_idle(host: WebuiHost) -> None:
    """Changed rules count at once, or, while a job runs, from the next job on (`WebuiHost.begin_pass`)."""
    if call_queue.queue_lock.acquire(blocking=False):
        try:
            host.apply()
        finally:
            call_queue.queue_lock.release()


def build(host: WebuiHost) -> list[tuple[Any, str, str]]:
    """The tab as the web UI wants it: (page, title, name)."""
    service = service_of(host)
    if service is None:
        return []
    with gr.Blocks(analytics_enabled=False) as page:
        gradio_compat.html(f"<style>{catalogue_tab.style()}</style>", "vae_kit_style", often_empty=True)
        with gr.Column(elem_id="vae_kit_page", elem_classes=["vae-kit"]):
            catalogue_tab.build_catalogue(service, page)
            catalogue_install.build_preview_shortcut(service.downloads, page)
    for block in page.blocks.values():
        block.do_not_save_to_config = True  # the web UI would put back an old list or an old rules file
    return [(page, TITLE, NAME)]
