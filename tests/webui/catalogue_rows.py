"""Rows of the tab "VAE Kit" that every web UI must pass, in a real Chromium and with a file server that is ours."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from fault_server import Exchange, FaultServer
from installation import WebUi, running_with
from pages import LOAD_MS, open_page, open_tab, save
from playwright.sync_api import Page, expect
from programs import Program

from sd_vae_kit.vaes.catalogue import DATA, catalogue

NAME, FILE = "Warm colours", "warm_colours.safetensors"
SETTINGS = {"vae_kit_download_http": "loopback", "vae_kit_download_proxy": "direct"}


def drips(exchange: Exchange) -> None:
    """Right, but taking half a minute and more: long enough to watch and to cancel, however busy the computer is."""
    exchange.headers(Content_Length=len(exchange.content))
    for position in range(0, len(exchange.content), 65_536):
        exchange.send(exchange.content[position : position + 65_536])
        if exchange.wait(0.1):
            return


def goes_on(exchange: Exchange) -> None:
    """Right and complete, from where the client says."""
    content, start = exchange.content, exchange.request.range
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    exchange.headers(206 if start else 200, Content_Length=len(content) - start, Content_Range=span if start else None)
    exchange.send(content[start:])


def prepare(data: Path, server: FaultServer, content: bytes, **settings: object) -> None:
    """A data folder for a start: an own catalogue with an entry on the server, and a setting that allows it."""
    entry = json.loads(DATA.read_text("utf-8"))["entries"][0]
    entry |= {
        "name": NAME,
        "file": FILE,
        "url": server.address("warm", drips, goes_on),
        "mirrors": [],
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "note": "Warmer than the checkpoint's own.",
    }
    (data / "vae-kit").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": 1, "standard": {}, "entries": [entry]})
    (data / "vae-kit" / "catalogue.json").write_text(text, "utf-8")
    (data / "config.json").write_text(json.dumps({**SETTINGS, **settings}), "utf-8")


def with_a_foreign_vae(data: Path, file: Path) -> None:
    """Add to the data folder's catalogue: this file is an SDXL VAE; our own entry is the standard one of SD 1."""
    own = data / "vae-kit" / "catalogue.json"
    known = json.loads(own.read_text("utf-8"))
    (entry,) = known["entries"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    foreign = {**entry, "name": "Some SDXL VAE", "file": "some.safetensors", "family": "sdxl", "sha256": digest}
    own.write_text(json.dumps({**known, "entries": [entry, foreign], "standard": {"sd1": NAME}}), "utf-8")


def write_rules(webui: WebUi, *rules: dict[str, object]) -> None:
    """Write the rules file, as an editor does."""
    (webui.data / "vae-kit" / "vae_rules.json").write_text(json.dumps({"version": 1, "rules": rules}), "utf-8")


def add_tried(weights: str | None, folder: Path) -> None:
    """Real TAESD decoders as VAE files, where there are any."""
    for file in sorted(Path(weights).rglob("taesd*_decoder.*")) if weights else ():
        shutil.copy(file, folder / f"tried_{file.name}")


def tracebacks(log: str) -> list[str]:
    """Those that are ours, or a request's; uvicorn 0.22 prints one where a browser is slow to answer."""
    found = re.findall(r"Traceback.*?(?=^\S)", log + "\n-", re.M | re.S)
    return [text for text in found if "H11Protocol" not in text and "timeout_keep_alive_handler" not in text]


def part(name: str) -> str:
    return f"#vae_kit_catalogue_{name}"


def pick(page: Page, name: str) -> None:
    """Select a VAE of the list, as a user does who types its name."""
    field = page.locator(f"{part('chosen')} input")
    field.click()
    field.fill(name)
    option = page.locator(f"{part('chosen')} ul.options li").filter(has_text=re.compile(rf"^\W*{re.escape(name)}\s*$"))
    option.click()
    expect(told(page, "about")).to_contain_text("Family", timeout=LOAD_MS)


def press(page: Page, name: str) -> None:
    page.locator(part(name)).click()


def told(page: Page, name: str):
    return page.locator(part(name)).first  # gradio 3 gives a component's id to two elements


class CatalogueTab:
    """Run in this order: the page is one session.  Subclasses are tests: they have the fixtures `vaes` (a folder) and
    `content` (another VAE, as a file's bytes).

    Attributes:
        program: Which web UI; `flags()` go beyond its plain start.
        plain: One of the installed files.
        shots: What the screenshots are called.
        own_error: A script error that the program's page has without us.
    """

    program: Program
    plain = "plain.safetensors"
    shots = ""
    own_error = ""

    @classmethod
    def flags(cls) -> tuple[str, ...]:
        return ()

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, content):
        with FaultServer(content) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def webui(cls, tmp_path_factory, vaes, server, content):
        data = tmp_path_factory.mktemp("webui")
        prepare(data, server, content)
        with running_with(cls.program, data, f"--vae-dir={vaes}", *cls.flags()) as webui:
            yield webui

    @pytest.fixture(scope="class")
    @classmethod
    def page(cls, browser, webui):
        with open_page(browser, webui, 1400, 1300, cls.own_error) as page:
            yield page
        assert not tracebacks(webui.log)

    def test_1_installed_and_known_vaes_are_listed_and_filtered(self, page):
        open_tab(page)
        table = told(page, "table")
        expect(table).to_contain_text(self.plain, timeout=LOAD_MS)
        expect(table).to_contain_text("SDXL VAE 1.0")
        page.locator(f"{part('query')} textarea, {part('query')} input").first.fill("vivid drawings")
        expect(table).to_contain_text("kl-f8-anime2", timeout=LOAD_MS)
        expect(table).not_to_contain_text("SDXL VAE 1.0", timeout=LOAD_MS)
        page.locator(f"{part('query')} textarea, {part('query')} input").first.fill("")
        expect(table).to_contain_text("SDXL VAE 1.0", timeout=LOAD_MS)
        page.locator(part("shown")).get_by_text("installed", exact=True).click()
        expect(table).not_to_contain_text("SDXL VAE 1.0", timeout=LOAD_MS)
        expect(table).to_contain_text(self.plain)
        page.locator(part("shown")).get_by_text("all", exact=True).click()
        expect(table).to_contain_text("SDXL VAE 1.0", timeout=LOAD_MS)
        save(page, f"{self.shots}_vae_kit_tab", is_whole=True)

    def test_2_a_cancelled_install_leaves_nothing_and_goes_on(self, page, vaes, server, content):
        open_tab(page)
        pick(page, NAME)
        press(page, "install")
        expect(told(page, "progress").locator(".vk-progress")).to_be_visible(timeout=LOAD_MS)
        page.wait_for_timeout(1000)
        press(page, "cancel")
        expect(told(page, "progress")).to_contain_text("was cancelled", timeout=LOAD_MS)
        assert not (vaes / FILE).exists()
        assert (vaes / f"{FILE}.part").stat().st_size > 0
        press(page, "install")
        expect(told(page, "progress")).to_contain_text("its hash is right", timeout=LOAD_MS)
        assert server.requests[-1].range > 0
        assert (vaes / FILE).read_bytes() == content
        assert not (vaes / f"{FILE}.part").exists()

    def test_3_the_file_is_verified_and_used(self, page, webui, content):
        open_tab(page)
        pick(page, FILE)
        expect(told(page, "about")).to_contain_text(hashlib.sha256(content).hexdigest()[:10])
        press(page, "verify")
        expect(told(page, "progress")).to_contain_text(f"{FILE} is {NAME}, byte for byte", timeout=LOAD_MS)
        expect(told(page, "progress")).to_contain_text("Family: SD 1.x / 2.x (its hash is that of", timeout=LOAD_MS)
        made = webui.txt2img(override_settings={"sd_vae": FILE})
        assert made.parameter("VAE") == FILE
        open_tab(page, "txt2img")
        open_tab(page)  # looks again
        checkpoint = webui.status()["checkpoint"]
        expect(told(page, "table").locator("tr", has_text=FILE).first).to_contain_text(checkpoint, timeout=LOAD_MS)

    def test_4_rules_are_explained_saved_and_followed(self, page, webui):
        open_tab(page)
        own = webui.txt2img()
        field = page.locator(f"{part('rules')} textarea")
        field.fill('{"version": 1, "rules": [{"vea": "x"}]}')
        press(page, "save_rules")
        expect(told(page, "told")).to_contain_text('unknown key "vea"', timeout=LOAD_MS)
        rules = [{"family": "sdxl", "vae": "x"}, {"family": "sd1", "vae": self.plain}]
        field.fill(json.dumps({"version": 1, "rules": rules}))
        press(page, "explain")
        expect(told(page, "told")).to_contain_text("The family is SD 1.x / 2.x, not SDXL.", timeout=LOAD_MS)
        expect(told(page, "told")).to_contain_text(f"All of it holds, so the VAE is {self.plain}.")
        save(page, f"{self.shots}_rules", is_whole=True)
        press(page, "save_rules")
        expect(told(page, "told")).to_contain_text("2 rules saved", timeout=LOAD_MS)
        assert webui.status()["reason"] == f"{self.plain} follows from rule 2 (family sd1)."
        made = webui.txt2img()
        assert made.parameter("VAE") == self.plain
        assert made != own
        field.fill("")
        press(page, "save_rules")
        expect(told(page, "told")).to_contain_text("0 rules saved", timeout=LOAD_MS)
        assert webui.txt2img() == own

    def test_5_a_pasted_picture_whose_vae_is_missing_leads_to_it(self, page):
        digits = catalogue().find("SDXL VAE 1.0").sha256[:10]
        text = f"a cat\nSteps: 2, Seed: 1, Size: 64x64, VAE hash: {digits}, VAE: their_vae.safetensors"
        open_tab(page, "txt2img")
        page.locator("#txt2img_prompt textarea").fill(text)
        page.locator("#txt2img_tools #paste").click()
        expect(page.locator(".toast-wrap")).to_contain_text("of that text is not here")
        panel = page.locator("#vae_kit_txt2img")
        if not panel.locator("label").first.is_visible():
            panel.locator(".label-wrap").first.click()
        message = page.locator("#vae_kit_txt2img_missing").first
        expect(message).to_contain_text('it is "SDXL VAE 1.0"', timeout=LOAD_MS)
        save(page, f"{self.shots}_missing_vae", is_whole=True)
        message.locator("a").click()
        expect(page.locator(f"{part('chosen')} input")).to_have_value("SDXL VAE 1.0", timeout=LOAD_MS)
        expect(told(page, "about")).to_contain_text("SDXL")
        expect(page.locator(part("install"))).to_be_visible()

    def test_6_reload_ui_keeps_the_tab(self, page, webui):
        page.reload()
        open_tab(page)
        expect(told(page, "table")).to_contain_text(self.plain, timeout=LOAD_MS)
        saved = json.loads((webui.data / "ui-config.json").read_text("utf-8"))
        assert [key for key in saved if "vae_kit/" in key] == [], "the web UI must not remember the tab's fields"
