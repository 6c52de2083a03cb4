"""A1111 with this extension in a real Chromium: the top bar, the panel, the settings page."""

import re

import pytest
from installation import running_with, without_traceback
from pages import HOSTS_OWN, LOAD_MS, choose, generate, open_page, open_panel, open_tab, save, sentence
from playwright.sync_api import expect
from programs import A1111
from vae_variants import smallest_checkpoint, write_variants

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, smallest_checkpoint(A1111.folder()))
    with running_with(A1111, tmp_path_factory.mktemp("a1111"), f"--vae-dir={folder}") as webui:
        yield webui


@pytest.fixture
def page(browser, webui):
    assert webui.set(sd_vae="Automatic").status == 200
    with open_page(browser, webui, 1280, 960, HOSTS_OWN) as page, without_traceback(webui):
        yield page


def test_the_dropdown_in_the_top_bar_changes_the_picture(page):
    open_panel(page)
    expect(sentence(page)).to_contain_text("Automatic", timeout=LOAD_MS)
    own = generate(page)
    assert "VAE:" not in own
    choose(page, "plain.safetensors")
    expect(sentence(page)).to_contain_text("plain.safetensors was chosen in the SD VAE dropdown", timeout=LOAD_MS)
    expect(sentence(page)).to_contain_text(re.compile("hash [0-9a-f]{10}"))
    made = generate(page)
    assert "VAE: plain.safetensors" in made
    save(page, "a1111_panel")


def test_a_bad_choice_goes_back_and_says_why(page):
    open_panel(page)
    choose(page, "other.safetensors")
    # a choice that is still being made would come back and be put over the next one: the host's page, not ours
    expect(sentence(page)).to_contain_text("other.safetensors was chosen", timeout=LOAD_MS)
    choose(page, "cut.safetensors")
    expect(page.locator(".toast-wrap")).to_contain_text("The option stays at other.safetensors", timeout=LOAD_MS)
    expect(page.locator("#setting_sd_vae input")).to_have_value("other.safetensors")
    save(page, "a1111_refused")


def test_reloading_the_page_keeps_the_choice(page):
    choose(page, "one/same.safetensors")
    expect(page.locator("#setting_sd_vae input")).to_have_value("one/same.safetensors")
    open_panel(page)
    expect(sentence(page)).to_contain_text("one/same.safetensors", timeout=LOAD_MS)
    page.reload()
    expect(page.locator("#setting_sd_vae input")).to_have_value("one/same.safetensors", timeout=LOAD_MS)
    open_panel(page)
    expect(sentence(page)).to_contain_text("one/same.safetensors", timeout=LOAD_MS)


def test_the_panel_is_in_both_tabs(page):
    open_tab(page, "img2img")
    open_panel(page, "img2img")
    expect(sentence(page, "img2img")).to_contain_text("Active VAE")
    expect(page.locator("#vae_kit_img2img")).to_contain_text("VAE for this job")


def test_the_settings_page_has_every_setting(page):
    open_tab(page, "Settings")
    open_tab(page, "VAE Kit", "#settings")
    for label in ("Load VAEs safely and fast", "Write the right VAE hash", "Look the file's hash up"):
        expect(page.get_by_label(label).first).to_be_visible()
    save(page, "a1111_settings")


def test_pasted_parameters_choose_the_jobs_vae(page):
    text = "a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, Job VAE: two/same.safetensors"
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#txt2img_tools #paste").click()
    open_panel(page)
    expect(page.locator("#vae_kit_txt2img_vae input")).to_have_value("two/same.safetensors", timeout=LOAD_MS)
    made = generate(page)
    assert "VAE: two/same.safetensors" in made
    page.locator("#txt2img_prompt textarea").fill("a dog\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64")
    page.locator("#txt2img_tools #paste").click()
    expect(page.locator("#vae_kit_txt2img_vae input")).to_have_value("Automatic", timeout=LOAD_MS)


def test_the_tiled_vae_panel_says_what_will_happen(page):
    page.locator("#vae_kit_txt2img_tiled_vae .label-wrap").first.click()
    forecast = page.locator("#vae_kit_txt2img_forecast").first

    def side(name, value):
        field = page.locator(f"#txt2img_{name} input[type=number]")
        field.fill(str(value))
        field.blur()

    side("width", 768)
    side("height", 512)
    expect(forecast).to_contain_text("768x512 with this VAE: about", timeout=LOAD_MS)
    expect(forecast).to_contain_text("free: will run whole")
    page.locator("#vae_kit_txt2img_tiling").get_by_text("Always stream", exact=True).click()
    expect(forecast).to_contain_text("will stream, about", timeout=LOAD_MS)
    expect(forecast).to_contain_text("same picture")
    save(page, "a1111_tiled_vae", of="#vae_kit_txt2img_tiled_vae")
    page.locator("#txt2img_hr-visible-checkbox").click()
    expect(forecast).to_contain_text("1536x1024 with this VAE", timeout=LOAD_MS)
    page.locator("#txt2img_hr-visible-checkbox").click()
    side("width", 256)
    side("height", 256)
    expect(forecast).to_contain_text("256x256 with this VAE", timeout=LOAD_MS)
    made = generate(page)
    assert "VAE tiling: stream" in made
