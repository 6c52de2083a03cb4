"""The tab "VAE Kit" of a web UI: installed and known VAEs, downloads, rules; as in the stand-alone app."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd_vae_kit.ui import catalogue_install, catalogue_tab, gradio_compat
from sd_vae_kit.web.catalogue_service import CatalogueService

TITLE, NAME = "VAE Kit", "vae_kit"


def build(service: CatalogueService) -> list[tuple[Any, str, str]]:
    """The tab as the web UI wants it: (page, title, name)."""
    with gr.Blocks(analytics_enabled=False) as page:
        gradio_compat.html(f"<style>{catalogue_tab.style()}</style>", "vae_kit_style", often_empty=True)
        with gr.Column(elem_id="vae_kit_page", elem_classes=["vae-kit"]):
            catalogue_tab.build_catalogue(service, page)
            catalogue_install.build_preview_shortcut(service.downloads, page)
    for block in page.blocks.values():
        block.do_not_save_to_config = True  # the web UI would put back an old list or an old rules file
    return [(page, TITLE, NAME)]
