"""The catalogue's and the rules' part of the VAE tab, built and filled from plain data."""

import asyncio
import subprocess
import sys

import pytest
from fake_backend import FakeBackend
from fake_catalogue import ROWS, FakeCatalogue
from gradio_parts import changed, child_environment, components_of

from sd_vae_kit.standalone.pages import page
from sd_vae_kit.ui import catalogue_markup, catalogue_tab, gradio_compat
from sd_vae_kit.ui.catalogue_install import followed
from sd_vae_kit.ui.catalogue_list import ANY_FAMILY, Filter, list_updates
from sd_vae_kit.web.catalogue_protocol import InstallView


@pytest.fixture(autouse=True)
def _close_event_loops(monkeypatch):
    made, real = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(real()) or made[-1])
    yield
    for loop in made:
        loop.close()


def handlers_of(blocks, elem_id):
    """Functions attached to a component, by event."""
    ids = {c._id for c in blocks.blocks.values() if getattr(c, "elem_id", None) == elem_id}
    found = blocks.fns.values() if hasattr(blocks, "fns") and isinstance(blocks.fns, dict) else []
    return {name: fn.fn for fn in found for target, name in fn.targets if target in ids}


def test_the_page_has_the_part_and_the_shortcut_under_their_ids():
    ids = components_of(page.build_page(FakeBackend(), catalogue=FakeCatalogue()))
    names = ["query", "family", "shown", "table", "chosen", "about", "accepted", "progress", "install", "cancel"]
    names += [
        "verify",
        "reveal",
        "notice",
        "wanted",
        "look",
        "tiny",
        "rules",
        "pass",
        "explain",
        "save_rules",
        "import_cards",
        "told",
        "forget",
        "forgotten",
    ]
    assert {f"vae_kit_catalogue_{name}" for name in names} <= ids.keys()


def test_building_it_needs_no_torch():
    code = (
        "import sys; from fake_backend import FakeBackend; from fake_catalogue import FakeCatalogue; "
        "from sd_vae_kit.standalone.pages import page; page.build_page(FakeBackend(), catalogue=FakeCatalogue()); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=True)


def test_the_table_escapes_and_marks_the_live_and_the_broken_file():
    table = catalogue_markup.catalogue_table(ROWS)
    assert "&lt;b&gt;" in table
    assert "It is &lt;empty&gt;." in table
    assert "<b>" not in table
    assert 'class="vk-is-active"><td>a.safetensors' in table
    assert "334.6 MB" in table
    assert "0.0 KB" in table
    assert "Nothing fits" in catalogue_markup.catalogue_table([])


def test_filtering_keeps_the_selection_only_while_it_is_listed():
    table, chosen, about, accepted = list_updates(FakeCatalogue().gallery, Filter(family="SD 1.x / 2.x"), "Known")
    assert changed(chosen) == {"choices": ["Known"]}, "the user may have chosen something else meanwhile"
    assert "a.safetensors" not in table
    assert changed(accepted) == {"visible": True, "value": False}
    assert "Odd." in about
    table, chosen, about, accepted = list_updates(FakeCatalogue().gallery, Filter(family="SDXL"), "Known")
    assert changed(chosen) == {"choices": ["a.safetensors"], "value": None}
    assert changed(accepted)["visible"] is False


def test_progress_is_a_bar_while_something_runs_and_lines_afterwards():
    running, ended = (catalogue_markup.progress(state) for state in FakeCatalogue().downloads.watch())
    assert "width:25%" in running
    assert "1.0 of 4.0 MB" in running
    assert "vk-progress" not in ended
    assert "Known is installed." in ended
    assert catalogue_markup.progress(InstallView()) == ""


def test_an_install_without_consent_is_one_line():
    downloads = FakeCatalogue().downloads
    shown = list(followed(downloads, lambda: downloads.install("Known", False)))
    assert len(shown) == 1
    assert 'class="vk-error"' in shown[0]
    assert "Not without your consent." in shown[0]


@pytest.mark.skipif(gradio_compat.MAJOR < 5, reason="handlers are kept elsewhere in old gradio")
def test_the_buttons_answer():
    catalogue = FakeCatalogue()
    blocks = page.build_page(FakeBackend(), catalogue=catalogue)
    verify = handlers_of(blocks, "vae_kit_catalogue_verify")["click"]
    reading, done = verify("a.safetensors")
    assert "width:50%" in reading
    assert "a.safetensors is right." in done
    assert ["Choose a VAE in the list first." in text for text in verify(None)] == [True]
    save = handlers_of(blocks, "vae_kit_catalogue_save_rules")["click"]
    assert "not valid JSON" in save("{")[0]
    add = handlers_of(blocks, "vae_kit_catalogue_import_cards")["click"]
    assert add("{}")[0] == "{}x"
    install = handlers_of(blocks, "vae_kit_catalogue_install")["click"]
    steps = list(install("Known", True, "", ANY_FAMILY, "all"))
    assert catalogue.calls == ["Known"]
    assert "is installed" in steps[-2][0]
    assert len({len(step) for step in steps}) == 1
    forget = handlers_of(blocks, "vae_kit_catalogue_forget")["click"]
    assert "Forgotten: what 2 encoders or decoders needed." in forget()
    tiny = handlers_of(blocks, "vae_kit_catalogue_tiny")["click"]
    assert "is installed" in list(tiny())[-1]
    assert catalogue.calls[-1] == "tiny"


@pytest.mark.skipif(gradio_compat.MAJOR < 5, reason="handlers are kept elsewhere in old gradio")
def test_a_wanted_vae_is_selected_whatever_the_filter_says():
    blocks = page.build_page(FakeBackend(), catalogue=FakeCatalogue())
    look = handlers_of(blocks, "vae_kit_catalogue_look")["click"]
    query, family, shown, wanted, _, chosen, *_ = look("nothing like it", "SDXL", "installed", None, "Known")
    assert [changed(widget)["value"] for widget in (query, family, shown)] == ["", ANY_FAMILY, "all"]
    assert wanted == ""
    assert changed(chosen)["value"] == "Known"
    *filters, _, table, chosen, _, _ = look("", "SDXL", "all", "a.safetensors", "")
    assert [changed(widget) for widget in filters] == [{}, {}, {}]
    assert "Known" not in table
    assert changed(chosen) == {"choices": ["a.safetensors"]}


def test_what_cannot_be_done_is_said_above_the_list():
    assert "Nothing may be &lt;written&gt;." in catalogue_tab.notice_html(FakeCatalogue())


def test_rules_are_explained_with_the_deciding_one_marked():
    table = catalogue_markup.rules_table(FakeCatalogue().rules.explain("", "picture"))
    assert "family &lt;sdxl&gt;" in table
    assert 'class="vk-is-active"><td>2</td>' in table
    assert "There are no rules" in catalogue_markup.rules_table([])
