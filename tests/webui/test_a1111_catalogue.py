"""The tab "VAE Kit" inside A1111: list, install, verify, rules, a pasted picture's missing VAE."""

import re

import pytest
from catalogue_rows import LOAD_MS, CatalogueTab, prepare
from fault_server import FaultServer
from installation import A1111, start
from playwright.sync_api import expect
from safetensors.torch import save
from test_a1111_browser import HOSTS_OWN, browser
from vae_variants import changed, smallest_checkpoint, write_variants

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui
__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def content():
    return save(changed(dict(read_vae(smallest_checkpoint(A1111.folder())).state), 9))


@pytest.fixture(scope="module")
def server(content):
    with FaultServer(content) as server:
        yield server


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, smallest_checkpoint(A1111.folder()))
    return folder


@pytest.fixture(scope="module")
def webui(tmp_path_factory, vaes, server, content):
    data = tmp_path_factory.mktemp("a1111")
    prepare(data, server, content)
    webui = start(A1111, data, f"--vae-dir={vaes}", f"--ckpt={smallest_checkpoint(A1111.folder())}")
    yield webui
    webui.stop()


@pytest.fixture(scope="module")
def page(browser, webui):
    page = browser.new_page(viewport={"width": 1280, "height": 1300})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)) if HOSTS_OWN not in str(error) else None)
    page.goto(webui.url)
    expect(page.locator("#setting_sd_vae")).to_be_visible(timeout=LOAD_MS)
    yield page
    page.close()
    assert not wrong
    # uvicorn 0.22 prints one of its own when a browser is slow to answer (H11Protocol.timeout_keep_alive_handler)
    assert not [text for text in re.findall(r"Traceback.*?(?=^\S)", webui.log, re.M | re.S) if "sd_vae_kit" in text]


class TestCatalogueTab(CatalogueTab):
    shots = "a1111"
