"""Forge with this extension in a real Chromium: the top bar, the panel, the settings page, Reload UI."""

import pytest
from installation import running_with, wait_until, without_traceback
from pages import LOAD_MS, choose, generate, open_page, open_panel, open_tab, save, sentence
from playwright.sync_api import expect
from programs import FORGE
from vae_variants import forge_vaes

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    return forge_vaes(tmp_path_factory.mktemp("vaes"), FORGE.folder())


@pytest.fixture(scope="module")
def webui(vaes, tmp_path_factory):
    # with a data folder elsewhere Forge serves its own script.js only from a folder that is allowed by name
    flags = [f"--vae-dir={vaes}", f"--gradio-allowed-path={FORGE.folder()}"]
    with running_with(FORGE, tmp_path_factory.mktemp("forge"), *flags) as webui:
        yield webui


@pytest.fixture
def page(browser, webui):
    with open_page(browser, webui, 1400, 1050) as page, without_traceback(webui):
        yield page


def test_the_dropdown_in_the_top_bar_changes_the_picture_without_loading_the_checkpoint(page, webui):
    open_panel(page)
    own = generate(page)
    assert "VAE:" not in own
    expect(sentence(page)).to_contain_text("Automatic", timeout=LOAD_MS)
    loaded = webui.log.count("Loading Model")
    choose(page, "a.safetensors")
    expect(sentence(page)).to_contain_text("a.safetensors was chosen in the SD VAE dropdown", timeout=LOAD_MS)
    assert "VAE: a.safetensors" in generate(page)
    assert webui.log.count("Loading Model") == loaded
    save(page, "forge_panel")


def test_a_bad_choice_goes_back_and_says_why(page):
    choose(page, "b.safetensors")
    expect(page.locator("#setting_sd_vae input")).to_have_value("b.safetensors")
    choose(page, "cut.safetensors")
    expect(page.locator(".toast-wrap")).to_contain_text("The option stays at b.safetensors", timeout=LOAD_MS)
    expect(page.locator("#setting_sd_vae input")).to_have_value("b.safetensors")
    save(page, "forge_refused")


def test_a_job_whose_vae_cannot_be_used_says_so_on_the_page(page):
    open_panel(page)
    page.locator("#vae_kit_txt2img_vae input").click()
    page.locator("#vae_kit_txt2img_vae ul.options li").filter(has_text="wrong.safetensors").click()
    page.locator("#txt2img_generate").click()
    expect(page.locator("#html_log_txt2img .error")).to_contain_text("wrong.safetensors", timeout=LOAD_MS)


def test_pasted_parameters_choose_sd_vae_for_the_next_jobs_and_no_module(page, webui):
    webui.set(sd_vae="Automatic")
    text = "a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, VAE: a.safetensors, Job VAE: sub/b.safetensors"
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#txt2img_tools #paste").click()
    open_panel(page)
    expect(page.locator("#vae_kit_txt2img_vae input")).to_have_value("sub/b.safetensors", timeout=LOAD_MS)
    expect(page.locator("#txt2img_override_settings")).to_contain_text("VAE: a.safetensors")
    expect(page.locator("#txt2img_override_settings")).not_to_contain_text("VAE/TE")
    assert "VAE: sub/b.safetensors" in generate(page)
    assert webui.call("/sdapi/v1/options").body["forge_additional_modules"] == []


def test_the_settings_page_has_every_setting(page):
    open_tab(page, "Settings")
    open_tab(page, "VAE Kit", "#settings")
    for label in ("Load VAEs safely and fast", "Write the right VAE hash", "Look the file's hash up"):
        expect(page.get_by_label(label).first).to_be_visible()
    expect(page.get_by_label("Automatic takes only a VAE")).to_have_count(0)
    save(page, "forge_settings")


def test_the_tiled_vae_panel_says_what_will_happen(page):
    generate(page)  # the checkpoint is loaded with the first job
    page.locator("#vae_kit_txt2img_tiled_vae .label-wrap").first.click()
    forecast = page.locator("#vae_kit_txt2img_forecast").first
    for name, value in (("width", 768), ("height", 512)):
        field = page.locator(f"#txt2img_{name} input[type=number]")
        field.fill(str(value))
        field.blur()
    expect(forecast).to_contain_text("768x512 with this VAE: about", timeout=LOAD_MS)
    page.locator("#vae_kit_txt2img_tiling").get_by_text("Always stream", exact=True).click()
    expect(forecast).to_contain_text("will stream, about", timeout=LOAD_MS)
    expect(forecast).to_contain_text("same picture")
    save(page, "forge_tiled_vae")


def test_reload_ui_twice_keeps_the_choice_and_the_dropdown_s_absence(page, webui):
    """The last test: afterwards the dropdown is not in the top bar any more."""
    choose(page, "a.safetensors")
    expect(page.locator("#setting_sd_vae input")).to_have_value("a.safetensors")
    webui.set(quick_setting_list=[])
    for count in (2, 3):
        open_tab(page, "Settings")
        page.locator("#settings_restart_gradio").click()
        wait_until(lambda count=count: webui.log.count("Startup time:") == count, 200, webui)
        page.goto(webui.url)
        expect(page.locator("#txt2img_generate")).to_be_visible(timeout=LOAD_MS)
        assert "VAE: a.safetensors" in generate(page)
        assert page.locator("#quicksettings #setting_sd_vae").count() == 0
    # now it is on the settings page, where Forge would pass over it
    open_tab(page, "Settings")
    open_tab(page, "VAE", "#settings")
    choose(page, "b.safetensors")
    page.locator("#settings_submit").click()
    wait_until(lambda: webui.call("/sdapi/v1/options").body["sd_vae"] == "b.safetensors", 30, webui)
    wait_until(lambda: webui.status()["vae"] == "b.safetensors", 30, webui)  # the option first, then the weights
