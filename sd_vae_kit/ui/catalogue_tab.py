"""The catalogue's and the rules' part of the VAE tab: find, install, verify; edit rules and have them explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.ui import gradio_compat, markup
from sd_vae_kit.ui.element_ids import element_id
from sd_vae_kit.vaes.gallery_row import SHOWN, GalleryRow, filtered
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend, InstallView, RuleLine
from sd_vae_kit.web.message import Message

ANY_FAMILY = "any family"
HEADS = ("Name", "Family", "Size", "Hash", "Precision", "Origin", "Used by", "What it is good for")
SHORTCUT = "Install TAESD for live previews ({})"
CONSENT = "I have read the warning and want it all the same"


def _id(name: str) -> str:
    return element_id("catalogue", name)


def style() -> str:
    """The rules for this part alone, for pages that do not have the app's style sheet."""
    return Path(__file__).with_name("catalogue.css").read_text("utf-8")


@dataclass(frozen=True)
class Neighbours:
    """Other parts of the page that show what is active and which files there are.

    Attributes:
        active, show_active: Widgets, and updates for them, after the rules have changed.
        files, show_files: Widgets, and updates for them, after a file has come, besides those of `active`.
    """

    active: Sequence[object] = ()
    show_active: Callable[[], list[object]] = list
    files: Sequence[object] = ()
    show_files: Callable[[], list[object]] = list


