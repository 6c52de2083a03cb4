"""The stand-alone app as a user meets it: real server, real Chromium, real pictures."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from browser_app import WAIT_MS, App, running_app
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.pictures.picture_file import read_infotext

pytestmark = pytest.mark.browser

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
NATURAL, VIVID = "demo_natural.safetensors", "demo_vivid.safetensors"
BROKEN, SIXTEEN = "broken.safetensors", "sixteen_channels.safetensors"
CAT = DEMO / "photographs" / "cat.jpg"
SCREENSHOTS = ROOT / "docs" / "images"
TAKES_SCREENSHOTS = os.environ.get("VAE_KIT_SCREENSHOTS") == "1"
SMALL = {"width": 128, "height": 128, "steps": 4, "seed": 1}
LONG = {"width": 512, "height": 512, "steps": 150, "batch_size": 8, "seed": 3}  # only ended by an interrupt


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with one VAE cut short and one for other models."""
    folder = tmp_path_factory.mktemp("data")
    vaes = folder / "models" / "VAE"
    vaes.mkdir(parents=True)
    (vaes / BROKEN).write_bytes((DEMO / NATURAL).read_bytes()[:100_000])
    torch.manual_seed(0)
    save_file(TinyAutoencoder(TinyConfig(z_channels=16, width=8)).state_dict(), vaes / SIXTEEN)
    return folder


@pytest.fixture(scope="module")
def address(data):
    with running_app(data) as address:
        yield address


@pytest.fixture
def app(browser, address):
    """A fresh page; the test fails if the browser reported an error or asked for anything from another computer."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme="light")
    app = App(context.new_page(), address)
    app.open()
    if app.chosen("vae_kit_sd_vae") != "Automatic":
        app.choose("vae_kit_sd_vae", "Automatic")
        app.wait_for_text("vae_kit_active", NATURAL)
    yield app
    problems = app.problems
    context.close()
    assert problems == []


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in levels of 8 bits."""
    return float(np.abs(one - other).mean())


def test_another_vae_makes_another_picture_and_a_reload_keeps_the_choice(app):
    app.form("txt2img", prompt="cat", **SMALL)
    natural = app.generate("txt2img")
    app.choose("vae_kit_sd_vae", VIVID)
    app.wait_for_text("vae_kit_active", VIVID)
    vivid = app.generate("txt2img")
    assert difference(natural, vivid) > 4
    assert f"VAE: {VIVID}" in app.value("vae_kit_txt2img_infotext")

    app.open()
    assert app.chosen("vae_kit_sd_vae") == VIVID
    assert f"Active VAE: {VIVID}" in app.text("vae_kit_active")
    assert app.value("vae_kit_txt2img_prompt") == "cat"
    assert app.value("vae_kit_txt2img_width") == "128"
    assert difference(app.picture("txt2img"), vivid) == 0


def test_img2img_with_denoising_0_gives_the_upload_back(app, tmp_path):
    with Image.open(CAT) as cat:
        cat.convert("RGB").resize((200, 120)).save(tmp_path / "upload.png")
    app.tab("img2img")
    app.page.set_input_files("#vae_kit_img2img_picture input[type=file]", tmp_path / "upload.png")
    app.page.wait_for_function("document.querySelector('#vae_kit_img2img_width input').value == '200'")
    app.form("img2img", denoising_strength=0)
    made = app.generate("img2img")
    assert made.shape == (120, 200, 3)
    upload = np.asarray(Image.open(tmp_path / "upload.png")).astype(float)
    assert difference(made, upload) < 25
    assert "Denoising strength: 0," in app.value("vae_kit_img2img_infotext")


def test_a_file_that_is_no_picture_is_one_line_and_the_form_stays(app, tmp_path):
    (tmp_path / "fake.png").write_bytes(b"not a picture")
    app.tab("img2img")
    width = app.value("vae_kit_img2img_width")
    app.page.set_input_files("#vae_kit_img2img_picture input[type=file]", tmp_path / "fake.png")
    app.wait_for_text("vae_kit_status", "is not a picture")
    assert len(app.lines("vae_kit_status")) == 1
    assert app.value("vae_kit_img2img_width") == width


