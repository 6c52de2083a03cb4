"""The tab "VAE Kit" of a web UI: installed and known VAEs, downloads, rules; as in the stand-alone app."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import call_queue, shared

from sd_vae_kit.hosts.base import WebuiHost
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.ui import catalogue_tab, gradio_compat
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.web.catalogue_service import CatalogueService

TITLE, NAME = "VAE Kit", "vae_kit"
OPEN_TO_OTHERS = (
    "Installing and changing rules is switched off, because this web UI is open to others (--listen, --share, "
    "--server-name or --ngrok); start it with --enable-insecure-extension-access to allow both."
)
FROZEN = "Rules and files cannot be changed here: the web UI was started with --freeze-settings."


class Loaded:
    """What the service asks of the web UI: settings and the model in use."""

    def __init__(self, host: WebuiHost) -> None:
        self._host = host

    @property
    def settings(self) -> Settings:
        return self._host.settings

    @property
    def checkpoint(self) -> Checkpoint | None:
        model = self._host.model
        return self._host.checkpoint_of(model) if model is not None else None


def service_of(host: WebuiHost) -> CatalogueService | None:
    """The service behind the tab, one per process; None where this web UI does not say enough for it."""
    storage = host.storage()
    if storage is None or host.guard is None or host.rules is None or host.history is None:
        return None
    if host.catalogue is None:
        if host.known_problem:
            host.notify(host.known_problem, "warning")
        host.catalogue = CatalogueService(
            Loaded(host),
            host.library,
            host.known,
            host.guard,
            host.rules,
            host.history,
            folder=storage.folder_for,
            cards=storage.checkpoints,
            active=lambda: host.status().name,
            apply=lambda: apply_when_idle(host),
            refresh=host.refresh,
            tiny=host.tiny_library(),
            forbidden=forbidden,
            needs=host.calls.runner.needs,
        )
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
            catalogue_tab.build_preview_shortcut(service, page)
    for block in page.blocks.values():
        block.do_not_save_to_config = True  # the web UI would put back an old list or an old rules file
    return [(page, TITLE, NAME)]
