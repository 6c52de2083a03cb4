"""The catalogue's part of the VAE tab, section by section: list, rules, what was learnt about half precision."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from sd_vae_kit.ui import gradio_compat, markup
from sd_vae_kit.ui.catalogue_install import Neighbours, answered, connect_buttons
from sd_vae_kit.ui.catalogue_list import build_list, connect_list
from sd_vae_kit.ui.catalogue_rules import build_rules
from sd_vae_kit.ui.element_ids import catalogue_id
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend
from sd_vae_kit.web.message import Message


def style() -> str:
    """The rules for this part alone, for pages that do not have the app's style sheet."""
    return Path(__file__).with_name("catalogue.css").read_text("utf-8")


def build_catalogue(catalogue: CatalogueBackend, page: gr.Blocks, beside: Neighbours | None = None) -> None:
    """Lay out all sections and connect them.

    Args:
        catalogue: The backend.
        page: For its load event.
        beside: What else on the page shows an installed file or changed rules.
    """
    beside = beside or Neighbours()
    _heading("Catalogue", "Installed and known VAEs. Nothing is downloaded unless you press Install.", "heading")
    notice = gradio_compat.html(notice_html(catalogue), catalogue_id("notice"), often_empty=True)
    gradio_compat.listen(page, "load", lambda: notice_html(catalogue), (), [notice])
    view = build_list(catalogue.gallery)
    connect_list(catalogue.gallery, view, page)
    connect_buttons(catalogue, view, page, beside)
    _heading("Rules", "Which VAE goes with which checkpoint and pass while SD VAE says Automatic.", "rules_heading")
    build_rules(catalogue.rules, page, beside)
    _heading(
        "Precision", "What a VAE needed to stay finite in half precision is kept for the next picture.", "precision"
    )
    _build_precision(catalogue)


def notice_html(catalogue: CatalogueBackend) -> str:
    """What cannot be done here, and why."""
    text = catalogue.notice()
    return markup.status_lines([Message(text, "warning")]) if text else ""


def _build_precision(catalogue: CatalogueBackend) -> None:
    with gr.Row(elem_classes=["vk-choose"]):
        forget = gr.Button("Forget what was learnt", elem_id=catalogue_id("forget"), size="sm", scale=0, min_width=200)
    told = gradio_compat.html("", catalogue_id("forgotten"), often_empty=True)
    gradio_compat.listen(forget, "click", lambda: answered(catalogue.forget_precision), (), [told])


def _heading(title: str, explanation: str, name: str) -> None:
    gradio_compat.html(
        f'<div class="vk-section"><b>{escape(title)}</b> <span>{escape(explanation)}</span></div>', catalogue_id(name)
    )
