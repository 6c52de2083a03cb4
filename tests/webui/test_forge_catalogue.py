"""The tab "VAE Kit" inside Forge: the same rows as in A1111."""

import pytest
from catalogue_rows import LOAD_MS, CatalogueTab, prepare
from fault_server import FaultServer
from installation import FORGE, start, wait_until
from playwright.sync_api import expect
from safetensors.torch import save
from test_a1111_browser import browser
from test_forge import vaes
from vae_variants import changed, smallest_checkpoint

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui
__all__ = ["browser", "vaes"]  # fixtures


@pytest.fixture(scope="module")
def content():
    state = changed(dict(read_vae(smallest_checkpoint(FORGE.folder())).state), 9)
    return save({name: tensor.half() for name, tensor in state.items()})


@pytest.fixture(scope="module")
def server(content):
    with FaultServer(content) as server:
        yield server


@pytest.fixture(scope="module")
def webui(vaes, tmp_path_factory, server, content):
    data = tmp_path_factory.mktemp("forge")
    prepare(data, server, content)
    # with a data folder elsewhere Forge serves its own script.js only from a folder that is allowed by name
    webui = start(FORGE, data, f"--vae-dir={vaes}", f"--gradio-allowed-path={FORGE.folder()}")
    wait_until(lambda: "Startup time:" in webui.log, 300, webui)
    yield webui
    webui.stop()


@pytest.fixture(scope="module")
def page(browser, webui):
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(webui.url)
    expect(page.locator("#setting_sd_vae")).to_be_visible(timeout=LOAD_MS)
    yield page
    page.close()
    assert not wrong
    assert "Traceback" not in webui.log, webui.log


class TestCatalogueTab(CatalogueTab):
    plain = "a.safetensors"
    shots = "forge"
