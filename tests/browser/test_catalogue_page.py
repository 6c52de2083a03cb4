"""The catalogue on the VAE tab in a real Chromium: find a VAE, install it from a local server, verify it; rules."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from browser_app import App, running_app
from conftest import ROOT
from fault_server import FaultServer
from safetensors.torch import load_file, save

from sd_vae_kit.vaes.catalogue import DATA

pytestmark = pytest.mark.browser

DEMO = Path(os.environ.get("VAE_KIT_TEST_DEMO", ROOT / "sd_vae_kit" / "standalone" / "demo"))
SCREENSHOT = ROOT / "docs" / "images" / "catalogue.png"
TAKES_SCREENSHOTS = os.environ.get("VAE_KIT_SCREENSHOTS") == "1"
NAME, FILE = "Warm photographs", "warm_photographs.safetensors"


@pytest.fixture(scope="module")
def content():
    """A VAE that differs a little from the demo's own, as a file's bytes."""
    state = load_file(DEMO / "demo_natural.safetensors")
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"] + torch.tensor([0.2, 0.0, -0.2]).half()
    return save(state)


@pytest.fixture(scope="module")
def server(content):
    with FaultServer(content) as server:
        yield server


def slowly(exchange, tail=65_536):
    """Right and complete, but taking long enough to watch; `tail` bytes at once of the second half."""
    content, start = exchange.content, exchange.request.range
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    exchange.headers(206 if start else 200, Content_Length=len(content) - start, Content_Range=span if start else None)
    position = start
    while position < len(content):
        size = 65_536 if position < len(content) // 2 else tail
        exchange.send(content[position : position + size])
        position += size
        if exchange.wait(0.1):
            return


def lasting(exchange):
    """Taking minutes for its second half, so that a slow machine can cancel it."""
    slowly(exchange, tail=1024)


@pytest.fixture(scope="module")
def data(tmp_path_factory, server, content):
    """A data folder whose own catalogue has an entry on the local server, which a setting allows."""
    folder = tmp_path_factory.mktemp("data")
    entry = json.loads(DATA.read_text("utf-8"))["entries"][0]
    entry |= {
        "name": NAME,
        "file": FILE,
        "url": server.address("warm", lasting, slowly),
        "mirrors": [],
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "note": "Photographs: a little warmer than the demo's own.",
    }
    (folder / "catalogue.json").write_text(json.dumps({"schema": 1, "standard": {}, "entries": [entry]}), "utf-8")
    settings = {"vae_kit_download_http": "loopback", "vae_kit_download_proxy": "direct"}
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    return folder


@pytest.fixture(scope="module")
def address(data):
    with running_app(data) as address:
        yield address


@pytest.fixture(scope="module")
def app(browser, address):
    context = browser.new_context(viewport={"width": 1360, "height": 1500}, color_scheme="light")
    app = App(context.new_page(), address)
    app.open()
    app.tab("VAE")
    yield app
    problems = app.problems
    context.close()
    assert problems == []


def part(name):
    return f"vae_kit_catalogue_{name}"


def click(app, name):
    app.page.click(f"#{part(name)}")


def take_screenshot(page):
    """From the catalogue's heading down, with a rule explained."""
    top = page.locator(f"#{part('heading')}").bounding_box()["y"] - 10
    height = page.evaluate("document.documentElement.scrollHeight") - top
    clip = {"x": 0, "y": top, "width": 1360, "height": height}
    page.screenshot(path=SCREENSHOT, full_page=True, clip=clip)


def test_1_the_list_is_narrowed_by_words_and_family(app):
    assert "SD VAE ft-MSE 840k" in app.text(part("table"))
    app.type(part("query"), "vivid drawings")
    app.settle()
    assert "kl-f8-anime2" in app.text(part("table"))
    assert "SDXL VAE 1.0" not in app.text(part("table"))
    app.type(part("query"), "")
    app.choose(part("family"), "SDXL")
    app.settle()
    assert "SDXL VAE 1.0" in app.text(part("table"))
    assert "kl-f8-anime2" not in app.text(part("table"))
    app.choose(part("family"), "any family")
    app.settle()