def test_previews_change_while_sampling_and_interrupt_ends_the_job(app, data):
    """Large pictures and small previews: sampling lasts many times longer than three previews take."""
    app.tab("Settings")
    for name, value in {"preview_share": 100, "preview_max_side": 128}.items():
        app.type(f"vae_kit_settings_{name}", value)
        wait_for_setting(data, f"vae_kit_{name}", value)
    app.tab("txt2img")
    app.form("txt2img", prompt="coffee", **LONG)
    app.start("txt2img")
    seen: set[str] = set()
    live = app.page.locator("#vae_kit_txt2img_live .vk-live")
    deadline = time.monotonic() + WAIT_MS / 1000
    while len(seen) < 3 and time.monotonic() < deadline:
        assert live.count(), f"the job ended after {len(seen)} previews"
        seen.update(image.get_attribute("src") for image in live.locator("img").all())
        app.page.wait_for_timeout(50)
    assert len(seen) >= 3
    app.page.click("#vae_kit_txt2img_interrupt")
    assert app.finished("txt2img").shape == (512, 512, 3)
    assert "interrupted" in app.text("vae_kit_txt2img_outcome")


def test_a_job_in_the_other_tab_meanwhile_is_refused_in_one_line(app):
    app.tab("img2img")
    app.page.set_input_files("#vae_kit_img2img_picture input[type=file]", CAT)
    app.settle()
    app.tab("txt2img")
    app.form("txt2img", prompt="coffee", **LONG)
    app.start("txt2img")
    app.tab("img2img", settle=False)
    app.page.click("#vae_kit_img2img_generate")
    app.wait_for_text("vae_kit_status", "A job is running in txt2img")
    app.tab("txt2img", settle=False)
    app.page.click("#vae_kit_txt2img_interrupt")
    app.wait_for_end("txt2img")


def test_settings_are_found_by_their_words_and_kept(app, data):
    app.tab("Settings")
    app.type("vae_kit_settings_search", "sampling steps")
    app.page.wait_for_selector("#vae_kit_settings_preview_max_side", state="hidden")
    assert app.page.is_visible("#vae_kit_settings_preview_every_steps")
    assert not app.page.is_visible("#vae_kit_settings_saving_folder")
    app.type("vae_kit_settings_preview_every_steps", 3)
    wait_for_setting(data, "vae_kit_preview_every_steps", 3)

    app.open()
    app.tab("Settings")
    app.page.wait_for_function("document.querySelector('#vae_kit_settings_preview_every_steps input').value == '3'")
    app.type("vae_kit_settings_preview_every_steps", 1)
    wait_for_setting(data, "vae_kit_preview_every_steps", 1)


def wait_for_setting(data, key, value):
    deadline = time.monotonic() + 30
    while json.loads((data / "settings.json").read_text("utf-8")).get(key) != value:
        assert time.monotonic() < deadline, f"{key} was not saved"
        time.sleep(0.1)


def test_a_picture_dropped_on_paste_restores_everything_and_finds_the_vae_by_its_hash(app, data, tmp_path):
    renamed = data / "models" / "VAE" / "another name.safetensors"
    shutil.copy(DEMO / VIVID, renamed)
    app.page.click("#vae_kit_sd_vae_refresh")
    app.wait_for_text("vae_kit_status", "VAE files")
    app.choose("vae_kit_sd_vae", renamed.name)
    app.wait_for_text("vae_kit_active", renamed.name)
    app.form("txt2img", prompt="rocket", negative_prompt="cat", width=136, height=128, steps=3, seed=42)
    first = app.generate("txt2img")
    with app.page.expect_download() as download:
        app.page.click("#vae_kit_txt2img_download")
    picture = tmp_path / "made.png"
    download.value.save_as(picture)
    assert f"VAE: {renamed.name}" in read_infotext(picture)

    renamed.unlink()
    app.choose("vae_kit_sd_vae", "Automatic")
    app.wait_for_text("vae_kit_active", NATURAL)
    app.page.click("#vae_kit_sd_vae_refresh")
    app.wait_for_text("vae_kit_status", "VAE files")
    app.form("txt2img", prompt="x", negative_prompt="", width=64, height=64, steps=1, seed=-1)
    app.page.locator("#vae_kit_txt2img_paste button").first.click()
    app.page.set_input_files("#vae_kit_txt2img_paste_file input[type=file]", picture)
    app.wait_for_text("vae_kit_status", "was found by its hash")
    app.wait_for_text("vae_kit_active", VIVID)
    wanted = {"prompt": "rocket", "negative_prompt": "cat", "width": "136", "height": "128", "steps": "3", "seed": "42"}
    assert {name: app.value(f"vae_kit_txt2img_{name}") for name in wanted} == wanted
    assert difference(app.generate("txt2img"), first) == 0


