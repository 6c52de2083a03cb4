"""The whole page of the stand-alone app, from a `PageBackend`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import gradio as gr

from sd_vae_kit.standalone.job import Txt2Img
from sd_vae_kit.standalone.pages import settings_tab, top_bar, vae_tab
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend
from sd_vae_kit.standalone.pages.generation_tab import GenerationTab, build_generation_tab, follow, forecast
from sd_vae_kit.standalone.pages.top_bar import TopBarView
from sd_vae_kit.ui import catalogue_install, catalogue_tab, element_ids, gradio_compat
from sd_vae_kit.ui.catalogue_install import Neighbours
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend

TITLE = "VAE Kit"


def build_page(
    backend: PageBackend, css: str = "", head: str = "", catalogue: CatalogueBackend | None = None
) -> gr.Blocks:
    """Lay out and connect everything; its caller launches it with `gradio_compat.launch_options`."""
    page = gradio_compat.blocks(TITLE, css, head)
    with page, gr.Column(elem_id=element_ids.APP, elem_classes=["vae-kit"]):
        bar = top_bar.build_top_bar(backend)
        tabs: dict[str, GenerationTab] = {}
        with gr.Tabs(elem_id=element_ids.TABS) as tab_bar:
            for name in (element_ids.TXT2IMG, element_ids.IMG2IMG):
                with gr.Tab(name, id=name):
                    tabs[name] = build_generation_tab(backend, bar, name, catalogue)
            with gr.Tab("VAE", id=element_ids.VAE) as vae_page:
                vae_outputs = vae_tab.build_vae_tab(backend, bar)
                if catalogue is not None:
                    catalogue_tab.build_catalogue(catalogue, page, _beside(backend, bar, vae_outputs))
            with gr.Tab("Settings", id=element_ids.SETTINGS):
                if catalogue is not None:
                    catalogue_install.build_preview_shortcut(catalogue.downloads, page)
                settings = settings_tab.build_settings_tab(backend, bar)
        _connect_send(backend, tabs, tab_bar)

        # a reload shows what the server knows: choices, settings, the last job and a job that is still running
        gradio_compat.listen(page, "load", lambda: top_bar.shown(backend), (), bar.outputs)
        gradio_compat.listen(page, "load", lambda: settings_tab.shown(backend), (), settings.outputs)
        gradio_compat.listen(page, "load", lambda: vae_tab.shown(backend), (), vae_outputs)
        # files may have come or gone since the page was loaded: the top bar's refresh looks for them
        shown_again = [vae_outputs[0]]
        gradio_compat.listen(vae_page, "select", lambda name: vae_tab.shown(backend, name), shown_again, vae_outputs)
        for parts in tabs.values():
            _connect_load(backend, page, parts)
    return page


def _beside(backend: PageBackend, bar: TopBarView, files: list[object]) -> Neighbours:
    return Neighbours(bar.outputs, lambda: top_bar.shown(backend), files, lambda: vae_tab.shown(backend))


def _connect_load(backend: PageBackend, page: gr.Blocks, parts: GenerationTab) -> None:
    def restore() -> list[object]:
        job = backend.jobs.last_job(parts.form.tab)
        return parts.form.filled_with(form_values(job) if job else {})

    def resume() -> Iterator[list[object]]:
        yield from follow(backend, parts.form.tab)

    gradio_compat.listen(page, "load", restore, (), parts.form.inputs)
    gradio_compat.listen(page, "load", resume, (), parts.outputs)
    say, inputs = forecast(backend, parts.form)
    gradio_compat.listen(page, "load", say, inputs, [parts.form.forecast])


def _connect_send(backend: PageBackend, tabs: Mapping[str, GenerationTab], tab_bar: gr.Tabs) -> None:
    """The button that carries a finished picture over to img2img."""
    source, target = tabs[element_ids.TXT2IMG], tabs[element_ids.IMG2IMG]

    def send(index: int) -> list[object]:
        pictures = backend.jobs.snapshot(source.form.tab).pictures
        job = backend.jobs.last_job(source.form.tab)
        if not pictures or job is None:
            gr.Warning("There is no picture to send yet; generate one first.")
            return [gradio_compat.update() for _ in (tab_bar, *target.form.inputs)]
        values = {**form_values(job), "picture": str(pictures[min(index, len(pictures) - 1)].path)}
        return [gradio_compat.update(selected=element_ids.IMG2IMG), *target.form.filled_with(values)]

    assert source.send is not None
    gradio_compat.listen(source.send, "click", send, [source.results.chosen], [tab_bar, *target.form.inputs])


def form_values(job: Txt2Img) -> dict[str, object]:
    """A job's values as widgets show them."""
    return {name: str(value) if name == "picture" and value else value for name, value in asdict(job).items()}
