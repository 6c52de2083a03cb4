"""The stand-alone app in a process of its own and a Chromium page on it, for the tests in this folder."""

import io
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from conftest import ROOT
from PIL import Image

START = "import sys; from sd_vae_kit.standalone.app import main; sys.exit(main(sys.argv[1:]))"
READY_SECONDS = 120
WAIT_MS = 120_000  # a job on two busy cores


@contextmanager
def running_app(data: Path, *options: str):
    """Start the app over a data folder and yield its address."""
    port = _free_port()
    command = [sys.executable, "-c", START, "--data-dir", str(data), "--port", str(port), "--no-browser", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        _wait_until_ready(process, port, lines)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)
        reader.join(10)
        process.stdout.close()
        if any("Traceback" in line for line in lines):
            sys.stderr.write("".join(lines))


class App:
    """What tests do on a page, in the words of the page."""

    def __init__(self, page, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        page.set_default_timeout(30_000)
        page.on("console", lambda message: self._note("console", message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note("page error", str(error)))
        self._open_events: list[object] = []
        self._sent: list[str] = []
        page.on("request", self._check_request)
        for ending in ("requestfinished", "requestfailed"):
            page.on(ending, self._forget_request)

    def open(self) -> None:
        """Load or reload the page and wait until the server's values are in it."""
        self.settle()  # leaving while an event is open is an error in gradio's own words
        self.page.goto(self.address)
        self.page.wait_for_selector("#vae_kit_txt2img_generate")
        self.settle()

    def settle(self) -> None:
        """Wait until every event has been answered, those that follow from answers too.

        An answer comes through a stream that gradio closes when there is nothing more to say; when it has opened two at
        once it forgets one of them, so three seconds without a new event are enough as well.
        """
        quiet, deadline = 0, time.monotonic() + WAIT_MS / 1000
        while quiet < (30 if self._open_events else 5):
            assert time.monotonic() < deadline, f"events never end; the last ones were {self._sent[-12:]}"
            before = len(self._sent)
            self.page.wait_for_timeout(100)
            posting = any(request.method == "POST" for request in self._open_events)
            quiet = 0 if posting or len(self._sent) > before else quiet + 1

    def tab(self, name: str, *, settle: bool = True) -> None:
        """Open a tab; what it shows is put in only then."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        if settle:
            self.settle()

    def choose(self, element_id: str, option: str) -> None:
        """Pick an option of a dropdown."""
        self.page.locator(f"#{element_id} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def chosen(self, element_id: str) -> str:
        return self.page.locator(f"#{element_id} input").input_value()

    def type(self, element_id: str, text: object) -> None:
        """Fill a text or number field and leave it."""
        field = self.page.locator(f"#{element_id} textarea, #{element_id} input:not([type=range])").first
        field.fill(str(text))
        field.blur()

    def text(self, element_id: str) -> str:
        """What is shown there once nothing is on its way (until then gradio may add a clock of its own)."""
        self.settle()
        return self.page.locator(f"#{element_id}").inner_text()

    def value(self, element_id: str) -> str:
        return self.page.locator(f"#{element_id} textarea, #{element_id} input:not([type=range])").first.input_value()

    def form(self, tab: str, **values: object) -> None:
        for name, value in values.items():
            self.type(f"vae_kit_{tab}_{name}", value)

    def generate(self, tab: str) -> np.ndarray:
        """Press Generate, wait for the new picture, return it."""
        gallery = f"#vae_kit_{tab}_gallery img"
        before = [image.get_attribute("src") for image in self.page.locator(gallery).all()]
        self.page.click(f"#vae_kit_{tab}_generate")
        self.page.wait_for_function(
            """([gallery, live, before]) => {
                const source = document.querySelector(gallery)?.getAttribute("src");
                return source && !before.includes(source) && !document.querySelector(live);
            }""",
            arg=[gallery, f"#vae_kit_{tab}_live .vk-live", before],
            timeout=WAIT_MS,
        )
        self.settle()
        return self.picture(tab)

    def lines(self, element_id: str) -> list[str]:
        """The messages shown there."""
        return self.page.locator(f"#{element_id} .vk-status > div").all_inner_texts()

    def start(self, tab: str) -> None:
        self.page.click(f"#vae_kit_{tab}_generate")
        self.page.wait_for_selector(f"#vae_kit_{tab}_live .vk-live")

    def finished(self, tab: str) -> np.ndarray:
        self.wait_for_end(tab)
        return self.picture(tab)

    def wait_for_end(self, tab: str) -> None:
        self.page.wait_for_selector(f"#vae_kit_{tab}_outcome .vk-status", timeout=WAIT_MS)

    def picture(self, tab: str) -> np.ndarray:
        """The picture in the gallery, as the server sends it."""
        source = self.page.locator(f"#vae_kit_{tab}_gallery img").first.get_attribute("src")
        answer = self.page.request.get(source)
        return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")).astype(float)

    def wait_for_text(self, element_id: str, text: str, timeout: float = 60_000) -> None:
        self.page.locator(f"#{element_id}").get_by_text(text).first.wait_for(timeout=timeout)

    def _check_request(self, request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1":
            self._note("request to the outside", request.url)
        if "/queue/" in request.url:
            self._open_events.append(request)
            self._sent.append(request.post_data or request.url)

    def _forget_request(self, request) -> None:
        if request in self._open_events:
            self._open_events.remove(request)

    def _note(self, kind: str, text: str) -> None:
        self.problems.append(f"{kind}: {text}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, port: int, lines: list[str]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the app ended with {process.returncode}:\n{''.join(lines)}")
        if any("VAE Kit is at" in line for line in lines):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the app was not ready after {READY_SECONDS} s:\n{''.join(lines)}")
