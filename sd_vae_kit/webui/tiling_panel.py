"""The accordion "Tiled VAE" under txt2img and img2img: what this job may take, and a sentence on what will happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sd_vae_kit.errors import SettingError
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.job import TILING_SPECS, job_from
from sd_vae_kit.settings.spec import Spec, Value
from sd_vae_kit.ui import gradio_compat
from sd_vae_kit.ui.markup import marked
from sd_vae_kit.wording import Sentence

SIZES = ("width", "height")
HIRES = ("hr-checkbox", "hr_scale", "hr_resize_x", "hr_resize_y")  # of txt2img: the decode is of the enlarged picture
NAMES = [spec.name for spec in TILING_SPECS]


@dataclass
class TilingPanel:
    """The accordion's widgets, and the web UI's own that say how large the picture will be.

    Attributes:
        tab: "txt2img" or "img2img".
        sentence: What will happen.
        controls: In the order of `TILING_SPECS`.
        refresh: The button that is pressed when the VAE may have changed.
        sizes: The web UI's widgets by the end of their DOM id, once they were found.
    """

    tab: str
    host: WebuiHost
    sentence: Any
    controls: list[Any]
    refresh: Any
    sizes: dict[str, Any] = field(default_factory=dict)

    def connect(self, seen: Mapping[str, Any]) -> None:
        """Follow the web UI's widgets, once those that are needed are there; repeated calls do nothing.

        Args:
            seen: Widgets by DOM id; complete ones only, as an event cannot be attached to one that is being built.
        """
        if self.sizes or any(f"{self.tab}_{name}" not in seen for name in SIZES):
            return
        ids = {name: f"{self.tab}_{name}" for name in (*SIZES, *HIRES)}
        self.sizes = {name: seen[elem_id] for name, elem_id in ids.items() if elem_id in seen}
        inputs = [*self.sizes.values(), *self.controls]
        for widget, event in [*((widget, "change") for widget in inputs), (self.refresh, "click")]:
            gradio_compat.listen(widget, event, self.said, inputs, [self.sentence])

    def said(self, *values: object) -> str:
        """The sentence for what the widgets hold."""
        given = dict(zip([*self.sizes, *NAMES], values, strict=True))
        try:
            size = final_size(given)
            job = job_from([{name: given[name] for name in NAMES}]).tiling
        except (SettingError, TypeError, ValueError):  # a field is empty while somebody types
            return ""
        return html_of(self.host.forecasts.forecast(size, job))


def build(tab: str, host: WebuiHost, refresh: Any) -> TilingPanel:
    """Lay out the accordion of one tab."""
    with gr.Accordion("Tiled VAE", open=False, elem_id=f"vae_kit_{tab}_tiled_vae", elem_classes=["vae-kit"]):
        sentence = gr.HTML("", elem_id=f"vae_kit_{tab}_forecast", elem_classes=["vae-kit"])
        *plain, advanced = TILING_SPECS
        controls = [control(tab, spec) for spec in plain]
        with gr.Accordion("Advanced", open=False, elem_id=f"vae_kit_{tab}_tiling_advanced"):
            controls.append(control(tab, advanced))
    return TilingPanel(tab, host, sentence, controls, refresh)


def control(tab: str, spec: Spec) -> Any:
    """The widget for one setting of a job.

    A radio's values are its labels.  The web UI keeps widgets' defaults in ui-config.json and takes one back only if it
    is among what the radio shows (A1111 and Forge modules/ui_loadsave.py:11 and 85, SD.Next :67), so an identifier
    would not be restored, and a label restored from an earlier start would select nothing.  `job_from` reads both.
    """
    common: dict[str, Any] = {
        "value": shown(spec, spec.default),
        "label": labelled(spec),
        "info": spec.help,
        "elem_id": f"vae_kit_{tab}_{spec.name}",
    }
    if spec.control == "choice":
        return gr.Radio([choice.label for choice in spec.choices], **common)
    return gr.Number(precision=0, **common)


def shown(spec: Spec, value: Value) -> Value:
    """What the widget holds for a value."""
    return spec.label_of(value) if spec.choices else value


def labelled(spec: Spec) -> str:
    """The label with its unit."""
    return f"{spec.label} ({spec.unit})" if spec.unit else spec.label


def final_size(given: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the picture that is decoded, after hires fix if that is on."""
    width, height = int(given["width"]), int(given["height"])
    if not given.get("hr-checkbox"):
        return height, width
    x, y = int(given.get("hr_resize_x") or 0), int(given.get("hr_resize_y") or 0)
    if x and y:
        return y, x
    scale = x / width if x else y / height if y else float(given.get("hr_scale") or 1)
    return round(height * scale), round(width * scale)


def html_of(forecast: Sentence) -> str:
    """Every run of words in an element of its own, so that the web UI can translate it."""
    return f'<p class="vae-kit-forecast">{marked(forecast)}</p>'