def test_2_an_unverified_file_asks_for_consent_and_nothing_is_contacted(app, server):
    app.choose(part("chosen"), "vividReal VAE")
    app.wait_for_text(part("about"), "No hash is known")
    assert app.page.locator(f"#{part('accepted')} input").is_visible()
    click(app, "install")
    app.wait_for_text(part("progress"), "not installed without your consent")
    assert server.requests == []


def test_3_a_cancelled_install_leaves_nothing_and_goes_on_when_started_again(app, data, server):
    folder = data / "models" / "VAE"
    app.choose(part("chosen"), NAME)
    app.wait_for_text(part("about"), "a little warmer")
    click(app, "install")
    app.page.locator(f"#{part('progress')} .vk-progress").wait_for()
    app.page.wait_for_timeout(800)
    if TAKES_SCREENSHOTS:
        take_screenshot(app.page)
    click(app, "cancel")
    app.wait_for_text(part("progress"), "was cancelled")
    assert not (folder / FILE).exists()
    assert (folder / f"{FILE}.part").stat().st_size > 0
    click(app, "install")
    app.wait_for_text(part("progress"), "its hash is right")
    app.settle()
    assert server.requests[-1].range > 0
    assert sorted(path.name for path in folder.iterdir()) == [FILE]


def test_4_the_installed_file_is_verified_and_can_be_used(app, content):
    app.choose(part("chosen"), FILE)
    app.wait_for_text(part("about"), hashlib.sha256(content).hexdigest()[:10])
    click(app, "verify")
    app.wait_for_text(part("progress"), f"{FILE} is {NAME}, byte for byte")
    app.choose("vae_kit_sd_vae", FILE)
    app.wait_for_text("vae_kit_active", FILE)
    app.choose("vae_kit_sd_vae", "Automatic")
    app.wait_for_text("vae_kit_active", "demo_natural")


def test_5_a_rule_is_checked_saved_explained_and_followed(app, data):
    app.type(part("rules"), '{"version": 1, "rules": [{"vea": "x"}]}')
    click(app, "save_rules")
    app.wait_for_text(part("told"), 'unknown key "vea"')
    assert not (data / "vae_rules.json").exists()
    rules = [{"family": "sdxl", "vae": "x"}, {"family": "sd1", "vae": FILE}]
    app.type(part("rules"), json.dumps({"version": 1, "rules": rules}))
    click(app, "explain")
    app.wait_for_text(part("told"), "The family is SD 1.x / 2.x, not SDXL.")
    app.wait_for_text(part("told"), f"All of it holds, so the VAE is {FILE}.")
    click(app, "save_rules")
    app.wait_for_text("vae_kit_active", f"{FILE} follows from rule 2 (family sd1).")
    app.settle()


def test_6_a_pasted_picture_whose_vae_is_missing_installs_it_in_one_click(app, data, content):
    (data / "vae_rules.json").unlink()
    (data / "models" / "VAE" / FILE).unlink()
    app.page.click("#vae_kit_sd_vae_refresh")
    app.wait_for_text("vae_kit_active", "demo_natural")
    app.tab("txt2img")
    app.page.locator("#vae_kit_txt2img_paste button").first.click()
    digits = hashlib.sha256(content).hexdigest()[:10]
    app.type("vae_kit_txt2img_paste_text", f"a cat\nSteps: 5, Seed: 3, VAE hash: {digits}, VAE: theirs.safetensors")
    app.page.click("#vae_kit_txt2img_paste_apply")
    app.wait_for_text("vae_kit_status", f'it is "{NAME}"; it can be installed.')
    install = app.page.locator("#vae_kit_txt2img_paste_install")
    assert install.inner_text() == f'Install "{NAME}" and use it'
    install.click()
    app.wait_for_text("vae_kit_txt2img_paste_progress", "its hash is right")
    app.wait_for_text("vae_kit_active", FILE)
    app.settle()
    assert (data / "models" / "VAE" / FILE).read_bytes() == content
    assert not install.is_visible()
