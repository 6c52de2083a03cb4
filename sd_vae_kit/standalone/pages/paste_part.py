"""Restoring a form from a picture's parameters or their text, and installing the VAE they name if it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.standalone.pages import top_bar
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend, Pasted
from sd_vae_kit.standalone.pages.generation_form import Form
from sd_vae_kit.standalone.pages.top_bar import TopBarView
from sd_vae_kit.ui import gradio_compat, markup
from sd_vae_kit.ui.catalogue_install import followed
from sd_vae_kit.ui.element_ids import element_id
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend
from sd_vae_kit.web.message import Message


@dataclass(frozen=True)
class PasteView:
    """The widgets; `outputs` is the order in which `_Paste` fills them."""

    text: gr.Textbox
    dropped: gr.File
    apply: gr.Button
    install: gr.Button
    progress: gr.HTML
    missing: gr.State


def build_paste(backend: PageBackend, bar: TopBarView, form: Form, catalogue: CatalogueBackend | None) -> None:
    """Lay out the part and connect it."""
    view = _lay_out(form.tab)
    paste = _Paste(backend, form, bar)
    offered = [view.install, view.missing]
    outputs = [*form.inputs, *bar.outputs, *offered]

    def fetch(name: str, content: str) -> Iterator[list[object]]:
        """Install what was missing, then paste again, which chooses it."""
        unchanged = [gradio_compat.update() for _ in outputs]
        if catalogue is None or not name:
            return
        for shown in followed(catalogue.downloads, lambda: catalogue.downloads.install(name, False)):
            yield [*unchanged, shown]
        if not catalogue.gallery.is_missing(name):
            yield [*paste.restore(content), gradio_compat.update()]

    gradio_compat.listen(view.apply, "click", paste.restore, [view.text], outputs)
    gradio_compat.listen(view.dropped, "upload", paste.restore_file, [view.dropped], [view.text, *outputs])
    gradio_compat.listen(view.install, "click", fetch, [view.missing, view.text], [*outputs, view.progress])


def _lay_out(tab: str) -> PasteView:
    with gr.Accordion("Paste: restore from a picture or its parameters", open=False, elem_id=element_id(tab, "paste")):
        with gr.Row():
            text = gr.Textbox(
                label="Parameters",
                lines=4,
                max_lines=8,
                placeholder="Paste the text that belongs to a picture",
                elem_id=element_id(tab, "paste_text"),
                scale=2,
            )
            dropped = gradio_compat.file_drop("Or drop the PNG", element_id(tab, "paste_file"), height=130)
        apply = gr.Button("Apply", elem_id=element_id(tab, "paste_apply"), size="sm")
        install = gr.Button("Install", visible=False, elem_id=element_id(tab, "paste_install"), size="sm")
        progress = gradio_compat.html("", element_id(tab, "paste_progress"), often_empty=True)
    return PasteView(text, dropped, apply, install, progress, gr.State(""))


@dataclass(frozen=True)
class _Paste:
    """Makes the updates: the form's fields, the top bar, the button for a missing VAE and its name."""

    backend: PageBackend
    form: Form
    bar: TopBarView

    def restore(self, content: str) -> list[object]:
        """From the text."""
        pasted = [Pasted({}, ())]
        *updates, status = top_bar.attempt(self.backend, lambda: pasted.append(self.backend.pasting.paste(content)))
        last = pasted[-1]
        said = markup.status_lines(Message(note) for note in last.notes)
        return [*self.form.filled_with(last.values), *updates, said or status, *_offer(last.missing)]

    def restore_file(self, value: object) -> list[object]:
        """From a picture: its text first, then as `restore`."""
        path, found = gradio_compat.path_of(value), [""]
        failure = top_bar.failure_of(lambda: found.append(self.backend.pasting.infotext_of(path))) if path else None
        if failure or not path:
            unchanged = [gradio_compat.update() for _ in (*self.form.inputs, *self.bar.outputs)]
            line = markup.status_lines([failure] if failure else [])
            return [gradio_compat.update(), *unchanged[:-1], line, *_offer("")]
        return [found[-1], *self.restore(found[-1])]


def _offer(name: str) -> list[object]:
    return [gradio_compat.update(value=f'Install "{name}" and use it', visible=bool(name)), name]
