"""VAE tab: what is known about one file, and a table of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.standalone.pages import page_markup, top_bar
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend, VaeFacts
from sd_vae_kit.standalone.pages.top_bar import REFRESH, TopBarView
from sd_vae_kit.ui import element_ids, gradio_compat

HINT = '<p class="vk-hint">Choose a file to see what it is.</p>'


def build_vae_tab(backend: PageBackend, bar: TopBarView) -> list[object]:
    """Lay out the tab; returns the widgets that `shown` fills."""
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=2, min_width=320):
            with gr.Row(elem_classes=["vk-choose"]):
                names = [row.name for row in backend.vaes.rows()]
                chosen = gr.Dropdown(names, value=None, label="VAE file", elem_id=element_ids.VAE_FILE, scale=10)
                refresh = gr.Button(
                    REFRESH, elem_id=element_ids.VAE_REFRESH, elem_classes=["vk-tool"], size="sm", scale=0, min_width=36
                )
            use = gr.Button("Use this VAE", elem_id=element_ids.VAE_USE, size="sm")
            facts = gradio_compat.html(HINT, element_ids.VAE_FACTS)
        with gr.Column(scale=3, min_width=320):
            table = gradio_compat.html(page_markup.files_table(backend.vaes.rows()), element_ids.VAE_TABLE)
    outputs: list[object] = [chosen, facts, table]

    def describe(name: str | None) -> Iterator[str]:
        yield from facts_of(backend, name)

    def use_chosen(name: str | None) -> list[object]:
        action = (lambda: backend.vaes.choose(name)) if name else (lambda: None)
        return [*top_bar.attempt(backend, action), page_markup.files_table(backend.vaes.rows())]

    def look_again(name: str | None) -> list[object]:
        updates = top_bar.attempt(backend, backend.vaes.refresh)
        return [*updates, *shown(backend, name)]

    gradio_compat.listen(chosen, "change", describe, [chosen], [facts])
    gradio_compat.listen(use, "click", use_chosen, [chosen], [*bar.outputs, table], gradio_compat.CHOOSE)
    gradio_compat.listen(refresh, "click", look_again, [chosen], [*bar.outputs, *outputs])
    # what is active may have been changed in the top bar or by pasting
    gradio_compat.listen(bar.active, "change", lambda: page_markup.files_table(backend.vaes.rows()), (), [table])
    return outputs


def shown(backend: PageBackend, name: str | None = None) -> list[object]:
    """Updates for the widgets of `build_vae_tab`: the named file, or the active one."""
    rows = backend.vaes.rows()
    names = [row.name for row in rows]
    active = next((row.name for row in rows if row.active), names[0] if names else None)
    name = name if name in names else active
    return [
        gradio_compat.update(choices=names, value=name),
        gradio_compat.update() if name else HINT,
        page_markup.files_table(rows),
    ]


def facts_of(backend: PageBackend, name: str | None) -> Iterator[str]:
    """Markup of what is known about a file, again and again while its hash is worked out."""
    if not name:
        yield HINT
        return
    try:
        for facts in backend.vaes.facts(name):
            yield page_markup.facts_table(facts)
    except VaeKitError as error:
        yield page_markup.facts_table(VaeFacts(name, (), problem=str(error)))
