"""A1111 with this extension in a real Chromium: the top bar, the panel, the settings page."""

import os
import re
import shutil
from pathlib import Path

import pytest
from installation import A1111, start
from playwright.sync_api import Page, expect, sync_playwright
from vae_variants import smallest_checkpoint, write_variants

pytestmark = pytest.mark.webui

SHOTS = "VAE_KIT_SCREENSHOTS"  # a folder: screenshots are saved there
LOAD_MS = 60_000
# A1111 1.10.1 without any extension, each time Generate is pressed
HOSTS_OWN = "Cannot read properties of undefined (reading 'props')"


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    checkpoint = smallest_checkpoint(A1111.folder())
    write_variants(folder, checkpoint)
    webui = start(A1111, tmp_path_factory.mktemp("a1111"), f"--vae-dir={folder}", f"--ckpt={checkpoint}")
    yield webui
    webui.stop()


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this computer")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, webui):
    page = browser.new_page(viewport={"width": 1280, "height": 960})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)) if HOSTS_OWN not in str(error) else None)
    assert webui.set(sd_vae="Automatic").status == 200
    page.goto(webui.url)
    expect(page.locator("#setting_sd_vae")).to_be_visible(timeout=LOAD_MS)
    before = len(webui.log)
    yield page
    page.close()
    assert not wrong
    assert "Traceback" not in webui.log[before:], webui.log[before:]


def choose(page: Page, name: str) -> None:
    """Pick from the top bar, as a user does."""
    page.locator("#setting_sd_vae input").click()
    option = page.locator("#setting_sd_vae ul.options li").filter(has_text=re.compile(rf"^\W*{re.escape(name)}\s*$"))
    option.click()


def open_panel(page: Page, tab: str = "txt2img") -> None:
    panel = page.locator(f"#vae_kit_{tab}")
    if not panel.locator("label").first.is_visible():
        panel.locator(".label-wrap").first.click()


def sentence(page: Page, tab: str = "txt2img"):
    return page.locator(f"#vae_kit_{tab}_active").first


def save(page: Page, name: str) -> None:
    folder = os.environ.get(SHOTS)
    if folder:
        page.screenshot(path=Path(folder) / f"a1111_{name}.png")


def generate(page: Page) -> str:
    """Press Generate with a small picture; the picture's address."""
    page.locator("#txt2img_seed input").fill("1")
    for side in ("width", "height"):
        page.locator(f"#txt2img_{side} input[type=number]").fill("64")
    page.locator("#txt2img_steps input[type=number]").fill("2")
    old = page.locator("#txt2img_gallery img").first
    before = old.get_attribute("src") if old.count() else ""
    page.locator("#txt2img_generate").click()
    shown = page.locator("#txt2img_gallery img").first
    expect(shown).not_to_have_attribute("src", before or "", timeout=LOAD_MS)
    expect(page.locator("#html_info_txt2img").first).to_contain_text("Steps: 2", timeout=LOAD_MS)
    expect(page.locator("#txt2img_interrupt")).to_be_hidden(timeout=LOAD_MS)
    return page.locator("#html_info_txt2img").first.inner_text()


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
    page.evaluate("window.scrollTo(0, 0)")
    save(page, "panel")


def test_a_bad_choice_goes_back_and_says_why(page):
    open_panel(page)
    choose(page, "other.safetensors")
    # a choice that is still being made would come back and be put over the next one: the host's page, not ours
    expect(sentence(page)).to_contain_text("other.safetensors was chosen", timeout=LOAD_MS)
    choose(page, "cut.safetensors")
    expect(page.locator(".toast-wrap")).to_contain_text("The option stays at other.safetensors", timeout=LOAD_MS)
    expect(page.locator("#setting_sd_vae input")).to_have_value("other.safetensors")
    save(page, "refused")


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
    page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    open_panel(page, "img2img")
    expect(sentence(page, "img2img")).to_contain_text("Active VAE")
    expect(page.locator("#vae_kit_img2img")).to_contain_text("VAE for this job")


def test_the_settings_page_has_every_setting(page):
    page.locator("#tabs > .tab-nav button", has_text="Settings").click()
    page.locator("#settings > .tab-nav button", has_text=re.compile("^VAE Kit")).click()
    for label in ("Load VAEs safely and fast", "Write the right VAE hash", "Look the file's hash up"):
        expect(page.get_by_label(label).first).to_be_visible()
    page.evaluate("window.scrollTo(0, 0)")
    save(page, "settings")


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
    page.evaluate("document.querySelector('#vae_kit_txt2img_tiled_vae').scrollIntoView({block: 'center'})")
    save(page, "tiled_vae")
    page.locator("#txt2img_hr-visible-checkbox").click()
    expect(forecast).to_contain_text("1536x1024 with this VAE", timeout=LOAD_MS)
    page.locator("#txt2img_hr-visible-checkbox").click()
    side("width", 256)
    side("height", 256)
    expect(forecast).to_contain_text("256x256 with this VAE", timeout=LOAD_MS)
    made = generate(page)
    assert "VAE tiling: Always stream" in made
