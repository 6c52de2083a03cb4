"""txt2img and img2img: a form on the left, what came of it on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings.job import TILING_SPECS
from sd_vae_kit.standalone import job as jobs
from sd_vae_kit.standalone.job import Img2Img, Snapshot, Txt2Img
from sd_vae_kit.standalone.pages import page_markup, top_bar
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend
from sd_vae_kit.standalone.pages.generation_form import Form, build_controls, build_prompts
from sd_vae_kit.standalone.pages.paste_part import build_paste
from sd_vae_kit.standalone.pages.top_bar import TopBarView
from sd_vae_kit.ui import element_ids, gradio_compat, markup
from sd_vae_kit.ui.element_ids import element_id
from sd_vae_kit.web.catalogue_protocol import CatalogueBackend

KINDS: dict[str, type[Txt2Img]] = {element_ids.TXT2IMG: Txt2Img, element_ids.IMG2IMG: Img2Img}


@dataclass(frozen=True)
class Results:
    """Widgets that show what came of a job; `outputs` is the order in which `view` fills them."""

    live: gr.HTML
    gallery: gr.Gallery
    outcome: gr.HTML
    infotext: gr.Textbox
    download: gr.components.Component
    chosen: gr.State

    @property
    def outputs(self) -> list[object]:
        return [self.live, self.gallery, self.outcome, self.infotext, self.download, self.chosen]


@dataclass(frozen=True)
class GenerationTab:
    """One tab's parts, for what connects tabs with each other."""

    form: Form
    results: Results
    generate: gr.Button
    interrupt: gr.Button
    send: gr.Button | None

    @property
    def outputs(self) -> list[object]:
        """What `follow` fills."""
        return [*self.results.outputs, self.interrupt]


def build_generation_tab(
    backend: PageBackend, bar: TopBarView, tab: str, catalogue: CatalogueBackend | None = None
) -> GenerationTab:
    """Lay out one tab and connect it."""
    form = Form(tab, KINDS[tab])
    with gr.Row(elem_classes=["vk-prompts"]):
        with gr.Column(scale=6):
            build_prompts(form)
        with gr.Column(scale=2, min_width=180, elem_classes=["vk-actions"]):
            generate = gr.Button("Generate", variant="primary", elem_id=element_id(tab, "generate"))
            interrupt = gr.Button("Interrupt", elem_id=element_id(tab, "interrupt"), interactive=False)
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=1, min_width=320, elem_classes=["vk-controls"]):
            build_controls(form)
            build_paste(backend, bar, form, catalogue)
        with gr.Column(scale=1, min_width=320, elem_classes=["vk-results"]):
            results, send = _build_results(tab)
    parts = GenerationTab(form, results, generate, interrupt, send)
    _connect(backend, bar, parts)
    return parts


def follow(backend: PageBackend, tab: str) -> Iterator[list[object]]:
    """Updates for `GenerationTab.outputs` until the tab's job has ended."""
    for snapshot in backend.jobs.watch(tab):
        yield view(snapshot)


def view(snapshot: Snapshot) -> list[object]:
    """Updates for `GenerationTab.outputs`."""
    update = gradio_compat.update
    if snapshot.is_running:
        # the style sheet hides the gallery while the live view is there
        running = [update(), "", update(), update(interactive=False), 0, update(interactive=True)]
        return [page_markup.live_view(snapshot), *running]
    paths = [str(picture.path) for picture in snapshot.pictures]
    first = snapshot.pictures[0].infotext if paths else ""
    return [
        "",
        update(value=paths, selected_index=0) if paths else update(),
        page_markup.outcome_line(snapshot),
        first if paths else update(),
        update(value=paths[0], interactive=True) if paths else update(),
        0,
        update(interactive=False),
    ]


