"""The worked examples of CONTRIBUTING.md work: their blocks of code are run."""

import re
import sys
import types
from importlib.util import find_spec

import pytest
from conftest import ROOT
from fake_a1111 import FakeA1111
from safetensors.torch import load_file, save_file

from sd_vae_kit.core.files import detect, layouts
from sd_vae_kit.core.files.identity import fingerprint
from sd_vae_kit.core.vae import read_vae
from sd_vae_kit.errors import VaeKitError

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks(heading: str) -> list[str]:
    """The Python blocks below a heading."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


def run(source: str, names: dict) -> dict:
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    return names


def test_a_vae_layout_is_added_in_one_place(monkeypatch, tmp_path):
    layout, its_test = blocks("Worked example: a VAE layout")
    names = {"ROOT": ROOT, "re": re, "load_file": load_file, "save_file": save_file, "read_vae": read_vae}
    test = run(its_test, {**names, "fingerprint": fingerprint})["test_short_names_are_understood"]
    with pytest.raises(VaeKitError, match="short"):
        test(tmp_path)  # the layout is not there yet
    added = run(layout, dict(vars(layouts)))["SHORT"]
    monkeypatch.setattr(detect, "LAYOUTS", (*layouts.LAYOUTS, added))
    test(tmp_path)


@pytest.fixture
def program_class():
    return run(blocks("Worked example: a host")[2], {"FakeA1111": FakeA1111})["FakeExample"]


@pytest.fixture
def fake(fake, monkeypatch):
    """The fake web UI, with the host of the example in its place."""
    from sd_vae_kit.hosts.a1111 import host, names

    hosts = sys.modules["sd_vae_kit.hosts"]  # the package's attribute may be an earlier test's module

    made, told, _ = blocks("Worked example: a host")
    example = types.SimpleNamespace(**run(made, {**vars(host), **vars(names)}))
    example_or_none = run(told, {"example": example, "find_spec": find_spec})["example_or_none"]
    others = hosts._find_create
    monkeypatch.setattr(hosts, "_find_create", lambda: example_or_none() or others())
    return fake


def test_a_relative_of_a1111_is_a_table_a_line_and_a_fake(webui):
    from sd_vae_kit.webui.running import running

    test = run(blocks("Worked example: a host")[2], {"FakeA1111": FakeA1111, "running": running})
    test["test_a_choice_is_live_and_none_gives_the_own_back"](webui)
    assert not running().base.options.features.has("merger")
    assert running().base.options.features.has("loading")
