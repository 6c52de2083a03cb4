"""The left side of txt2img and img2img: one widget per field of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sd_vae_kit.settings.job import TILING_SPECS
from sd_vae_kit.settings.spec import Spec
from sd_vae_kit.standalone import job as jobs
from sd_vae_kit.standalone.job import Img2Img, Txt2Img
from sd_vae_kit.ui import gradio_compat
from sd_vae_kit.ui.element_ids import element_id

DICE, REUSE, SWAP = "\u2684", "\u267b", "\u21c5"


@dataclass
class Form:
    """Widgets of one tab by field name; `kind` says which job they make."""

    tab: str
    kind: type[Txt2Img]
    widgets: dict[str, gr.components.Component] = field(default_factory=dict)
    reuse_seed: gr.Button | None = None
    forecast: gr.HTML | None = None

    @property
    def inputs(self) -> list[object]:
        """The widgets, in the order of `widgets`.  There is none for CFG: it means nothing to the demo model."""
        return list(self.widgets.values())

    def job(self, values: tuple[object, ...]) -> Txt2Img:
        """The job that the inputs' values ask for; raises `OptionError`."""
        return jobs.make_job(self.kind, dict(zip(self.widgets, values, strict=True)))

    def filled_with(self, values: Mapping[str, object]) -> list[object]:
        """Updates for `inputs`; what `values` does not name stays as it is."""
        return [
            gradio_compat.update(value=values[name]) if name in values else gradio_compat.update()
            for name in self.widgets
        ]


def build_prompts(form: Form) -> None:
    """Two text fields above the columns."""
    for name, label, lines in (("prompt", "Prompt", 2), ("negative_prompt", "Negative prompt", 2)):
        hint = "One or more words of a caption, such as: cat" if name == "prompt" else "Words that should not count"
        form.widgets[name] = gr.Textbox(
            label=label,
            lines=lines,
            max_lines=8,
            placeholder=hint,
            elem_id=element_id(form.tab, name),
            elem_classes=["vk-prompt"],
        )


def build_controls(form: Form) -> None:
    """Picture (img2img only), size, steps, seed."""
    if issubclass(form.kind, Img2Img):
        _build_picture(form)
    defaults = form.kind()
    with gr.Row(elem_classes=["vk-size"]):
        with gr.Column(scale=10, min_width=120):
            for name in ("width", "height"):
                _slider(form, name, jobs.SIDE_MIN, jobs.SIDE_MAX, jobs.SIDE_STEP, getattr(defaults, name))
        swap = _tool(form, "swap", SWAP)
    with gr.Row():
        _slider(form, "steps", 1, jobs.STEPS_MAX, 1, defaults.steps)
        _slider(form, "batch_size", 1, jobs.BATCH_MAX, 1, defaults.batch_size)
    if isinstance(defaults, Img2Img):
        _slider(form, "denoising_strength", 0, 1, 0.01, defaults.denoising_strength)
    _build_seed(form, defaults.seed)
    _build_choices(form)
    _build_tiling(form)
    size = [form.widgets["width"], form.widgets["height"]]
    gradio_compat.run_in_browser(swap, "click", "(width, height) => [height, width]", size, size)


def _build_picture(form: Form) -> None:
    form.widgets["picture"] = gradio_compat.picture_input(
        "Picture to start from (drop, click or paste)", element_id(form.tab, "picture"), height=300
    )
    form.widgets["resize_mode"] = gr.Radio(
        list(jobs.RESIZE_MODES),
        value=jobs.RESIZE_MODES[0],
        label="If the picture has another shape",
        elem_id=element_id(form.tab, "resize_mode"),
    )


def _build_choices(form: Form) -> None:
    """What the job may decide otherwise than the settings."""
    choices = [("vae_decoder", "VAE type for decode", jobs.VAE_TYPES), ("preview", "Live preview", jobs.PREVIEWS)]
    if issubclass(form.kind, Img2Img):
        choices.insert(0, ("vae_encoder", "VAE type for encode", jobs.VAE_TYPES))
    with gr.Row(elem_classes=["vk-choices"]):
        for name, label, values in choices:
            form.widgets[name] = gr.Dropdown(
                [(choice.label, choice.identifier) for choice in values],
                value=jobs.AS_SET,
                label=label,
                elem_id=element_id(form.tab, name),
                min_width=120,
            )


def _build_tiling(form: Form) -> None:
    """How much memory the VAE may take, and a sentence on what will happen to a picture of the chosen size."""
    *plain, advanced = TILING_SPECS
    with gr.Accordion("Tiled VAE", open=False, elem_id=element_id(form.tab, "tiled_vae")):
        form.forecast = gradio_compat.html("", element_id(form.tab, "forecast"), often_empty=True)
        for spec in plain:
            _choice(form, spec)
        with gr.Accordion("Advanced", open=False, elem_id=element_id(form.tab, "tiling_advanced")):
            _choice(form, advanced)


def _choice(form: Form, spec: Spec) -> None:
    """The widget for one of `TILING_SPECS`."""
    common: dict[str, Any] = {"value": spec.default, "info": spec.help, "elem_id": element_id(form.tab, spec.name)}
    if spec.control == "choice":
        form.widgets[spec.name] = gr.Radio(spec.labelled_choices, label=spec.label, **common)
    else:
        form.widgets[spec.name] = gr.Number(label=f"{spec.label} ({spec.unit})", precision=0, minimum=0, **common)


def _build_seed(form: Form, default: int) -> None:
    with gr.Row(elem_classes=["vk-seed"]):
        form.widgets["seed"] = gr.Number(
            value=default,
            label="Seed (-1 for a random one)",
            precision=0,
            elem_id=element_id(form.tab, "seed"),
            scale=10,
        )
        dice = _tool(form, "dice", DICE)
        form.reuse_seed = _tool(form, "reuse", REUSE)
    gradio_compat.run_in_browser(dice, "click", f"() => {jobs.RANDOM_SEED}", (), [form.widgets["seed"]])


def _slider(form: Form, name: str, low: float, high: float, step: float, value: float) -> None:
    form.widgets[name] = gr.Slider(
        low,
        high,
        value=value,
        step=step,
        label=name.replace("_", " ").capitalize(),
        elem_id=element_id(form.tab, name),
        min_width=120,
    )


def _tool(form: Form, name: str, text: str) -> gr.Button:
    """A small square button."""
    return gr.Button(
        text, elem_id=element_id(form.tab, name), elem_classes=["vk-tool"], size="sm", scale=0, min_width=36
    )
