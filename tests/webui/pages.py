"""A web UI's page in Chromium: what its users see and press, in every program the same."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from installation import WebUi
from playwright.sync_api import Browser, Locator, Page, expect

LOAD_MS = 60_000
SHOTS = "VAE_KIT_SCREENSHOTS"  # a folder: screenshots are saved there
# A1111 1.10.1 without any extension, each time Generate is pressed
HOSTS_OWN = "Cannot read properties of undefined (reading 'props')"


@contextlib.contextmanager
def open_page(browser: Browser, webui: WebUi, width: int, height: int, own: str = "") -> Iterator[Page]:
    """The web UI's page once it is usable; fails at the end if a script of the page failed.

    Args:
        own: A script error that the program has without us.
    """
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    page.on("pageerror", lambda error: None if own and own in str(error) else wrong.append(str(error)))
    page.goto(webui.url)
    expect(page.locator("#setting_sd_vae")).to_be_visible(timeout=LOAD_MS)
    yield page
    page.close()
    assert not wrong


def open_tab(page: Page, name: str = "VAE Kit", bar: str = "#tabs") -> None:
    page.locator(f"{bar} > .tab-nav button").filter(
        has_text=re.compile(rf"^\s*{re.escape(name)}\s*$", re.IGNORECASE)
    ).click()


def choose(page: Page, name: str) -> None:
    """Pick from the top bar, as a user does."""
    page.locator("#setting_sd_vae input").click()
    option = page.locator("#setting_sd_vae ul.options li").filter(has_text=re.compile(rf"^\W*{re.escape(name)}\s*$"))
    option.click()


def open_panel(page: Page, tab: str = "txt2img") -> None:
    panel = page.locator(f"#vae_kit_{tab}")
    if not panel.locator("label").first.is_visible():
        panel.locator(".label-wrap").first.click()


def sentence(page: Page, tab: str = "txt2img") -> Locator:
    """What the panel says of the active VAE."""
    return page.locator(f"#vae_kit_{tab}_active").first


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


def save(page: Page, name: str, *, of: str = "", is_whole: bool = False) -> None:
    """A screenshot where one is wanted: of the window's top, of the window around an element, or of the whole page."""
    if folder := os.environ.get(SHOTS):
        to_element = "selector => document.querySelector(selector).scrollIntoView({block: 'center'})"
        page.evaluate(to_element if of else "() => window.scrollTo(0, 0)", of or None)
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=is_whole)
