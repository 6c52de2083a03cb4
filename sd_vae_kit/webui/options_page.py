"""The settings page "VAE Kit", made from the same data as the stand-alone app's, and the dropdown in the top bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gradio as gr
from modules import shared

from sd_vae_kit.errors import SettingError
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.repairs import REPAIR_SPECS
from sd_vae_kit.settings.sections import SPECS
from sd_vae_kit.settings.spec import Spec

SECTION = ("vae_kit", "VAE Kit")
CATEGORY = "sd"  # among "Stable Diffusion", where the host's own VAE page is
# Sections that the host has options of its own for: VAE and its cache, live previews, saving of pictures.
OWNED_BY_HOST = ("vae", "saving")
OWNED_SETTINGS = ("vae_kit_preview_method", "vae_kit_preview_every_steps")  # its "Live preview method" and period
FIRST_START_DONE = "vae_kit_first_start_done"
CACHED_VAES = 2


def page_specs() -> Iterator[Spec]:
    """Every setting that has an effect here and that the host does not have itself."""
    yield from REPAIR_SPECS
    ours = (spec for spec in SPECS if spec.section not in OWNED_BY_HOST)
    yield from (spec for spec in ours if spec.key not in OWNED_SETTINGS)


def add(host: WebuiHost) -> None:
    """Add all options; safe to call again on Reload UI."""
    features = host.base.options.features
    for spec in page_specs():
        is_useless = spec.section == "repairs" and not features.has(spec.name)
        is_useless |= spec.section == "preview" and not features.has("previews")
        if not is_useless:
            shared.opts.add_option(spec.key, option_info(spec, host))
            keep_identifier(spec)
    host.base.options.save_defaults_of(host.page.core_options)
    if not shared.opts.data.get(FIRST_START_DONE):
        _first_start(host)


def option_info(spec: Spec, host: WebuiHost) -> Any:
    """A setting in the host's own form."""
    component, arguments = _component(spec, host)
    label = f"{spec.label} ({spec.unit})" if spec.unit else spec.label
    info = shared.OptionInfo(
        spec.default,
        label,
        component,
        arguments,
        section=SECTION,
        infotext=spec.infotext or None,
        onchange=_on_change(spec, host),
    )
    info.category_id = CATEGORY
    return info.info(spec.help.rstrip("."))


def keep_identifier(spec: Spec) -> None:
    """Let a choice be saved by its identifier.

    Earlier versions saved the label, and a request may still send it; the settings page shows what it does not know as
    nothing chosen.
    """
    saved = shared.opts.data.get(spec.key)
    if spec.choices and saved is not None:
        with suppress(SettingError):  # said where the settings are read
            shared.opts.data[spec.key] = spec.check(saved)


def _on_change(spec: Spec, host: WebuiHost) -> Callable[[], None] | None:
    if spec.section == "repairs":
        return host.on_repair_changed
    return (lambda: keep_identifier(spec)) if spec.choices else None


def _component(spec: Spec, host: WebuiHost) -> tuple[Any, Any]:
    limits = {"minimum": spec.minimum, "maximum": spec.maximum, "step": spec.step}
    return {
        "checkbox": (gr.Checkbox, None),
        "slider": (gr.Slider, limits),
        "number": (gr.Number, {"precision": 0} if isinstance(spec.default, int) else None),
        "choice": (gr.Radio, {"choices": spec.labelled_choices}),
        "text": (gr.Textbox, None),
        "vae": (gr.Dropdown, lambda: {"choices": host.names.choices()}),
    }[spec.control]


def _first_start(host: WebuiHost) -> None:
    """Once: the dropdown in the top bar, and two VAEs kept in RAM unless the user has decided otherwise.

    The mark is saved together with the two, by the host's next saving of its settings: a dropdown the user removes
    stays removed.
    """
    data = shared.opts.data
    data[FIRST_START_DONE] = True
    quick = list(getattr(shared.opts, host.page.quicksettings_key, []))
    if "sd_vae" not in quick:
        data[host.page.quicksettings_key] = [*quick, "sd_vae"]
    cache = "sd_vae_checkpoint_cache"
    option = shared.opts.data_labels.get(cache)
    is_live = getattr(option, "visible", True)  # SD.Next keeps it hidden, only to know its name in old files
    if option is not None and is_live and data.get(cache, 0) == option.default:
        data[cache] = CACHED_VAES