def _build_results(tab: str) -> tuple[Results, gr.Button | None]:
    live = gradio_compat.html("", element_id(tab, "live"), often_empty=True)
    gallery = gradio_compat.picture_gallery("Pictures", element_id(tab, "gallery"), height=420)
    outcome = gradio_compat.html("", element_id(tab, "outcome"), often_empty=True)
    send = None
    with gr.Row(elem_classes=["vk-buttons"]):
        download = gradio_compat.download_button("Download PNG", element_id(tab, "download"))
        if tab == element_ids.TXT2IMG:
            send = gr.Button("Send to img2img", elem_id=element_id(tab, "send"), size="sm")
    infotext = gradio_compat.text_with_copy(
        "Parameters", element_id(tab, "infotext"), lines=3, placeholder="How the picture was made, once there is one."
    )
    return Results(live, gallery, outcome, infotext, download, gr.State(0)), send


def _connect(backend: PageBackend, bar: TopBarView, parts: GenerationTab) -> None:
    tab, form = parts.form.tab, parts.form

    def run(*values: object) -> Iterator[list[object]]:
        failure = top_bar.failure_of(lambda: backend.jobs.start(tab, form.job(values)))
        untouched = [gradio_compat.update() for _ in parts.outputs]
        if failure:
            yield [*untouched, markup.status_lines([failure])]
            return
        yield [*untouched, ""]
        for updates in follow(backend, tab):
            yield [*updates, gradio_compat.update()]
        yield [*untouched, markup.status_lines(backend.take_messages())]

    def choose(event: gr.SelectData) -> list[object]:
        index = gradio_compat.selected_index(event)
        picture = backend.jobs.snapshot(tab).pictures[index]
        return [index, picture.infotext, gradio_compat.update(value=str(picture.path))]

    def last_seed(index: int) -> object:
        pictures = backend.jobs.snapshot(tab).pictures
        return pictures[min(index, len(pictures) - 1)].seed if pictures else gradio_compat.update()

    results = parts.results
    gradio_compat.listen(parts.generate, "click", run, form.inputs, [*parts.outputs, bar.status])
    gradio_compat.listen(parts.interrupt, "click", backend.jobs.interrupt)
    gradio_compat.listen(results.gallery, "select", choose, (), [results.chosen, results.infotext, results.download])
    assert form.reuse_seed is not None
    gradio_compat.listen(form.reuse_seed, "click", last_seed, [results.chosen], [form.widgets["seed"]])
    if "picture" in form.widgets:
        _take_size_from_picture(backend, bar, form)
    _say_what_will_happen(backend, bar, form)


def forecast(backend: PageBackend, form: Form) -> tuple[Callable[..., str], list[object]]:
    """What says the sentence under "Tiled VAE", and the widgets whose values it takes."""
    names = ("width", "height", *(spec.name for spec in TILING_SPECS))

    def say(*values: object) -> str:
        given = dict(zip(names, values, strict=True))
        try:
            job = jobs.make_job(Txt2Img, given)
            return markup.forecast_line(backend.jobs.forecast((job.height, job.width), job.job_tiling))
        except VaeKitError:  # a field is empty or out of its limits while somebody types
            return ""

    return say, [form.widgets[name] for name in names]


def _say_what_will_happen(backend: PageBackend, bar: TopBarView, form: Form) -> None:
    """The sentence under "Tiled VAE", whenever something it depends on has changed."""
    say, inputs = forecast(backend, form)
    for widget in (*inputs, bar.active):
        gradio_compat.listen(widget, "change", say, inputs, [form.forecast], gradio_compat.LATEST)


def _take_size_from_picture(backend: PageBackend, bar: TopBarView, form: Form) -> None:
    """A dropped picture sets width and height; one that cannot be read says so and leaves the field."""

    def take(value: object) -> list[object]:
        path = gradio_compat.path_of(value)
        sizes: list[tuple[int, int]] = []
        failure = top_bar.failure_of(lambda: sizes.append(backend.jobs.picture_size(path))) if path else None
        if failure:
            return [None, gradio_compat.update(), gradio_compat.update(), markup.status_lines([failure])]
        height, width = sizes[0] if sizes else (gradio_compat.update(), gradio_compat.update())
        return [value, width, height, ""]

    picture = form.widgets["picture"]
    outputs = [picture, form.widgets["width"], form.widgets["height"], bar.status]
    gradio_compat.listen(picture, "upload", take, [picture], outputs)
