"""Everything registered with the host.  Called from scripts/, because the host forgets callbacks on Reload UI."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import script_callbacks

from sd_vae_kit.webui import http, missing_vae, options_page, vae_page, xyz_axes
from sd_vae_kit.webui.running import catalogue_service, running, start


def register() -> None:
    """Start, or put the patches back after Reload UI, and ask the host to call us."""
    host = start()
    if host is None:
        return
    script_callbacks.on_script_unloaded(undo_patches)
    script_callbacks.on_before_ui(add_axes)
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_ui_tabs(add_tab)
    script_callbacks.on_model_loaded(patch_model)
    script_callbacks.on_infotext_pasted(name_pasted_vae)
    script_callbacks.on_app_started(add_routes)


def undo_patches() -> None:
    """Put back every attribute this extension replaced on a host object."""
    host = running()
    if host is not None:
        host.jobs.end()
        host.remove()


def patch_model(model: object) -> None:
    """A model object may be new."""
    host = running()
    if host is not None:
        host.model_loaded(model)


def add_settings() -> None:
    """Add the settings page, and on the very first start the dropdown in the top bar."""
    host = running()
    if host is not None:
        host.page.install()
        host.page.declare_sd_vae(gr.Dropdown)
        options_page.add(host)


def add_tab() -> list[tuple[Any, str, str]]:
    """Add the tab with known VAEs, downloads and rules."""
    service = catalogue_service()
    return vae_page.build(service) if service is not None else []


def add_axes() -> None:
    """Add axes to the X/Y/Z plot."""
    host = running()
    if host is not None:
        xyz_axes.add(host)


def name_pasted_vae(text: str, parameters: dict[str, str]) -> None:
    """Pasted parameters may name a VAE by its hash."""
    host = running()
    if host is not None:
        missing_vae.name_by_hash(host, parameters)


def add_routes(demo: object, app: Any) -> None:
    """Put the HTTP API on the host's app."""
    host = running()
    if host is not None:
        http.add(host, app)
