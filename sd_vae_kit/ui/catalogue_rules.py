"""The rules' part of the VAE tab: the file's text, edited, saved, explained, and begun from checkpoints' cards."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.ui import catalogue_markup, gradio_compat, markup
from sd_vae_kit.ui.catalogue_install import Neighbours, answered
from sd_vae_kit.ui.element_ids import catalogue_id
from sd_vae_kit.web.catalogue_protocol import RulesBackend


@dataclass(frozen=True)
class RulesView:
    """The widgets: the file's text, the pass to explain for, three buttons and what they said."""

    text: gr.Textbox
    run: gr.Dropdown
    explain: gr.Button
    save: gr.Button
    cards: gr.Button
    told: gr.HTML


def build_rules(rules: RulesBackend, page: gr.Blocks, beside: Neighbours) -> None:
    """Lay out the editor and connect it."""
    view = _lay_out(rules)

    def explain(written: str, for_pass: str) -> str:
        try:
            return catalogue_markup.rules_table(rules.explain(written, for_pass))
        except VaeKitError as error:
            return catalogue_markup.error_line(error)

    def save(written: str) -> list[object]:
        line = answered(lambda: rules.save(written))
        return [line, *beside.show_active()]

    def add_cards(written: str) -> list[object]:
        try:
            longer, message = rules.import_cards(written)
        except VaeKitError as error:
            return [gradio_compat.update(), catalogue_markup.error_line(error)]
        return [longer, markup.status_lines([message])]

    gradio_compat.listen(view.explain, "click", explain, [view.text, view.run], [view.told])
    gradio_compat.listen(view.save, "click", save, [view.text], [view.told, *beside.active], gradio_compat.CHOOSE)
    gradio_compat.listen(view.cards, "click", add_cards, [view.text], [view.text, view.told])
    gradio_compat.listen(page, "load", rules.text, (), [view.text])


def _lay_out(rules: RulesBackend) -> RulesView:
    with gr.Row(elem_classes=["vk-columns"]):
        with gr.Column(scale=3, min_width=320):
            text = gr.Textbox(label="vae_rules.json", lines=10, max_lines=24, elem_id=catalogue_id("rules"))
        with gr.Column(scale=2, min_width=320):
            passes = list(rules.passes())
            run = gr.Dropdown(passes, value=passes[0], label="Explain for pass", elem_id=catalogue_id("pass"))
            with gr.Row(elem_classes=["vk-buttons"]):
                explain = gr.Button("Explain", elem_id=catalogue_id("explain"), size="sm")
                save = gr.Button("Save", variant="primary", elem_id=catalogue_id("save_rules"), size="sm")
                cards = gr.Button("Import cards", elem_id=catalogue_id("import_cards"), size="sm")
            told = gradio_compat.html("", catalogue_id("told"), often_empty=True)
    return RulesView(text, run, explain, save, cards, told)
