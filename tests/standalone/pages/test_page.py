"""The pages are built and filled from plain data, on whatever gradio is installed, without torch."""

import subprocess
import sys

import gradio as gr
import pytest
from fake_backend import FakeBackend
from gradio_parts import changed, child_environment, components_of

from sd_vae_kit.errors import OptionError
from sd_vae_kit.settings.sections import SECTION_TITLES, SPECS
from sd_vae_kit.standalone.job import Finished, Img2Img, Snapshot, Txt2Img
from sd_vae_kit.standalone.pages import generation_tab, page, settings_tab, top_bar, vae_tab
from sd_vae_kit.standalone.pages.generation_form import Form, build_controls, build_prompts
from sd_vae_kit.ui import element_ids, gradio_compat

pytestmark = pytest.mark.usefixtures("close_event_loops")


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def warnings_shown(monkeypatch):
    """Toasts need a running request; here they are only written down."""
    shown = []
    monkeypatch.setattr(gr, "Warning", lambda message, *args, **kwargs: shown.append(message))
    return shown


def test_the_page_has_every_part_under_its_id(backend):
    ids = components_of(page.build_page(backend))
    own = [value for name, value in vars(element_ids).items() if name.isupper() and str(value).startswith("vae_kit_")]
    assert len(own) > 10
    assert set(own) <= ids.keys()
    for tab in ("txt2img", "img2img"):
        for part in (
            "prompt",
            "seed",
            "dice",
            "steps",
            "generate",
            "interrupt",
            "live",
            "gallery",
            "infotext",
            "paste",
        ):
            assert f"vae_kit_{tab}_{part}" in ids
    assert "vae_kit_img2img_denoising_strength" in ids
    assert all(name.startswith("vae_kit") for name in ids)


def test_every_setting_has_a_widget_with_its_sentence(backend):
    ids = components_of(page.build_page(backend))
    for spec in SPECS:
        widget = ids[settings_tab.setting_id(spec)]
        assert widget.label.startswith(spec.label)
        assert widget.info == spec.help
        assert widget.value == backend.settings.values()[spec.key]


