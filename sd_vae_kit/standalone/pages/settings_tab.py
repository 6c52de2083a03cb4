"""Settings tab: a widget and a sentence for every setting, made from their specifications; saved at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sd_vae_kit.settings.sections import SECTION_TITLES, SPECS, Settings
from sd_vae_kit.settings.spec import Spec, Value
from sd_vae_kit.standalone.pages import top_bar
from sd_vae_kit.standalone.pages.backend_protocol import PageBackend
from sd_vae_kit.standalone.pages.top_bar import TopBarView
from sd_vae_kit.ui import element_ids, gradio_compat, markup
from sd_vae_kit.ui.element_ids import element_id
from sd_vae_kit.web.message import Message


@dataclass(frozen=True)
class SettingsView:
    """Widgets in the order of `SPECS`, and a heading per section."""

    controls: dict[str, gr.components.Component]
    headings: dict[str, gr.HTML]

    @property
    def outputs(self) -> list[object]:
        return list(self.controls.values())


def build_settings_tab(backend: PageBackend, bar: TopBarView) -> SettingsView:
    """Lay out the tab and connect it."""
    view = SettingsView({}, {})
    vaes = backend.vaes.top_bar().vaes
    values = backend.settings.values()
    with gr.Column(elem_classes=["vk-settings"]):
        search = gr.Textbox(
            label="Search settings",
            placeholder="Part of a name or of its explanation; changes below are saved at once",
            elem_id=element_ids.SETTINGS_SEARCH,
        )
        found = gradio_compat.html("", element_ids.SETTINGS_FOUND, often_empty=True)
        for spec in SPECS:
            if spec.section not in view.headings:
                view.headings[spec.section] = _heading(spec.section)
            view.controls[spec.key] = _control(spec, values[spec.key], vaes)
    for spec in SPECS:
        _save_changes(backend, bar, spec, view.controls[spec.key])
    gradio_compat.listen(
        search, "change", filtered, [search], [*view.headings.values(), *view.controls.values(), found]
    )
    # the SD VAE setting is in the top bar, too
    gradio_compat.listen(bar.active, "change", lambda: shown(backend), (), view.outputs)
    return view


def shown(backend: PageBackend) -> list[object]:
    """Updates for `SettingsView.outputs` with the values in force."""
    values, vaes = backend.settings.values(), list(backend.vaes.top_bar().vaes)
    return [
        gradio_compat.update(choices=vaes, value=values[spec.key])
        if spec.control == "vae"
        else gradio_compat.update(value=values[spec.key])
        for spec in SPECS
    ]


def matches(spec: Spec, words: Sequence[str]) -> bool:
    """Whether every word occurs in the setting's label, help, section or key."""
    text = " ".join((spec.label, spec.help, SECTION_TITLES[spec.section], spec.key)).lower()
    return all(word in text for word in words)


def filtered(query: str) -> list[object]:
    """Updates of visibility for headings and controls, and a line if nothing is left."""
    words = (query or "").lower().split()
    hits = {spec.key: matches(spec, words) for spec in SPECS}
    sections = {spec.section for spec in SPECS if hits[spec.key]}
    headings = [gradio_compat.update(visible=section in sections) for section in SECTION_TITLES]
    nothing = [] if sections else [Message(f'No setting speaks of "{query.strip()}".', "warning")]
    controls = [gradio_compat.update(visible=hit) for hit in hits.values()]
    return [*headings, *controls, markup.status_lines(nothing)]


def _heading(section: str) -> gr.HTML:
    explanation = (getattr(Settings(), section).__doc__ or "").strip().splitlines()[0]
    return gradio_compat.html(
        f'<div class="vk-section"><b>{SECTION_TITLES[section]}</b> <span>{explanation}</span></div>',
        element_id("settings", "section", section),
    )


def _control(spec: Spec, value: Value, vaes: Sequence[str]) -> gr.components.Component:
    """The widget for one setting."""
    label = f"{spec.label} ({spec.unit})" if spec.unit else spec.label
    common: dict[str, Any] = {
        "label": label,
        "info": spec.help,
        "value": value,
        "elem_id": setting_id(spec),
        "elem_classes": ["vk-setting"],
    }
    limits: dict[str, Any] = {"minimum": spec.minimum, "maximum": spec.maximum, "step": spec.step}
    makers: dict[str, Callable[[], gr.components.Component]] = {
        "checkbox": lambda: gr.Checkbox(**common),
        "slider": lambda: gr.Slider(**limits, **common),
        "number": lambda: gr.Number(**limits, **common),
        "choice": lambda: gr.Radio(spec.labelled_choices, **common),
        "text": lambda: gr.Textbox(**common),
        "vae": lambda: gr.Dropdown(list(vaes), **common),
    }
    return makers[spec.control]()


def setting_id(spec: Spec) -> str:
    """DOM id of a setting's widget."""
    return element_id("settings", spec.section, spec.name)


def _save_changes(backend: PageBackend, bar: TopBarView, spec: Spec, control: gr.components.Component) -> None:
    """Save the setting when its widget changes; a value that does not fit is put back."""

    def save(value: object) -> list[object]:
        if value == backend.settings.values()[spec.key]:  # a field was left as it was
            return [gradio_compat.update() for _ in (control, *bar.outputs)]
        updates = top_bar.attempt(backend, lambda: backend.settings.change({spec.key: value}))
        kept = backend.settings.values()[spec.key]
        return [gradio_compat.update() if kept == value else gradio_compat.update(value=kept), *updates]

    # never "change": it also tells of values the server has just put in, and two of them on their way at once would
    # set each other for ever
    for event in ("blur", "submit") if spec.control == "text" else ("input",):
        gradio_compat.listen(control, event, save, [control], [control, *bar.outputs], gradio_compat.CHOOSE_LATEST)
