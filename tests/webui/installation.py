"""Starting an existing web UI for a test: on a free port, with this extension linked in, writing elsewhere.

The installation is named by a variable and stays as it is: settings, cache and extensions live in a temporary data
folder, VAE files made for the test in another.  What is needed beyond the plain start goes into `..._ARGS`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from programs import Program

START_SECONDS = 600  # on a busy machine; 20 to 60 s on a quiet one
REQUEST_SECONDS = 300
LINKED = (
    "scripts",
    "sd_vae_kit",
    "javascript",
    "localizations",
    "install.py",
    "preload.py",
    "style.css",
    "metadata.ini",
)
EXTENSION = "sd-webui-vae-kit"
QUIET = {  # no network, no browser, no graphics card, one line of output at a time
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "SD_WEBUI_RESTARTING": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "PASSIVE",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass
class Answer:
    """An HTTP answer.

    Attributes:
        status: Its code.
        body: Decoded JSON, or text.
    """

    status: int
    body: object

    @property
    def detail(self) -> str:
        """The line for the user in an error's answer."""
        return str(self.body.get("detail", "")) if isinstance(self.body, dict) else str(self.body)


@dataclass
class Made:
    """A picture that was generated: pixels (H, W, 3) and its parameters."""

    pixels: np.ndarray
    infotext: str

    def parameter(self, key: str) -> str | None:
        """One value of the last line."""
        found = re.search(rf"(?:^|, ){re.escape(key)}: ([^,]*)", self.infotext.splitlines()[-1])
        return found.group(1) if found else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and np.array_equal(self.pixels, other.pixels)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class WebUi:
    """A running web UI."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path
    data: Path
    user: str = ""
    checked: int = 0  # how much of the log a test has looked through

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", errors="replace")

    def call(self, path: str, data: object = None, user: str | None = None) -> Answer:
        """GET, or POST where there is something to send."""
        body = json.dumps(data).encode() if data is not None else None
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        if login := (self.user if user is None else user):
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return Answer(answer.status, _decoded(answer.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _decoded(error.read()))

    def set(self, **options: object) -> Answer:
        """Change options for good."""
        return self.call("/sdapi/v1/options", options)

    def txt2img(self, **request: object) -> Made:
        """A small picture with a fixed seed."""
        return self._made("txt2img", request)

    def img2img(self, **request: object) -> Made:
        """The same from a picture."""
        return self._made("img2img", {"init_images": [picture()], "denoising_strength": 0.5, **request})

    def try_txt2img(self, **request: object) -> Answer:
        """The bare answer, for requests that are refused."""
        return self.call("/sdapi/v1/txt2img", {**SMALL, **request})

    def _made(self, kind: str, request: dict[str, object]) -> Made:
        answer = self.call(f"/sdapi/v1/{kind}", {**SMALL, **request})
        assert answer.status == 200, answer.body
        return made_from(answer.body)

    def status(self) -> dict[str, object]:
        """What this extension says is active."""
        return self.call("/vae-kit/v1/status").body

    def stop(self) -> None:
        """End it, and everything it started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, sign)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    continue


SMALL = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", "cfg_scale": 2}