def test_the_vae_tab_says_what_a_file_is_and_why_another_is_broken(app):
    app.tab("VAE")
    app.wait_for_text("vae_kit_vae_table", BROKEN)
    assert app.page.locator("#vae_kit_vae_table tr.vk-broken", has_text=BROKEN).count() == 1
    app.choose("vae_kit_vae_file", NATURAL)
    app.wait_for_text("vae_kit_vae_facts", str(DEMO / NATURAL))
    app.wait_for_text("vae_kit_vae_facts", "VAE hash")
    facts = app.text("vae_kit_vae_facts")
    for words in ("SD 1.x / 2.x", "KL autoencoder", "encoder and decoder", "fp16", str(DEMO / NATURAL)):
        assert words in facts
    app.choose("vae_kit_vae_file", BROKEN)
    app.page.wait_for_selector("#vae_kit_vae_facts .vk-error")


def test_a_vae_for_other_models_is_refused_in_one_line_and_nothing_changes(app, data):
    before = app.text("vae_kit_active")
    app.choose("vae_kit_sd_vae", f"{SIXTEEN} (TAESD, {family_label('sd3|flux')})")
    app.wait_for_text("vae_kit_status", "16 latent channels")
    assert len(app.lines("vae_kit_status")) == 1
    app.page.wait_for_function("document.querySelector('#vae_kit_sd_vae input').value == 'Automatic'")
    assert app.text("vae_kit_active") == before
    settings = data / "settings.json"
    assert not settings.is_file() or json.loads(settings.read_text("utf-8"))["sd_vae"] == "Automatic"
    app.form("txt2img", prompt="cat", **SMALL)
    assert app.generate("txt2img").shape == (128, 128, 3)


@pytest.mark.skipif(not TAKES_SCREENSHOTS, reason="VAE_KIT_SCREENSHOTS=1 takes the pictures for the README")
def test_screenshots(app, data):
    portraits = data / "models" / "VAE" / "portraits"
    portraits.mkdir()
    shutil.copy(DEMO / VIVID, portraits / "vivid_v2.safetensors")
    app.page.click("#vae_kit_sd_vae_refresh")
    app.wait_for_text("vae_kit_status", "VAE files")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    app.choose("vae_kit_sd_vae", NATURAL)
    app.wait_for_text("vae_kit_active", f"{NATURAL} was chosen")
    app.form("txt2img", prompt="a cup of coffee", negative_prompt="", width=512, height=384, steps=20, seed=7)
    app.generate("txt2img")
    shoot(app, "txt2img")

    app.tab("img2img")
    app.page.set_input_files("#vae_kit_img2img_picture input[type=file]", CAT)
    app.page.wait_for_function("document.querySelector('#vae_kit_img2img_picture img')?.naturalWidth > 0")
    app.form("img2img", prompt="a cat with green eyes", width=480, height=320, denoising_strength=0.4, seed=7)
    app.generate("img2img")
    shoot(app, "img2img")

    app.tab("VAE")
    app.choose("vae_kit_vae_file", "portraits/vivid_v2.safetensors")
    app.wait_for_text("vae_kit_vae_facts", "VAE hash")
    app.page.evaluate(  # where the test's data lies is of no interest
        """folder => document.querySelectorAll("#vae_kit_vae_facts td").forEach(
            (cell) => { cell.textContent = cell.textContent.replace(folder, "~/vae-kit"); }
        )""",
        str(data),
    )
    shoot(app, "vae", height=1000)
    app.tab("Settings")
    shoot(app, "settings", height=1000)


def shoot(app, name: str, height: int = 1250) -> None:
    """The upper part of the page, without toasts and cursor, at most 400 KB."""
    app.page.mouse.move(5, 5)
    app.page.evaluate("document.activeElement?.blur()")
    app.page.wait_for_timeout(1500)
    path = SCREENSHOTS / f"{name}.png"
    height = min(height, app.page.evaluate("document.documentElement.scrollHeight"))
    app.page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": 1360, "height": height})
    if path.stat().st_size >= 400_000:
        with Image.open(path) as picture:
            colours = picture.convert("RGB")
            colours.quantize(palette=colours.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(
                path, optimize=True
            )
    assert path.stat().st_size < 400_000
