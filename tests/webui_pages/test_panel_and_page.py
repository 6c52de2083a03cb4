"""Panel, settings page, XYZ axes, messages and HTTP guard beside a fake A1111."""

import json
import re
import types

import gradio as gr
import pytest
from conftest import ROOT
from fake_a1111 import FakeA1111
from fake_previews import add_previews
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sd_vae_kit.settings.sections import SPECS

pytestmark = pytest.mark.usefixtures("close_event_loops")


@pytest.fixture
def program_class():
    """With everything that the settings page has switches for."""
    return lambda folder: add_previews(FakeA1111(folder))


# --- the job's settings ----------------------------------------------------------------------------------------------


def test_panel_arguments_and_infotext_come_from_one_list(webui, host):
    from sd_vae_kit.settings.job import JOB_SPECS, VAE_SPECS, job_from
    from sd_vae_kit.webui import panel

    with gr.Blocks():
        built = panel.build("txt2img", host)
    listed = JOB_SPECS
    assert [control.label for control in built.controls] == [labelled(spec) for spec in listed]
    assert built.paste_field_names == [spec.infotext for spec in listed]
    job = job_from(["a", "b", "Off", 512, "Decode only"])
    assert job.infotext() == {
        "Job VAE": "a",
        "Hires VAE": "b",
        "VAE tiling": "off",
        "VAE memory budget": "512",
        "VAE tiling parts": "decode",
    }
    for (control, read), spec in zip(built.infotext_fields[:-1], listed, strict=True):
        assert control.label == labelled(spec)
        chosen = getattr(job.vaes if spec in VAE_SPECS else job.tiling, spec.name)
        assert read(job.infotext()) == (spec.label_of(chosen) if spec.choices else chosen)
        assert read({}) == control.value == (spec.label_of(spec.default) if spec.choices else spec.default)


@pytest.mark.parametrize("values", [[], ["Automatic"], ["Automatic", "Automatic", None, 0], [None, ""], [{}]])
def test_missing_values_are_the_defaults(webui, values):
    from sd_vae_kit.settings.job import JobChoices, job_from

    assert job_from(values) == JobChoices()
    assert job_from(values).infotext() == {}


def test_an_axis_beats_the_panel(webui):
    from sd_vae_kit.settings.job import job_from

    assert job_from(["a", "b"], {"vae": "c"}).vaes.vae == "c"
    assert job_from(["a"]).vaes.for_hires == "a"
    assert job_from(["a", "None"]).vaes.for_hires == "None"


def test_img2img_shows_no_hires_choice_but_takes_the_same_arguments(webui, host):
    from sd_vae_kit.settings.job import JOB_SPECS
    from sd_vae_kit.webui import panel

    with gr.Blocks():
        controls = panel.build("img2img", host).controls
    assert len(controls) == len(JOB_SPECS)
    assert [c.label for c in controls if not c.visible] == ["VAE for the hires pass"]


# --- the sentence ----------------------------------------------------------------------------------------------------


def test_the_sentence_says_name_facts_and_reason(webui, host):
    from sd_vae_kit.webui.panel import sentence

    webui.shared.opts.set("sd_vae", "one/same.safetensors")
    html = sentence(host)
    digest = webui.sd_vae.get_loaded_vae_hash()
    for part in ("one/same.safetensors", "SD 1.x / 2.x", "fp32", digest, "was chosen in the SD VAE dropdown."):
        assert part in html


def test_names_of_files_are_escaped(webui):
    from sd_vae_kit.hosts.status import VaeStatus
    from sd_vae_kit.webui.panel import sentence_of

    name = "<img src=x onerror=alert(1)>.pt"
    html = sentence_of(VaeStatus(name=name, checkpoint="c", reason=f"{name} was chosen.", warnings=(name,)))
    assert "<img" not in html
    assert html.count("&lt;img") == 3


def test_before_a_checkpoint_is_loaded_the_page_asks_again(webui, host):
    from sd_vae_kit.webui.panel import sentence

    webui.sd_models.model_data.sd_model = None
    assert "data-vae-kit-waiting" in sentence(host)


# --- the settings page -----------------------------------------------------------------------------------------------


def test_every_setting_is_on_the_page_or_the_hosts_own(webui):
    from sd_vae_kit.webui.options_page import OWNED_BY_HOST, OWNED_SETTINGS, page_specs

    labels = webui.shared.opts.data_labels
    for spec in page_specs():
        assert labels[spec.key].section == ("vae_kit", "VAE Kit")
        assert labels[spec.key].default == spec.default
        assert spec.help.rstrip(".") in labels[spec.key].comment_after
    for spec in SPECS:
        assert spec.section in OWNED_BY_HOST or spec.key in (*OWNED_SETTINGS, *labels)
    assert labels["sd_vae"].section is None, "the host's options are not doubled"


def test_the_top_bar_gets_the_dropdown_once_only(webui):
    opts = webui.shared.opts
    assert opts.quicksettings_list == ["sd_model_checkpoint", "sd_vae"]
    assert opts.sd_vae_checkpoint_cache == 2
    opts.data["quicksettings_list"] = ["sd_model_checkpoint"]  # the user removes it
    opts.data["sd_vae_checkpoint_cache"] = 0
    webui.start()
    assert opts.quicksettings_list == ["sd_model_checkpoint"]
    assert opts.sd_vae_checkpoint_cache == 0