def made_from(body: object) -> Made:
    """The first picture of an answer."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["images"][0]))).convert("RGB"))
    return Made(pixels, json.loads(body["info"])["infotexts"][0])


def picture(size: int = 64) -> str:
    """A colourful picture as base64 PNG."""
    rows, columns = np.mgrid[0:size, 0:size]
    pixels = np.stack([rows * 255 // size, columns * 255 // size, (rows + columns) % 256], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _decoded(body: bytes) -> object:
    try:
        return json.loads(body or b"null")
    except ValueError:
        return body.decode("utf-8", errors="replace")


def link_extension(data: Path) -> None:
    """Link the parts a web UI reads; not the repository itself, whose .git the web UI would ask for updates."""
    extension = data / "extensions" / EXTENSION
    extension.mkdir(parents=True)
    for name in LINKED:
        if (ROOT / name).exists():
            (extension / name).symlink_to(ROOT / name)


def link_script(data: Path, name: str, script: str) -> None:
    """Put a test's own extension, one script, into a web UI's data folder."""
    scripts = data / "extensions" / name / "scripts"
    scripts.mkdir(parents=True)
    (scripts / f"{name.replace('-', '_')}.py").write_text(script)


def further_vaes(program: Program, data: Path, folder: Path) -> list[str]:
    """Flags with which a web UI lists the VAEs of one more folder; where an option does it, it is set in `data`."""
    if program.vaes_flag:
        return [f"{program.vaes_flag}={folder}"]
    (data / "config.json").write_text(json.dumps({program.vaes_option: str(folder)}))
    return []


def python_of(folder: Path) -> str:
    """The installation's own Python."""
    own = [folder / "venv" / part for part in ("bin/python", "Scripts/python.exe")]
    return next((str(path) for path in own if path.exists()), sys.executable)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(program: Program, data: Path, *flags: str, with_extension: bool = True, user: str = "") -> WebUi:
    """Start a web UI and wait until it answers; no part of `data` may begin with a dot, or it serves no script."""
    folder = program.folder()
    for name in ("extensions", "embeddings"):
        (data / name).mkdir(parents=True, exist_ok=True)
    if with_extension and not (data / "extensions" / EXTENSION).exists():
        link_extension(data)
    port = free_port()
    where = [f"--port={port}", "--api", f"--data-dir={data}", f"{program.models_flag}={program.models()}"]
    further = shlex.split(program.further("ARGS"))
    command = [python_of(folder), "launch.py", *program.flags, *where, *further, *flags]
    log_file = data / "log.txt"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **QUIET, **program.environment},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    webui = WebUi(f"http://127.0.0.1:{port}", process, log_file, data, user)
    try:
        wait_until(lambda: _is_up(webui), START_SECONDS, webui)
    except BaseException:
        webui.stop()
        raise
    return webui


@contextlib.contextmanager
def running_with(
    program: Program,
    data: Path,
    *flags: str,
    beside: Mapping[str, str] = MappingProxyType({}),
    with_extension: bool = True,
) -> Iterator[WebUi]:
    """A web UI on its smallest checkpoint, until the test is over.

    Args:
        beside: Extensions of the test's own: name -> script.
        with_extension: Whether ours is there.
    """
    for name, script in beside.items():
        link_script(data, name, script)
    checkpoint = program.checkpoint()
    named = [f"--ckpt={checkpoint}"] if program.takes_ckpt else []
    webui = start(program, data, *named, *flags, with_extension=with_extension)
    try:
        if program.is_asked_to_load:
            title = checkpoint.relative_to(program.models()).as_posix()
            assert webui.set(sd_model_checkpoint=title).status == 200
        yield webui
    finally:
        webui.stop()


class HostRows:
    """What subclasses test in a running web UI; each of theirs says which program it is.

    Attributes:
        beside: Extensions of the test's own: name -> script.
    """

    program: Program
    beside: Mapping[str, str] = MappingProxyType({})

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, tmp_path_factory):
        with running_with(cls.program, tmp_path_factory.mktemp("webui"), beside=cls.beside) as webui:
            yield webui


@contextlib.contextmanager
def without_traceback(webui: WebUi) -> Iterator[WebUi]:
    """Whoever leaves a traceback in the log fails; what is wanted there is skipped by moving `checked`."""
    webui.checked = len(webui.log)
    yield webui
    assert "Traceback" not in webui.log[webui.checked :], webui.log[webui.checked :]


def wait_until(condition, seconds: float, webui: WebUi) -> None:
    """Ask again and again; fails with the end of the log where time runs out or the web UI ends."""
    end = time.monotonic() + seconds
    while not condition():
        if webui.process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"the web UI did not get so far; its log ends with\n{webui.log[-4000:]}")
        time.sleep(0.5)


def _is_up(webui: WebUi) -> bool:
    """Whether it has started; asked any earlier, A1111 fails to add its API to an app that already serves."""
    if "Startup time" not in webui.log:
        return False
    try:
        return webui.call("/sdapi/v1/options").status == 200 and webui.call("/sdapi/v1/sd-models").status == 200
    except OSError:
        return False
