"""Fixtures shared by all tests: the repository's root, real weights if any, web UIs that offer only what hosts have.

Tests beside a fake web UI ask for `webui` (A1111, with a model), `host`, `script` or `messages`; a file that wants
another program overrides `program_class`.  Nothing here imports torch before a test needs it: tests/ui runs without.

This file is the only conftest.py; tests in folders below import `ROOT` from it by plain name.
"""

import asyncio
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium
from hypothesis import settings

# Before torch is imported anywhere.  oneDNN's AMX kernels round fp32 inputs to bf16 on the newest server CPUs, so that
# the same test passes on one machine and fails on another; below that level fp32 is fp32 everywhere.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Waiting threads sleep instead of spinning: on shared cores small jobs are several times faster that way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
# No test may need the network, not even by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# No deadlines: the first call of a test may import torch, and CI machines pause.  In CI the same examples every time.
settings.register_profile("vae_kit", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("vae_kit")

ROOT = Path(__file__).parent.parent
WEIGHTS_VARIABLE = "VAE_KIT_TEST_WEIGHTS"


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Folder with the real TAESD weights (`taesd_encoder.safetensors`, ...); skips the test where there is none."""
    named = os.environ.get(WEIGHTS_VARIABLE, "")
    if not named:
        pytest.skip(f"real weights wanted: set {WEIGHTS_VARIABLE} to a folder with taesd_encoder.safetensors and so on")
    folder = Path(named)
    if not (folder / "taesd_encoder.safetensors").is_file():
        pytest.fail(f"{WEIGHTS_VARIABLE} is {named!r}, which has no taesd_encoder.safetensors; unset it or correct it")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A Chromium for the tests of one file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def close_event_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradio 6 makes event loops for every page and leaves them open."""
    made, real = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(real()) or made[-1])
    yield
    for loop in made:
        loop.close()


@pytest.fixture
def program_class():
    """Which web UI is faked."""
    from fake_a1111 import FakeA1111

    return FakeA1111


@pytest.fixture
def fake(monkeypatch, tmp_path, program_class):
    """The web UI, as it is before extensions are loaded."""
    from fake_a1111 import installed

    with installed(program_class(tmp_path), monkeypatch) as fake:
        yield fake


@pytest.fixture
def started(fake):
    """The fake with our script loaded and its lists made; no model yet."""
    from sd_vae_kit.webui import callbacks

    callbacks.register()
    fake.start()
    return fake


@pytest.fixture
def webui(started):
    started.load_model()
    return started


@pytest.fixture
def host(webui):
    """Our side of the web UI."""
    from sd_vae_kit.webui.running import running

    return running()


@pytest.fixture
def script(webui):
    from sd_vae_kit.webui.script import VaeKitScript

    return VaeKitScript()


@pytest.fixture
def messages(host):
    """Lines said to the user."""
    said = []
    host.base.messages.listen(lambda message, level: said.append(message))
    return said


@pytest.fixture
def fake_webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Put a minimal `modules` package in sys.modules and yield the list of callbacks registered with it.

    Plain attributes, no MagicMock: a name the host does not have must fail here too.  The package is imported afresh,
    as after Reload UI, and what was imported beside the fake host is forgotten at the end.
    """
    registered: list[tuple[str, str]] = []
    callbacks = types.ModuleType("modules.script_callbacks")
    callbacks.on_ui_settings = lambda f: registered.append(("ui_settings", f.__name__))
    callbacks.on_script_unloaded = lambda f: registered.append(("script_unloaded", f.__name__))
    scripts = types.ModuleType("modules.scripts")
    scripts.AlwaysVisible = object()
    scripts.Script = type("Script", (), {})
    package = types.ModuleType("modules")
    package.script_callbacks, package.scripts = callbacks, scripts
    for module in (package, callbacks, scripts):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    before = _take_own_modules()
    yield registered
    _take_own_modules()
    sys.modules.update(before)


def _take_own_modules() -> dict[str, types.ModuleType]:
    """Remove this package's modules from sys.modules and return them."""
    names = [name for name in sys.modules if name.split(".")[0] == "sd_vae_kit"]
    return {name: sys.modules.pop(name) for name in names}