def test_building_the_page_needs_no_torch():
    code = (
        "import sys; from fake_backend import FakeBackend; from sd_vae_kit.standalone.pages import page; "
        "page.build_page(FakeBackend()); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=True)


def test_nothing_is_fetched_from_a_font_server():
    assert "http" not in gradio_compat.theme()._get_theme_css().replace("http://www.w3.org", "")
    assert getattr(gradio_compat.theme(), "_stylesheets", []) == []


def test_an_update_keeps_the_upload_field_from_opening_its_file():
    """gradio makes a new component of the same class for every update."""
    with gr.Blocks():
        field = gradio_compat.picture_input("picture", "some_id", 100)
    if gradio_compat.MAJOR < 4:
        pytest.skip("gradio 3 re-encodes pictures in the browser")
    assert field.get_block_name() == "image"
    payload = type("Payload", (), {"path": "/no/such/file.png"})()
    assert type(field)(**field.constructor_args, render=False).preprocess(payload) == "/no/such/file.png"


# --- top bar ----------------------------------------------------------------------------------------------------------


def test_an_error_is_one_line_and_the_bar_shows_what_is_in_force(backend, warnings_shown):
    checkpoint, vae, active, status = top_bar.attempt(backend, lambda: backend.vaes.choose("gone.safetensors"))
    assert warnings_shown == ["gone.safetensors is not there."]
    assert 'class="vk-error"' in status
    assert "gone.safetensors is not there." in status
    assert changed(vae)["value"] == "Automatic"
    assert changed(checkpoint)["value"] == "demo"
    assert "a.safetensors" in active


def test_a_choice_shows_with_its_reason_escaped(backend):
    _, vae, active, status = top_bar.attempt(backend, lambda: backend.vaes.choose("b.safetensors"))
    assert changed(vae)["value"] == "b.safetensors"
    assert "<span>because</span> <b>&lt;b.safetensors&gt;</b>" in active
    assert "0123456789" in active
    assert status == ""


def test_messages_are_shown_once(backend):
    assert "2 VAE files." in top_bar.attempt(backend, backend.vaes.refresh)[-1]
    assert top_bar.shown(backend)[-1] == ""


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def form():
    with gr.Blocks():
        made = Form("img2img", Img2Img)
        build_prompts(made)
        build_controls(made)
    return made


def test_a_form_makes_the_job_it_shows(form):
    values = [{"picture": "/a/cat.png", "prompt": "cat", "steps": 7.0}.get(n, w.value) for n, w in form.widgets.items()]
    job = form.job(tuple(values))
    assert (job.prompt, job.steps, str(job.picture.name)) == ("cat", 7, "cat.png")
    assert isinstance(job.steps, int)


def test_an_empty_number_is_named(form):
    values = [None if name == "seed" else widget.value for name, widget in form.widgets.items()]
    with pytest.raises(OptionError, match="The seed is empty"):
        form.job(tuple(values))


def test_filling_a_form_leaves_what_is_not_named(form):
    updates = dict(zip(form.widgets, form.filled_with({"seed": 7}), strict=True))
    assert changed(updates["seed"]) == {"value": 7}
    assert changed(updates["prompt"]) == {}


def test_following_a_job_shows_preview_progress_and_result(backend):
    backend.jobs.start("txt2img", Txt2Img())
    first, second, last = generation_tab.follow(backend, "txt2img")
    assert "encoding" in first[0]
    assert "data:image/jpeg;base64,anBlZw==" in second[0]
    assert "sampling, 1 of 2" in second[0]
    assert "width: 50.0%" in second[0]
    live, gallery, outcome, infotext, download, chosen, interrupt = last
    assert live == ""
    assert changed(gallery)["value"] == ["one.png"]
    assert "2 steps in 1.0 s" in outcome
    assert infotext == "Steps: 2"
    assert changed(download) == {"value": "one.png", "interactive": True}
    assert chosen == 0
    assert changed(interrupt) == {"interactive": False}


def test_a_failed_job_is_one_line_of_errors():
    failed = Snapshot("failed", pictures=(Finished("old.png", "", 1),), message="The VAE <x> gave no picture.")
    outcome = generation_tab.view(failed)[2]
    assert 'class="vk-error"' in outcome
    assert "&lt;x&gt;" in outcome


# --- VAE tab ----------------------------------------------------------------------------------------------------------


def test_the_table_marks_the_active_file_and_gives_the_reason_of_a_broken_one(backend):
    _, _, table = vae_tab.shown(backend)
    assert '<tr class="vk-is-active"><td>a.safetensors' in table
    assert '<tr class="vk-broken"><td>&lt;b&gt;.safetensors' in table
    assert "The file is empty." in table


def test_facts_come_again_when_the_hash_is_known(backend):
    first, last = vae_tab.facts_of(backend, "a.safetensors")
    assert "40 % read" in first
    assert "<th>sha256</th><td>abc</td>" in last
    assert 'class="vk-warning"' in last
    assert list(vae_tab.facts_of(backend, None)) == [vae_tab.HINT]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_search_hides_what_does_not_match_and_its_heading():
    updates = settings_tab.filtered("Preview EVERY")
    headings, controls, nothing = updates[: len(SECTION_TITLES)], updates[len(SECTION_TITLES) : -1], updates[-1]
    visible = {spec.key for spec, update in zip(SPECS, controls, strict=True) if update["visible"]}
    assert visible == {"vae_kit_preview_every_steps"}
    sections = dict(zip(SECTION_TITLES, headings, strict=True))
    assert sections["preview"]["visible"]
    assert not sections["vae"]["visible"]
    assert nothing == ""


def test_search_without_a_hit_says_so():
    *_, nothing = settings_tab.filtered("no such <thing>")
    assert "no such &lt;thing&gt;" in nothing


def test_an_empty_search_shows_everything():
    *updates, nothing = settings_tab.filtered("")
    assert all(update["visible"] for update in updates)
    assert nothing == ""
