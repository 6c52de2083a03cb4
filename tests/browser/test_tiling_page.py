"""The "Tiled VAE" panel of the stand-alone app: its sentence follows the form, bands make the same picture."""

import os

import numpy as np
import pytest
from browser_app import WAIT_MS, App, running_app
from conftest import ROOT
from PIL import Image

pytestmark = pytest.mark.browser

SCREENSHOT = ROOT / "docs" / "images" / "tiled_vae.png"
TAKES_SCREENSHOTS = os.environ.get("VAE_KIT_SCREENSHOTS") == "1"
FORECAST = "vae_kit_txt2img_forecast"
FORM = {"prompt": "cat", "width": 256, "height": 256, "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("data")) as address:
        yield address


@pytest.fixture
def app(browser, address):
    """A fresh page with the panel open; the test fails if the browser reported an error."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme="light")
    app = App(context.new_page(), address)
    app.open()
    app.page.locator("#vae_kit_txt2img_tiled_vae .label-wrap").first.click()
    app.page.locator("#vae_kit_txt2img_tiling").wait_for()
    yield app
    problems = app.problems
    context.close()
    assert problems == []


def mode(app, name, tab="txt2img"):
    app.page.locator(f"#vae_kit_{tab}_tiling").get_by_text(name, exact=True).click()
    app.settle()


def sentence(app):
    app.settle()
    assert app.page.locator(f"#{FORECAST} .vk-forecast").is_visible()
    return app.text(FORECAST).strip()


def test_the_sentence_is_there_before_anything_was_touched(app):
    assert sentence(app).startswith("512x512 with this VAE: about ")


def test_the_sentence_follows_size_and_choice(app):
    app.form("txt2img", width=1536, height=1024)
    assert sentence(app).startswith("1536x1024 with this VAE: about ")
    assert sentence(app).endswith("free: will run whole")
    app.page.click("#vae_kit_txt2img_swap")
    assert sentence(app).startswith("1024x1536 with this VAE")
    mode(app, "Always stream")
    assert ", same picture" in sentence(app)
    app.type("vae_kit_txt2img_tiling_memory_mb", 50)
    assert "50 MB budget: will stream in the least memory" in sentence(app)
    app.form("txt2img", width=64, height=64)
    assert "50 MB budget: will stream, about" in sentence(app)
    mode(app, "Off")
    assert sentence(app).endswith("tiling is off, will run whole")


def test_a_job_in_bands_makes_the_same_picture_and_says_so(app):
    app.form("txt2img", **FORM, tiling_memory_mb=0)
    mode(app, "Off")
    whole = app.generate("txt2img")
    assert "VAE Kit tiling" not in app.value("vae_kit_txt2img_infotext")
    mode(app, "Always stream")
    streamed = app.generate("txt2img")
    text = app.value("vae_kit_txt2img_infotext")
    assert "VAE Kit tiling: stream in " in text
    assert "VAE tiling: stream" in text
    assert np.abs(whole - streamed).max() <= 1

    mode(app, "Auto")  # and back by pasting
    app.page.locator("#vae_kit_txt2img_paste .label-wrap").first.click()
    app.type("vae_kit_txt2img_paste_text", text)
    app.page.click("#vae_kit_txt2img_paste_apply")
    app.settle()
    assert app.page.locator("#vae_kit_txt2img_tiling input:checked").get_attribute("value") == "stream"
    again = app.generate("txt2img")
    assert np.abs(again - streamed).max() == 0


def test_a_decode_shows_its_progress_and_an_interrupt_keeps_the_preview(app):
    app.form("txt2img", prompt="coffee", width=1024, height=1024, steps=1, seed=3, tiling_memory_mb=1)
    mode(app, "Always stream")
    app.start("txt2img")
    app.page.wait_for_function(
        r"""() => /decoding, \d+ of 100/.test(document.querySelector("#vae_kit_txt2img_live")?.innerText ?? "")""",
        timeout=WAIT_MS,
    )
    app.page.click("#vae_kit_txt2img_interrupt")
    made = app.finished("txt2img")
    assert made.shape == (1024, 1024, 3)
    assert made.std() > 10
    assert "interrupted" in app.text("vae_kit_txt2img_outcome")
    assert "VAE Kit tiling" not in app.value("vae_kit_txt2img_infotext")


def test_the_settings_page_has_the_section(app):
    app.tab("Settings")
    app.type("vae_kit_settings_search", "tiled vae")
    app.settle()
    shown = app.page.locator("#vae_kit_settings_tiling_mode")
    assert shown.is_visible()
    assert app.page.locator("#vae_kit_settings_tiling_memory_mb input").count() == 1


@pytest.mark.skipif(not TAKES_SCREENSHOTS, reason="VAE_KIT_SCREENSHOTS=1 takes the pictures for the README")
def test_screenshot(app):
    app.form("txt2img", prompt="a cup of coffee", width=1024, height=768, steps=4, seed=7, tiling_memory_mb=300)
    mode(app, "Auto")
    app.generate("txt2img")
    app.page.locator("#vae_kit_txt2img_tiling_advanced .label-wrap").first.click()
    app.page.mouse.move(5, 5)
    app.page.evaluate("document.activeElement?.blur()")
    app.page.wait_for_timeout(1500)
    app.page.screenshot(path=SCREENSHOT, full_page=True)
    with Image.open(SCREENSHOT) as picture:
        picture.convert("RGB").quantize(256).save(SCREENSHOT, optimize=True)
    assert SCREENSHOT.stat().st_size < 400_000
