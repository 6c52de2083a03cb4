"""The buttons of the catalogue's list: install, cancel, verify and show in the folder; and downloads on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.ui import catalogue_markup, gradio_compat, markup
from sd_vae_kit.ui.catalogue_list import CatalogueView, Filter, list_updates
from sd_vae_kit.ui.element_ids import catalogue_id
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend, DownloadsBackend, InstallView
from sd_vae_kit.web.message import Message

SHORTCUT = "Install TAESD for live previews ({})"


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


def connect_buttons(catalogue: CatalogueBackend, view: CatalogueView, page: gr.Blocks, beside: Neighbours) -> None:
    """Let the buttons do what they say; a page that is loaded during a download follows it."""
    everything = [view.progress, *view.outputs, *beside.active, *beside.files]

    def install(key: str | None, accepted: bool, query: str, family: str, shown: str) -> Iterator[list[object]]:
        for text in followed(catalogue.downloads, lambda: catalogue.downloads.install(_named(key), bool(accepted))):
            yield [text, *(gradio_compat.update() for _ in everything[1:])]
        listed = list_updates(catalogue.gallery, Filter(query, family, shown), key)
        yield [gradio_compat.update(), *listed, *beside.show_active(), *beside.show_files()]

    def verify(key: str | None) -> Iterator[str]:
        yield from _shown_while(lambda: catalogue.files.verify(_named(key)))

    def reveal(key: str | None) -> str:
        return answered(lambda: catalogue.files.reveal(_named(key)))

    def resume() -> Iterator[str]:
        yield from _shown_while(catalogue.downloads.watch)

    chosen = [view.chosen, view.accepted, *view.filter]
    gradio_compat.listen(view.buttons["install"], "click", install, chosen, everything)
    gradio_compat.listen(view.buttons["cancel"], "click", catalogue.downloads.cancel)
    gradio_compat.listen(view.buttons["verify"], "click", verify, [view.chosen], [view.progress])
    gradio_compat.listen(view.buttons["reveal"], "click", reveal, [view.chosen], [view.progress])
    gradio_compat.listen(page, "load", resume, (), [view.progress])


def build_preview_shortcut(downloads: DownloadsBackend, page: gr.Blocks) -> None:
    """One button: the tiny decoder that live previews want, for the family in use."""
    with gr.Row(elem_classes=["vk-choose"]):
        label = downloads.tiny_label()
        button = gr.Button(
            SHORTCUT.format(label),
            visible=bool(label),
            elem_id=catalogue_id("tiny"),
            size="sm",
            scale=0,
            min_width=340,
        )
    progress = gradio_compat.html("", catalogue_id("tiny_progress"), often_empty=True)

    def install() -> Iterator[str]:
        yield from followed(downloads, downloads.install_tiny)

    def offer() -> object:
        label = downloads.tiny_label()
        return gradio_compat.update(value=SHORTCUT.format(label), visible=bool(label))

    gradio_compat.listen(button, "click", install, (), [progress])
    gradio_compat.listen(page, "load", offer, (), [button])


def followed(downloads: DownloadsBackend, begin: Callable[[], object]) -> Iterator[str]:
    """Start something and show the downloads until they have ended; an error is one line."""

    def states() -> Iterator[InstallView]:
        begin()
        yield from downloads.watch()

    yield from _shown_while(states)


def answered(ask: Callable[[], Message]) -> str:
    """The answer as a line, or the deliberate error that came instead."""
    try:
        return markup.status_lines([ask()])
    except VaeKitError as error:
        return catalogue_markup.error_line(error)


def _named(key: str | None) -> str:
    if not key:
        raise VaeKitError("Choose a VAE in the list first.")
    return key


def _shown_while(work: Callable[[], Iterator[InstallView]]) -> Iterator[str]:
    try:
        for state in work():
            yield catalogue_markup.progress(state)
    except VaeKitError as error:
        yield catalogue_markup.error_line(error)
