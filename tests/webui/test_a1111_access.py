"""Who may install inside A1111: nobody where the web UI is open to others, nothing where it must stay offline."""

import json

import pytest
from catalogue_rows import FILE, NAME, part, pick, prepare, press, told
from fault_server import FaultServer
from installation import running_with, without_traceback
from pages import LOAD_MS, open_tab, save
from playwright.sync_api import expect
from programs import A1111

pytestmark = pytest.mark.webui

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
        with running_with(A1111, tmp_path, f"--vae-dir={vaes}", *flags) as webui, without_traceback(webui):
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
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
                save(page, f"a1111_{case}", is_whole=True)
                assert server.requests == []
                assert list(vaes.iterdir()) == []
            try_rules(page, webui, allowed=case in ("insecure", "offline"))
            page.close()


def try_rules(page, webui, allowed):
    page.locator(f"{part('rules')} textarea").fill(json.dumps({"version": 1, "rules": [{"vae": "None"}]}))
    press(page, "save_rules")
    expect(told(page, "told")).to_contain_text("1 rule saved" if allowed else "--", timeout=LOAD_MS)
    assert (webui.data / "vae-kit" / "vae_rules.json").exists() == allowed
