"""Who may install inside A1111: nobody where the web UI is open to others, nothing where it must stay offline."""

import json

import pytest
from catalogue_rows import FILE, LOAD_MS, NAME, open_tab, part, pick, prepare, press, save, told
from fault_server import FaultServer
from installation import A1111, start
from playwright.sync_api import expect
from test_a1111_browser import browser
from vae_variants import smallest_checkpoint

pytestmark = pytest.mark.webui
__all__ = ["browser"]  # a fixture

CASES = {
    "open": (["--listen"], "open to others (--listen, --share, --server-name or --ngrok)"),
    "insecure": (["--listen", "--enable-insecure-extension-access"], ""),
    "offline": (["--vae-kit-offline"], "Downloads are switched off"),
    "frozen": (["--freeze-settings"], "--freeze-settings"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_allowed_is_said_and_not_done(case, browser, tmp_path):
    flags, line = CASES[case]
    vaes = tmp_path / "vaes"
    vaes.mkdir()
    with FaultServer(b"not asked for") as server:
        prepare(tmp_path, server, b"not asked for")
        webui = start(A1111, tmp_path, f"--vae-dir={vaes}", f"--ckpt={smallest_checkpoint(A1111.folder())}", *flags)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        try:
            page.goto(webui.url)
            expect(page.locator("#tabs")).to_be_visible(timeout=LOAD_MS)
            open_tab(page)
            if line:
                expect(told(page, "notice")).to_contain_text(line, timeout=LOAD_MS)
            pick(page, NAME)
            press(page, "install")
            if case == "insecure":
                expect(told(page, "progress")).to_contain_text("its hash is right", timeout=LOAD_MS)
                assert [path.name for path in vaes.iterdir()] == [FILE]
            else:
                refused = "downloads are switched off" if case == "offline" else line
                expect(told(page, "progress")).to_contain_text(refused, timeout=LOAD_MS)
                save(page, f"a1111_{case}")
                assert server.requests == []
                assert list(vaes.iterdir()) == []
            rules(page, webui, allowed=case in ("insecure", "offline"))
            assert "Traceback" not in webui.log, webui.log
        finally:
            page.close()
            webui.stop()


def rules(page, webui, allowed):
    page.locator(f"{part('rules')} textarea").fill(json.dumps({"version": 1, "rules": [{"vae": "None"}]}))
    press(page, "save_rules")
    expect(told(page, "told")).to_contain_text("1 rule saved" if allowed else "--", timeout=LOAD_MS)
    assert (webui.data / "vae-kit" / "vae_rules.json").exists() == allowed
