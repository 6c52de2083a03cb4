"""The catalogue's list: a filter, a table, a selection and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.ui import catalogue_markup, gradio_compat
from sd_vae_kit.ui.element_ids import catalogue_id
from sd_vae_kit.vaes.gallery_row import SHOWN, GalleryRow, filtered
from sd_vae_kit.web.catalogue_protocol import GalleryBackend

ANY_FAMILY = "any family"
CONSENT = "I have read the warning and want it all the same"
BUTTONS = {"install": "Install", "cancel": "Cancel", "verify": "Verify", "reveal": "Show in folder"}


@dataclass(frozen=True)
class Filter:
    """What the list is narrowed to; the values of `CatalogueView.filter`.

    Attributes:
        query: Words that must occur.
        family: A family's label, or `ANY_FAMILY`.
        shown: One of `SHOWN`.
    """

    query: str = ""
    family: str = ANY_FAMILY
    shown: str = SHOWN[0]

    def rows(self, gallery: GalleryBackend) -> list[GalleryRow]:
        """The rows that are left."""
        names = dict(gallery.families())
        return filtered(gallery.rows(), self.query or "", names.get(self.family, ""), self.shown or SHOWN[0])


@dataclass(frozen=True)
class CatalogueView:
    """The widgets that are filled again when something changed.

    Attributes:
        query, family, shown: The filter.
        table, chosen, about, accepted: List, selection, what is known about it, consent.
        buttons: By the names in `BUTTONS`.
        progress: Downloads and answers.
        wanted, look: Hidden: a VAE that a script of the page wants selected, and the button it presses for it.
    """

    query: gr.Textbox
    family: gr.Dropdown
    shown: gr.Radio
    table: gr.HTML
    chosen: gr.Dropdown
    about: gr.HTML
    accepted: gr.Checkbox
    buttons: dict[str, gr.Button]
    progress: gr.HTML
    wanted: gr.Textbox
    look: gr.Button

    @property
    def filter(self) -> list[object]:
        return [self.query, self.family, self.shown]

    @property
    def outputs(self) -> list[object]:
        return [self.table, self.chosen, self.about, self.accepted]


def build_list(gallery: GalleryBackend) -> CatalogueView:
    """Lay out the list with its buttons; `connect_list` and `catalogue_install` connect it."""
    families = [ANY_FAMILY, *(label for label, _ in gallery.families())]
    rows = gallery.rows()
    with gr.Row(elem_classes=["vk-columns"]):
        query = gr.Textbox(
            label="Search", placeholder="name, hash, vivid, fp32, ...", elem_id=catalogue_id("query"), scale=3
        )
        family = gr.Dropdown(families, value=ANY_FAMILY, label="Family", elem_id=catalogue_id("family"), scale=2)
        shown = gr.Radio(list(SHOWN), value=SHOWN[0], label="Show", elem_id=catalogue_id("shown"), scale=4)
    table = gradio_compat.html(catalogue_markup.catalogue_table(rows), catalogue_id("table"))
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=2, min_width=320):
            chosen = gr.Dropdown([row.key for row in rows], value=None, label="VAE", elem_id=catalogue_id("chosen"))
            about = gradio_compat.html(catalogue_markup.about(None), catalogue_id("about"))
        with gr.Column(scale=3, min_width=320):
            accepted = gr.Checkbox(value=False, label=CONSENT, visible=False, elem_id=catalogue_id("accepted"))
            buttons = _build_buttons()
            progress = gradio_compat.html("", catalogue_id("progress"), often_empty=True)
    with gr.Row(elem_classes=["vk-hidden"]):
        wanted = gr.Textbox(show_label=False, elem_id=catalogue_id("wanted"))
        look = gr.Button("Look again", elem_id=catalogue_id("look"))
    return CatalogueView(query, family, shown, table, chosen, about, accepted, buttons, progress, wanted, look)


def _build_buttons() -> dict[str, gr.Button]:
    """What can be done with the selected VAE."""
    with gr.Row(elem_classes=["vk-buttons"]):
        return {
            name: gr.Button(
                label,
                variant="primary" if name == "install" else "secondary",
                elem_id=catalogue_id(name),
                size="sm",
                min_width=90,
            )
            for name, label in BUTTONS.items()
        }


def connect_list(gallery: GalleryBackend, view: CatalogueView, page: gr.Blocks) -> None:
    """Let filter, selection and the page's own script change what the list shows."""

    def narrow(query: str, family: str, shown: str, key: str | None) -> list[object]:
        return list_updates(gallery, Filter(query, family, shown), key)

    def describe(key: str | None) -> list[object]:
        return _about_updates(next((row for row in gallery.rows() if row.key == key), None))

    def look(query: str, family: str, shown: str, key: str | None, wanted: str) -> list[object]:
        """As the list is now; the wanted VAE is shown whatever the filter says, and selected."""
        if not wanted:
            unchanged = [gradio_compat.update() for _ in view.filter]
            return [*unchanged, "", *list_updates(gallery, Filter(query, family, shown), key)]
        everything = [gradio_compat.update(value=value) for value in ("", ANY_FAMILY, SHOWN[0])]
        return [*everything, "", *list_updates(gallery, key=wanted, select=True)]

    asked = [*view.filter, view.chosen]
    for widget in (view.query, view.family, view.shown):
        gradio_compat.listen(widget, "change", narrow, asked, view.outputs)
    gradio_compat.listen(view.chosen, "change", describe, [view.chosen], [view.about, view.accepted])
    gradio_compat.listen(view.look, "click", look, [*asked, view.wanted], [*view.filter, view.wanted, *view.outputs])
    gradio_compat.listen(page, "load", narrow, asked, view.outputs)


def list_updates(
    gallery: GalleryBackend, narrowed: Filter | None = None, key: str | None = None, *, select: bool = False
) -> list[object]:
    """Updates for `CatalogueView.outputs`.

    The selection `key` is only touched if it is no longer in the list, since the user may have chosen something else
    meanwhile; with `select` it is set.
    """
    rows = (narrowed or Filter()).rows(gallery)
    row = next((row for row in rows if row.key == key), None)
    keys = [row.key for row in rows]
    listed = gradio_compat.update(choices=keys)
    if select or (key and not row):
        listed = gradio_compat.update(choices=keys, value=row.key if row else None)
    return [catalogue_markup.catalogue_table(rows), listed, *_about_updates(row)]


def _about_updates(row: GalleryRow | None) -> list[object]:
    asks_consent = bool(row and row.can_install and row.cautions)
    return [catalogue_markup.about(row), gradio_compat.update(visible=asks_consent, value=False)]