def test_settings_that_do_not_fit_are_taken_as_defaults(webui, host):
    webui.shared.opts.data["sd_vae_checkpoint_cache"] = "many"
    webui.shared.opts.data["sd_vae"] = "auto"
    assert host.settings.vae.cache == 2
    assert host.settings.vae.sd_vae == "Automatic"


def test_the_offline_flag_is_the_setting(webui, host):
    assert host.settings.download.offline is False
    webui.shared.cmd_opts.vae_kit_offline = True
    assert host.settings.download.offline is True


# --- XYZ axes --------------------------------------------------------------------------------------------------------


def test_axes_are_added_once_and_check_their_values(webui):
    from sd_vae_kit.webui import callbacks

    class AxisOption:
        def __init__(self, label, kind, apply, confirm=None, choices=None, cost=0.0):
            self.label, self.apply, self.confirm, self.choices = label, apply, confirm, choices

    plot = types.SimpleNamespace(AxisOption=AxisOption, axis_options=[])
    plot_class = type("Script", (), {"__module__": "xyz_grid.py"})
    webui.scripts.scripts_data.append(types.SimpleNamespace(script_class=plot_class, module=plot))
    callbacks.add_axes()
    callbacks.add_axes()
    assert [axis.label for axis in plot.axis_options] == [
        "[VAE Kit] VAE for this job",
        "[VAE Kit] VAE for the hires pass",
        "[VAE Kit] Tiled VAE for this job",
        "[VAE Kit] Memory budget for this job",
        "[VAE Kit] Advanced: what is tiled",
    ]
    first, second, mode, budget, _ = plot.axis_options
    mode.confirm(types.SimpleNamespace(), ["auto", "off", "Always stream"])
    assert mode.choices() == ["as_set", "auto", "stream", "off"]
    with pytest.raises(RuntimeError, match="cannot be 'Sometimes'"):
        mode.confirm(types.SimpleNamespace(), ["Sometimes"])
    budget.confirm(types.SimpleNamespace(), [0, 512])
    with pytest.raises(RuntimeError, match="must lie between 0 and"):
        budget.confirm(types.SimpleNamespace(), [-1])
    p = types.SimpleNamespace()
    first.apply(p, "plain", [])
    second.apply(p, "None", [])
    assert p._vae_kit_xyz == {"vae": "plain", "hires_vae": "None"}
    first.confirm(p, ["plain", "automatic", "None"])
    with pytest.raises(RuntimeError, match="nowhere"):
        first.confirm(p, ["plain", "nowhere"])
    assert "one/same.safetensors" in first.choices()


# --- HTTP ------------------------------------------------------------------------------------------------------------


def served(webui, **flags):
    from sd_vae_kit.webui import callbacks

    vars(webui.shared.cmd_opts).update(flags)
    app = FastAPI()
    callbacks.add_routes(None, app)
    callbacks.add_routes(None, app)
    return TestClient(app)


def test_the_api_is_served_where_the_hosts_is(webui):
    assert served(webui).get("/vae-kit/v1/status").json()["host"] == "A1111"
    assert served(webui, api=False).get("/vae-kit/v1/status").status_code == 404
    assert served(webui, nowebui=True).get("/vae-kit/v1/list").status_code == 200


def test_user_and_password_are_those_of_the_host(webui):
    client = served(webui, api_auth="ann:one,bob:two:three")
    for login, code in ((None, 401), (("ann", "two"), 401), (("eve", ""), 401), (("ann", "one"), 200)):
        assert client.get("/vae-kit/v1/status", auth=login).status_code == code
    assert client.get("/vae-kit/v1/status", auth=("bob", "two:three")).status_code == 200
    assert client.post("/vae-kit/v1/encode", json={}, auth=("eve", "ü")).status_code == 401


# --- localization ----------------------------------------------------------------------------------------------------

LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))


def shown_texts():
    """What the host's localization meets: labels, sentences in the form the page shows them, the panel's words."""
    from sd_vae_kit.settings.job import JOB_SPECS
    from sd_vae_kit.webui.options_page import page_specs

    page = [text for spec in page_specs() for text in (labelled(spec), f"({spec.help.rstrip('.')})")]
    return {*page, *(text for spec in JOB_SPECS for text in (labelled(spec), spec.help, *dict(spec.labelled_choices)))}


def is_made_by(code, text):
    """Whether the code holds the text, or the parts it puts it together from."""
    parts = re.split(r"\bwas | the checkpoint$|[;:()]", text.rstrip("."))
    return all(part.strip(" ,") in code for part in parts)


def labelled(spec):
    return f"{spec.label} ({spec.unit})" if spec.unit else spec.label


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_translations_are_of_texts_that_are_shown(webui, path):
    from sd_vae_kit.settings.job import JOB_SPECS
    from sd_vae_kit.settings.repairs import REPAIR_SPECS

    translated = json.loads(path.read_text("utf-8"))
    code = "".join(file.read_text("utf-8") for file in (ROOT / "sd_vae_kit").rglob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", code)  # strings over several lines
    code += (ROOT / "javascript" / "vae_kit.js").read_text("utf-8")
    stale = [text for text in translated if text not in shown_texts() and not is_made_by(code, text)]
    assert stale == [], "not shown any more: remove or reword"
    own = [*REPAIR_SPECS, *JOB_SPECS]
    assert [labelled(spec) for spec in own if labelled(spec) not in translated] == []


def test_languages_translate_the_same_texts():
    first, *others = (json.loads(path.read_text("utf-8")).keys() for path in LANGUAGES)
    assert len(LANGUAGES) == 2
    for other in others:
        assert first == other
