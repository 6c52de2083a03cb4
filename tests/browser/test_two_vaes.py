"""One seed, two VAEs: the difference a newcomer is told to look for, and the README's picture of it."""

import os

import numpy as np
import pytest
from browser_app import App, running_app
from conftest import ROOT
from PIL import Image

pytestmark = pytest.mark.browser
VAES = ("demo_natural.safetensors", "demo_vivid.safetensors")


@pytest.fixture
def app(browser, tmp_path):
    with running_app(tmp_path) as address:
        app = App(browser.new_page(), address)
        app.open()
        yield app
        app.page.close()


def test_the_same_seed_looks_different_through_another_vae(app):
    shots = os.environ.get("VAE_KIT_SCREENSHOTS") == "1"
    app.form("txt2img", prompt="a cup of coffee", width=384, height=288, steps=20 if shots else 5, seed=7)
    pictures = []
    for name in VAES:
        app.choose("vae_kit_sd_vae", name)
        app.wait_for_text("vae_kit_active", f"{name} was chosen")
        pictures.append(app.generate("txt2img"))
    natural, vivid = (picture.astype(float) for picture in pictures)
    spread = [np.ptp(picture, axis=2).mean() for picture in (natural, vivid)]
    assert np.abs(natural - vivid).mean() > 10
    assert spread[1] > 1.1 * spread[0], "vivid has stronger colours"
    if shots:
        sheet = Image.fromarray(np.concatenate(pictures, axis=1).round().astype(np.uint8))
        sheet.quantize(256).save(ROOT / "docs" / "images" / "two_vaes.png", optimize=True)
