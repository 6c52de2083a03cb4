"""The accordion under txt2img and img2img: which VAE is live and why, and a VAE for one job only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from sd_vae_kit.errors import SettingError
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.hosts.status import VaeStatus
from sd_vae_kit.settings.job import JOB_SPECS
from sd_vae_kit.settings.sections import NONE
from sd_vae_kit.settings.spec import Spec, Value
from sd_vae_kit.ui import gradio_compat
from sd_vae_kit.ui.markup import marked
from sd_vae_kit.webui import missing_vae, tiling_panel
from sd_vae_kit.webui.tiling_panel import TilingPanel, shown

HASH_DIGITS = 10


@dataclass(frozen=True)
class Panel:
    """What the host wants to know of the built panel.

    Attributes:
        controls: In the order of the hooks' arguments.
        infotext_fields: (component, infotext -> value).
        paste_field_names: Infotext keys that "send to" carries along.
        tiling: The accordion "Tiled VAE", to be told of the host's widgets for the picture's size.
    """

    controls: list[Any]
    infotext_fields: list[tuple[Any, Any]]
    paste_field_names: list[str]
    tiling: TilingPanel


def build(tab: str, host: WebuiHost) -> Panel:
    """Lay out the panel of one tab."""
    with gr.Accordion("VAE Kit", open=False, elem_id=f"vae_kit_{tab}", elem_classes=["vae-kit"]):
        active = gr.HTML(sentence(host), elem_id=f"vae_kit_{tab}_active", elem_classes=["vae-kit"])
        missing = gr.HTML("", elem_id=f"vae_kit_{tab}_missing", elem_classes=["vae-kit"])
        with gr.Row(elem_classes=["vae-kit-row"]):
            has_hires = tab == "txt2img" and host.page.sees_passes
            # img2img has the same arguments, so that those after the hires VAE have one place
            vaes = [spec for spec in JOB_SPECS if spec.control == "vae"]
            controls = [_dropdown(tab, spec, host, has_hires or spec.name != "hires_vae") for spec in vaes]
            # pressed by javascript/vae_kit.js when something may have changed
            refresh = gr.Button(
                "\U0001f504", elem_id=f"vae_kit_{tab}_refresh", elem_classes=["tool", "vae-kit-refresh"]
            )
            listed = gr.State(host.names.choices())

    tiling = tiling_panel.build(tab, host, refresh)

    def look_again(before: list[str]) -> list[Any]:
        """An update that changes nothing leaves a dropdown alone that the user has just opened."""
        names = host.names.choices()
        update = gr.update(choices=names) if names != before else gr.update()
        return [sentence(host), names, *(update for _ in controls)]

    gradio_compat.listen(refresh, "click", look_again, inputs=[listed], outputs=[active, listed, *controls])
    everything = [*controls, *tiling.controls]
    fields = [(control, paster(spec)) for control, spec in zip(everything, JOB_SPECS, strict=True)]
    fields.append((missing, lambda parameters: missing_vae.message(host, parameters)))
    return Panel(everything, fields, [spec.infotext for spec in JOB_SPECS], tiling)


def _dropdown(tab: str, spec: Spec, host: WebuiHost, visible: bool) -> Any:
    return gr.Dropdown(
        host.names.choices(),
        value=spec.default,
        label=spec.label,
        info=spec.help,
        elem_id=f"vae_kit_{tab}_{spec.name}",
        visible=visible,
    )


def paster(spec: Spec) -> Callable[[dict[str, str]], Value]:
    """A picture without the key was made with the default: a choice left from before must not stay."""

    def read(parameters: dict[str, str]) -> Value:
        try:
            return shown(spec, spec.check_text(parameters.get(spec.infotext, spec.default)))
        except SettingError:  # somebody has edited the text
            return shown(spec, spec.default)

    return read


def sentence(host: WebuiHost) -> str:
    """The live sentence as HTML."""
    return sentence_of(host.report.status())


def sentence_of(status: VaeStatus) -> str:
    """Name, facts and reason, each in an element of its own, so that the host can translate what is language."""
    if not status.checkpoint:
        return f'<p class="vae-kit-active" data-vae-kit-waiting="1">{marked(status.reason)}</p>'
    name = "the checkpoint's own" if status.name == NONE else status.name
    facts = [f"<span>{escape(fact)}</span>" for fact in (status.family, status.precision) if fact]
    if status.sha256:
        facts.append(f'<span>hash</span> <code title="{status.sha256}">{status.sha256[:HASH_DIGITS]}</code>')
    warnings = "".join(f'<p class="vae-kit-warning">{marked(text)}</p>' for text in status.warnings)
    return (
        f'<p class="vae-kit-active"><span>Active VAE</span> <b>{escape(name)}</b> '
        f"<span class='vae-kit-facts'>{' · '.join(facts)}</span> "
        f"<span class='vae-kit-reason'>{marked(status.reason)}</span></p>{warnings}"
    )
