"""Checkpoint and VAE above everything else, one line with why this VAE is active, one line for what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.standalone.pages import page_markup
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend
from sd_vae_kit.ui import element_ids, gradio_compat, markup
from sd_vae_kit.web.message import Message

REFRESH = "\u21bb"


@dataclass(frozen=True)
class TopBarView:
    """The widgets; `outputs` is the order in which `shown` and `attempt` fill them."""

    checkpoint: gr.Dropdown
    vae: gr.Dropdown
    active: gr.HTML
    status: gr.HTML

    @property
    def outputs(self) -> list[object]:
        return [self.checkpoint, self.vae, self.active, self.status]


def build_top_bar(backend: PageBackend) -> TopBarView:
    """Make the widgets and connect them; their values come with the page's load event."""
    bar = backend.vaes.top_bar()
    with gr.Row(elem_id=element_ids.TOP_BAR):
        checkpoint = gr.Dropdown(
            list(bar.checkpoints), value=bar.checkpoint, label="Checkpoint", elem_id=element_ids.CHECKPOINT, scale=6
        )
        checkpoint_refresh = _refresh_button(element_ids.CHECKPOINT_REFRESH)
        vae = gr.Dropdown(bar.vae_choices, value=bar.vae, label="SD VAE", elem_id=element_ids.SD_VAE, scale=6)
        vae_refresh = _refresh_button(element_ids.SD_VAE_REFRESH)
    active = gradio_compat.html(page_markup.active_line(bar), element_ids.ACTIVE)
    status = gradio_compat.html("", element_ids.STATUS, often_empty=True)
    view = TopBarView(checkpoint, vae, active, status)

    def choose_checkpoint(name: str) -> list[object]:
        return attempt(backend, lambda: backend.vaes.choose_checkpoint(name))

    def choose_vae(name: str) -> list[object]:
        return attempt(backend, lambda: backend.vaes.choose(name))

    for dropdown, choose in ((checkpoint, choose_checkpoint), (vae, choose_vae)):
        gradio_compat.listen(dropdown, "input", choose, [dropdown], view.outputs, gradio_compat.CHOOSE_LATEST)
    for button in (checkpoint_refresh, vae_refresh):
        gradio_compat.listen(button, "click", lambda: attempt(backend, backend.vaes.refresh), (), view.outputs)
    return view


def shown(backend: PageBackend) -> list[object]:
    """Updates for `TopBarView.outputs`, the status line with whatever came up since the last call."""
    bar = backend.vaes.top_bar()
    return [
        gradio_compat.update(choices=list(bar.checkpoints), value=bar.checkpoint),
        gradio_compat.update(choices=bar.vae_choices, value=bar.vae),
        page_markup.active_line(bar),
        markup.status_lines(backend.take_messages()),
    ]


def attempt(backend: PageBackend, action: Callable[[], object]) -> list[object]:
    """Run `action`; an error becomes one line and a toast.  Returns updates for `TopBarView.outputs`."""
    error = failure_of(action)
    *updates, status = shown(backend)
    return [*updates, markup.status_lines([error]) if error else status]


def failure_of(action: Callable[[], object]) -> Message | None:
    """Run `action`; the deliberate error it ended in as a message, also shown as a toast."""
    try:
        action()
    except VaeKitError as error:
        gr.Warning(str(error))
        return Message(str(error), "error")
    return None


def _refresh_button(elem_id: str) -> gr.Button:
    return gr.Button(REFRESH, elem_id=elem_id, elem_classes=["vk-tool"], size="sm", scale=0, min_width=36)