@dataclass(frozen=True)
class CatalogueView:
    """The widgets that are filled again when something changed.

    Attributes:
        query, family, shown: The filter.
        table, chosen, about, accepted: List, selection, what is known about it, consent.
        buttons: "install", "cancel", "verify" and "reveal".
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


def build_catalogue(catalogue: CatalogueBackend, page: gr.Blocks, beside: Neighbours | None = None) -> None:
    """Lay out both parts and connect them.

    Args:
        catalogue: The backend.
        page: For its load event.
        beside: What else on the page shows an installed file or changed rules.
    """
    beside = beside or Neighbours()
    _heading("Catalogue", "Installed and known VAEs. Nothing is downloaded unless you press Install.", "heading")
    notice = gradio_compat.html(notice_html(catalogue), _id("notice"), often_empty=True)
    gradio_compat.listen(page, "load", lambda: notice_html(catalogue), (), [notice])
    view = _build_list(catalogue)
    _connect_list(catalogue, view, page)
    _connect_install(catalogue, view, page, beside)
    _heading("Rules", "Which VAE goes with which checkpoint and pass while SD VAE says Automatic.", "rules_heading")
    _build_rules(catalogue, page, beside)
    _heading(
        "Precision", "What a VAE needed to stay finite in half precision is kept for the next picture.", "precision"
    )
    _build_precision(catalogue)


def notice_html(catalogue: CatalogueBackend) -> str:
    """What cannot be done here, and why."""
    text = catalogue.notice()
    return markup.status_lines([Message(text, "warning")]) if text else ""


def build_preview_shortcut(catalogue: CatalogueBackend, page: gr.Blocks) -> None:
    """One button: the tiny decoder that live previews want, for the family in use."""
    with gr.Row(elem_classes=["vk-choose"]):
        label = catalogue.tiny_label()
        button = gr.Button(
            SHORTCUT.format(label), visible=bool(label), elem_id=_id("tiny"), size="sm", scale=0, min_width=340
        )
    progress = gradio_compat.html("", _id("tiny_progress"), often_empty=True)

    def fetch() -> Iterator[str]:
        yield from followed(catalogue, catalogue.install_tiny)

    gradio_compat.listen(button, "click", fetch, (), [progress])

    def offer() -> object:
        label = catalogue.tiny_label()
        return gradio_compat.update(value=SHORTCUT.format(label), visible=bool(label))

    gradio_compat.listen(page, "load", offer, (), [button])


def _heading(title: str, explanation: str, name: str) -> None:
    gradio_compat.html(
        f'<div class="vk-section"><b>{escape(title)}</b> <span>{escape(explanation)}</span></div>', _id(name)
    )


# --- list ------------------------------------------------------------------------------------------------------------


def _build_list(catalogue: CatalogueBackend) -> CatalogueView:
    families = [ANY_FAMILY, *(label for label, _ in catalogue.families())]
    rows = catalogue.rows()
    with gr.Row(elem_classes=["vk-columns"]):
        query = gr.Textbox(label="Search", placeholder="name, hash, vivid, fp32, ...", elem_id=_id("query"), scale=3)
        family = gr.Dropdown(families, value=ANY_FAMILY, label="Family", elem_id=_id("family"), scale=2)
        shown = gr.Radio(list(SHOWN), value=SHOWN[0], label="Show", elem_id=_id("shown"), scale=4)
    table = gradio_compat.html(catalogue_table(rows), _id("table"))
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=2, min_width=320):
            chosen = gr.Dropdown([row.key for row in rows], value=None, label="VAE", elem_id=_id("chosen"))
            about = gradio_compat.html(about_html(None), _id("about"))
        with gr.Column(scale=3, min_width=320):
            accepted = gr.Checkbox(value=False, label=CONSENT, visible=False, elem_id=_id("accepted"))
            buttons = _build_buttons()
            progress = gradio_compat.html(progress_html(catalogue.installing()), _id("progress"), often_empty=True)
    with gr.Row(elem_classes=["vk-hidden"]):
        wanted = gr.Textbox(show_label=False, elem_id=_id("wanted"))
        look = gr.Button("Look again", elem_id=_id("look"))
    return CatalogueView(query, family, shown, table, chosen, about, accepted, buttons, progress, wanted, look)


def _build_buttons() -> dict[str, gr.Button]:
    """What can be done with the selected VAE."""
    labels = {"install": "Install", "cancel": "Cancel", "verify": "Verify", "reveal": "Show in folder"}
    with gr.Row(elem_classes=["vk-buttons"]):
        return {
            name: gr.Button(
                label,
                variant="primary" if name == "install" else "secondary",
                elem_id=_id(name),
                size="sm",
                min_width=90,
            )
            for name, label in labels.items()
        }


def _connect_list(catalogue: CatalogueBackend, view: CatalogueView, page: gr.Blocks) -> None:
    def narrow(query: str, family: str, shown: str, key: str | None) -> list[object]:
        return list_updates(catalogue, query, family, shown, key)

    def describe(key: str | None) -> list[object]:
        return _about_updates(_row(catalogue, key))

    for widget in (view.query, view.family, view.shown):
        gradio_compat.listen(widget, "change", narrow, [*view.filter, view.chosen], view.outputs)

    def look(query: str, family: str, shown: str, key: str | None, wanted: str) -> list[object]:
        """As the list is now; the wanted VAE is shown whatever the filter says, and selected."""
        if not wanted:
            return [
                *(gradio_compat.update() for _ in view.filter),
                "",
                *list_updates(catalogue, query, family, shown, key),
            ]
        everything = [gradio_compat.update(value=value) for value in ("", ANY_FAMILY, SHOWN[0])]
        return [*everything, "", *list_updates(catalogue, key=wanted, select=True)]

    gradio_compat.listen(view.chosen, "change", describe, [view.chosen], [view.about, view.accepted])
    asked = [*view.filter, view.chosen, view.wanted]
    gradio_compat.listen(view.look, "click", look, asked, [*view.filter, view.wanted, *view.outputs])
    gradio_compat.listen(page, "load", narrow, [*view.filter, view.chosen], view.outputs)


def list_updates(
    catalogue: CatalogueBackend,
    query: str = "",
    family: str = ANY_FAMILY,
    shown: str = SHOWN[0],
    key: str | None = None,
    *,
    select: bool = False,
) -> list[object]:
    """Updates for `CatalogueView.outputs`.

    The selection `key` is only touched if it is no longer in the list, since the user may have chosen something else
    meanwhile; with `select` it is set.
    """
    names = dict(catalogue.families())
    rows = filtered(catalogue.rows(), query or "", names.get(family, ""), shown or SHOWN[0])
    row = next((row for row in rows if row.key == key), None)
    keys = [row.key for row in rows]
    if select or (key and not row):
        listed = gradio_compat.update(choices=keys, value=row.key if row else None)
    else:
        listed = gradio_compat.update(choices=keys)
    return [
        catalogue_table(rows),
        listed,
        *_about_updates(row),
    ]


def _about_updates(row: GalleryRow | None) -> list[object]:
    wanted = bool(row and row.can_install and row.cautions)
    return [about_html(row), gradio_compat.update(visible=wanted, value=False)]


def _row(catalogue: CatalogueBackend, key: str | None) -> GalleryRow | None:
    return next((row for row in catalogue.rows() if row.key == key), None)


# --- actions ---------------------------------------------------------------------------------------------------------


def _connect_install(catalogue: CatalogueBackend, view: CatalogueView, page: gr.Blocks, beside: Neighbours) -> None:
    everything = [view.progress, *view.outputs, *beside.active, *beside.files]

    def fetch(key: str | None, accepted: bool, query: str, family: str, shown: str) -> Iterator[list[object]]:
        for text in followed(catalogue, lambda: catalogue.install(_named(key), bool(accepted))):
            yield [text, *(gradio_compat.update() for _ in everything[1:])]
        listed = list_updates(catalogue, query, family, shown, key)
        yield [gradio_compat.update(), *listed, *beside.show_active(), *beside.show_files()]

    def verify(key: str | None) -> Iterator[str]:
        yield from _shown_while(lambda: catalogue.verify(_named(key)))

    def reveal(key: str | None) -> str:
        return _answered(lambda: catalogue.reveal(_named(key)))

    def resume() -> Iterator[str]:
        yield from _shown_while(catalogue.watch)

    chosen = [view.chosen, view.accepted, *view.filter]
    gradio_compat.listen(view.buttons["install"], "click", fetch, chosen, everything)
    gradio_compat.listen(view.buttons["cancel"], "click", catalogue.cancel)
    gradio_compat.listen(view.buttons["verify"], "click", verify, [view.chosen], [view.progress])
    gradio_compat.listen(view.buttons["reveal"], "click", reveal, [view.chosen], [view.progress])
    gradio_compat.listen(page, "load", resume, (), [view.progress])


def _named(key: str | None) -> str:
    if not key:
        raise VaeKitError("Choose a VAE in the list first.")
    return key


def followed(catalogue: CatalogueBackend, begin: Callable[[], object]) -> Iterator[str]:
    """Start something and show the downloads until they have ended; an error is one line."""

    def states() -> Iterator[InstallView]:
        begin()
        yield from catalogue.watch()

    yield from _shown_while(states)


def _shown_while(work: Callable[[], Iterator[InstallView]]) -> Iterator[str]:
    try:
        for state in work():
            yield progress_html(state)
    except VaeKitError as error:
        yield markup.status_lines([Message(str(error), "error")])


def _answered(ask: Callable[[], Message]) -> str:
    try:
        return markup.status_lines([ask()])
    except VaeKitError as error:
        return markup.status_lines([Message(str(error), "error")])


# --- rules -----------------------------------------------------------------------------------------------------------


def _build_precision(catalogue: CatalogueBackend) -> None:
    with gr.Row(elem_classes=["vk-choose"]):
        forget = gr.Button("Forget what was learnt", elem_id=_id("forget"), size="sm", scale=0, min_width=200)
    told = gradio_compat.html("", _id("forgotten"), often_empty=True)
    gradio_compat.listen(forget, "click", lambda: _answered(catalogue.forget_precision), (), [told])


def _build_rules(catalogue: CatalogueBackend, page: gr.Blocks, beside: Neighbours) -> None:
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=3, min_width=320):
            text = gr.Textbox(label="vae_rules.json", lines=10, max_lines=24, elem_id=_id("rules"))
        with gr.Column(scale=2, min_width=320):
            runs = list(catalogue.passes())
            run = gr.Dropdown(runs, value=runs[0], label="Explain for pass", elem_id=_id("pass"))
            with gr.Row(elem_classes=["vk-buttons"]):
                explain = gr.Button("Explain", elem_id=_id("explain"), size="sm")
                save = gr.Button("Save", variant="primary", elem_id=_id("save_rules"), size="sm")
                cards = gr.Button("Import cards", elem_id=_id("import_cards"), size="sm")
            told = gradio_compat.html("", _id("told"), often_empty=True)

    def show(written: str, for_pass: str) -> str:
        try:
            return rules_table(catalogue.explain(written, for_pass))
        except VaeKitError as error:
            return markup.status_lines([Message(str(error), "error")])

    def keep(written: str) -> list[object]:
        line = _answered(lambda: catalogue.save_rules(written))
        return [line, *beside.show_active()]

    def add(written: str) -> list[object]:
        try:
            longer, message = catalogue.import_cards(written)
        except VaeKitError as error:
            return [gradio_compat.update(), markup.status_lines([Message(str(error), "error")])]
        return [longer, markup.status_lines([message])]

    gradio_compat.listen(explain, "click", show, [text, run], [told])
    gradio_compat.listen(save, "click", keep, [text], [told, *beside.active], lane="choose")
    gradio_compat.listen(cards, "click", add, [text], [text, told])
    gradio_compat.listen(page, "load", catalogue.rules_text, (), [text])


# --- markup ----------------------------------------------------------------------------------------------------------


def catalogue_table(rows: Sequence[GalleryRow]) -> str:
    """All rows, the live file marked, broken ones with their reason."""
    if not rows:
        return '<p class="vk-hint">Nothing fits; take words out of the search or choose "all".</p>'
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    body = "".join(_table_row(row) for row in rows)
    table = f'<table class="vk-files vk-known"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="vk-scroll vk-tall">{table}</div>'


def _table_row(row: GalleryRow) -> str:
    kind = "vk-broken" if row.problem else "vk-is-active" if row.is_active else ""
    state = {"installed": "installed", "can be installed": "can be installed", "only recognised": ""}[row.group]
    badge = f' <span class="vk-badge vk-{row.group.split()[0]}">{state}</span>' if state else ""
    cells = (
        row.family,
        size_text(row.size),
        row.digits,
        row.precision,
        row.origin,
        ", ".join(row.used_by),
        row.problem or row.note,
    )
    texts = "".join(f"<td>{escape(text)}</td>" for text in cells)
    return f'<tr class="{kind}"><td>{escape(row.name)}{badge}</td>{texts}</tr>'


def size_text(size: int | None) -> str:
    """334641190 -> "334.6 MB"."""
    if size is None:
        return ""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} KB"


def about_html(row: GalleryRow | None) -> str:
    """What is said about the selected VAE before it is installed."""
    if row is None:
        return '<p class="vk-hint">Choose a VAE to install, verify or find it.</p>'
    notes = [Message(row.problem, "error")] if row.problem else []
    notes += [Message(text, "warning") for text in row.cautions if row.can_install]
    facts = (
        ("Family", row.family),
        ("Size", size_text(row.size) or "not known"),
        ("VAE hash", row.digits or "not known"),
        ("Precision", row.precision),
        ("Origin", row.origin),
        ("Licence", row.licence),
        ("Used by", ", ".join(row.used_by)),
        ("Good for", row.note),
    )
    lines = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts if value)
    return f'{markup.status_lines(notes)}<table class="vk-facts"><tbody>{lines}</tbody></table>'


def progress_html(state: InstallView) -> str:
    """A bar for what runs, one line for each download."""
    if not state.lines:
        return ""
    bar = ""
    if state.is_running:
        percent = round(100 * (state.fraction or 0.0))
        bar = (
            f'<div class="vk-progress"><div class="vk-done" style="width:{percent}%"></div>'
            f"<span>{percent} %</span></div>"
        )
    return bar + markup.status_lines(state.lines)


def rules_table(lines: Sequence[RuleLine]) -> str:
    """Rules in order, the one that decides marked."""
    if not lines:
        return markup.status_lines([Message("There are no rules; the card and files beside the checkpoint decide.")])
    body = "".join(
        f'<tr class="{"vk-is-active" if line.decides else ""}"><td>{line.number}</td><td>{escape(line.conditions)}</td>'
        f"<td>{escape(line.vae)}</td><td>{escape(line.why)}</td></tr>"
        for line in lines
    )
    heads = "".join(f"<th>{head}</th>" for head in ("", "If", "VAE", "Why or why not"))
    table = f'<table class="vk-files vk-rules"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="vk-scroll vk-shown">{table}</div>'
