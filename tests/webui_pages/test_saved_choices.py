"""Choices in A1111-style web UIs: identifiers in config.json and pictures, labels on the page."""

import gradio as gr
import pytest

pytestmark = pytest.mark.usefixtures("close_event_loops")

OLD = {  # what version 0.1 wrote into config.json
    "vae_kit_download_http": {"never": "never", "loopback": "loopback", "always": "always"},
    "vae_kit_guard_wrong_family": {"warn": "warn", "refuse": "refuse", "off": "off"},
    "vae_kit_tiling_mode": {"Auto": "auto", "Always stream": "stream"},
    "vae_kit_precision_mode": {"Automatic": "auto", "Always fp32": "fp32", "Never": "never"},
}
ROWS = [(key, old, new) for key, values in OLD.items() for old, new in values.items()]
IN_PICTURES = [
    ("VAE tiling", "As in Settings", "as_set"),
    ("VAE tiling", "Auto", "auto"),
    ("VAE tiling", "Always stream", "stream"),
    ("VAE tiling", "Off", "off"),
    ("VAE tiling parts", "As in Settings", "as_set"),
    ("VAE tiling parts", "Encode and decode", "both"),
    ("VAE tiling parts", "Encode only", "encode"),
    ("VAE tiling parts", "Decode only", "decode"),
]


def value_in(host, key):
    from sd_vae_kit.settings.sections import to_values

    return to_values(host.settings)[key]


def test_the_rows_are_all_choices_of_the_page(webui):
    from sd_vae_kit.webui.options_page import page_specs

    assert {spec.key for spec in page_specs() if spec.choices} == OLD.keys()


@pytest.mark.parametrize(("key", "old", "new"), ROWS)
def test_an_old_value_in_config_json_is_read_and_becomes_the_identifier(webui, host, key, old, new):
    webui.shared.opts.data[key] = old
    assert value_in(host, key) == new
    webui.start()
    assert webui.shared.opts.data[key] == new, "so that the page shows what is chosen"
    assert value_in(host, key) == new


@pytest.mark.parametrize(("key", "old", "new"), ROWS)
def test_an_old_value_in_a_request_is_saved_as_the_identifier(webui, host, key, old, new):
    opts = webui.shared.opts
    opts.data[key] = "nonsense"
    opts.set(key, old, is_api=True)
    assert opts.data[key] == new
    assert value_in(host, key) == new


def test_a_value_that_was_never_one_stays_and_the_default_is_used(webui, host):
    webui.shared.opts.data["vae_kit_tiling_mode"] = "Sometimes"
    webui.start()
    assert webui.shared.opts.data["vae_kit_tiling_mode"] == "Sometimes"
    assert value_in(host, "vae_kit_tiling_mode") == "auto"


@pytest.mark.parametrize("key", OLD)
def test_the_page_shows_labels_and_saves_identifiers(webui, key):
    from sd_vae_kit.settings.sections import spec_of

    info = webui.shared.opts.data_labels[key]
    radio = info.component(label=info.label, value=info.default, **info.component_args)
    assert radio.choices == [(label, identifier) for identifier, label in spec_of(key).choices]
    assert radio.value == info.default == radio.choices[0][1]


def test_widgets_of_the_panel_hold_what_they_show(webui, host):
    """The web UI compares a saved default with what a radio shows (ui_loadsave.py)."""
    from sd_vae_kit.webui import panel

    with gr.Blocks():
        controls = panel.build("txt2img", host).controls
    radios = [control for control in controls if isinstance(control, gr.Radio)]
    assert len(radios) == 2
    for radio in radios:
        assert all(shown == held for shown, held in radio.choices)
        assert radio.value in [shown for shown, _ in radio.choices]


@pytest.mark.parametrize(("key", "old", "new"), IN_PICTURES)
def test_old_and_new_pictures_are_pasted(webui, host, key, old, new):
    from sd_vae_kit.settings.job import JOB_SPECS
    from sd_vae_kit.webui.panel import paster

    spec = next(spec for spec in JOB_SPECS if spec.infotext == key)
    assert paster(spec)({key: old}) == paster(spec)({key: new}) == spec.label_of(new)
    assert paster(spec)({key: "edited"}) == spec.label_of(spec.default)
