"""Who chooses the VAE inside Forge: rules per checkpoint and pass, the family guard."""

import os

import pytest
from catalogue_rows import NAME, add_tried, pick, prepare, press, told, with_a_foreign_vae, write_rules
from fault_server import FaultServer
from installation import running_with, without_traceback
from pages import LOAD_MS, open_tab
from playwright.sync_api import expect
from programs import FORGE
from safetensors.torch import save_file
from vae_variants import forge_vaes, smallest_checkpoint

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui

HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}
HIRES["hr_additional_modules"] = []


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    return forge_vaes(tmp_path_factory.mktemp("vaes"), FORGE.folder())


@pytest.fixture(scope="module")
def forge(vaes, tmp_path_factory):
    data = tmp_path_factory.mktemp("forge")
    state = dict(read_vae(smallest_checkpoint(FORGE.folder())).state)
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"].float() + 0.5
    save_file({name: tensor.half() for name, tensor in state.items()}, vaes / "tinted_encoder.safetensors")
    add_tried(os.environ.get("VAE_KIT_TEST_WEIGHTS"), vaes)
    flags = [f"--vae-dir={vaes}", f"--gradio-allowed-path={FORGE.folder()}"]
    with FaultServer(b"") as server:
        prepare(data, server, b"")
        with_a_foreign_vae(data, vaes / "b.safetensors")
        with running_with(FORGE, data, *flags) as webui:
            yield webui


@pytest.fixture
def webui(forge):
    write_rules(forge)
    assert forge.set(sd_vae="Automatic", vae_kit_guard_wrong_family="warn").status == 200
    with without_traceback(forge):
        yield forge


@pytest.fixture(scope="module")
def own(forge):
    return forge.txt2img()


def test_a_rule_changes_the_picture_and_the_reason_says_so(webui, own):
    expected = webui.txt2img(override_settings={"sd_vae": "a.safetensors"})
    write_rules(
        webui, {"checkpoint": "no_such_model", "vae": "b.safetensors"}, {"family": "sd1", "vae": "a.safetensors"}
    )
    made = webui.txt2img()
    assert made == expected != own
    assert made.parameter("VAE") == "a.safetensors"
    assert webui.status()["reason"] == "a.safetensors follows from rule 2 (family sd1)."
    write_rules(webui)
    assert webui.txt2img() == own


def test_a_rule_for_the_hires_pass(webui):
    job = {"VAE Kit": {"args": ["Automatic", "sub/b.safetensors"]}}
    expected = webui.txt2img(**HIRES, alwayson_scripts=job)
    plain = webui.txt2img(**HIRES)
    write_rules(webui, {"pass": "hires", "vae": "sub/b.safetensors"})
    assert webui.txt2img(**HIRES) == expected != plain
    assert webui.status()["vae"] == "None", "the pass is over"


def test_a_rule_for_encoding_an_img2img_picture(webui):
    plain = webui.img2img()
    write_rules(webui, {"pass": "img2img encode", "vae": "tinted_encoder.safetensors"})
    made = webui.img2img()
    assert made != plain, "encoded by another VAE"
    assert made.parameter("VAE") is None, "decoded by the checkpoint's own"


def test_a_rules_file_that_is_wrong_stops_the_job_with_one_line(webui, own):
    (webui.data / "vae-kit" / "vae_rules.json").write_text('{"version": 1, "rules": [{"vea": "x"}]}', "utf-8")
    answer = webui.try_txt2img()
    assert answer.status == 422
    assert 'rule 1 has the unknown key "vea"' in answer.detail
    write_rules(webui)
    assert webui.txt2img() == own


def test_a_wrong_family_is_warned_about_or_refused(webui, own):
    assert webui.set(sd_vae="b.safetensors").status == 200
    webui.txt2img()
    (warning,) = webui.status()["warnings"]
    assert warning == (
        "b.safetensors is a VAE for SDXL (its hash is that of Some SDXL VAE), the loaded model is SD 1.x / 2.x: "
        f'colours would be wrong; install "{NAME}" from the catalogue.'
    )
    webui.set(sd_vae="Automatic", vae_kit_guard_wrong_family="refuse")
    answer = webui.set(sd_vae="b.safetensors")
    assert answer.status == 422
    assert "b.safetensors is a VAE for SDXL" in answer.detail
    assert webui.txt2img() == own


def test_random_weights_stay_undecided_and_that_is_said(webui):
    assert webui.set(sd_vae="a.safetensors").status == 200
    webui.txt2img()
    (warning,) = webui.status()["warnings"]
    assert warning.startswith("a.safetensors may be a VAE for SD 1.x / 2.x or SDXL, it could not be told which;")


@pytest.mark.parametrize(("stem", "family"), [("taesd", "SD 1.x / 2.x"), ("taesdxl", "SDXL"), ("taesd3", "SD 3 / 3.5")])
def test_real_weights_are_told_apart_by_what_they_do(webui, browser, vaes, stem, family):
    """Verify on the tab, with hash and weights switched off."""
    found = sorted(vaes.glob(f"tried_{stem}_decoder.*"))
    if not found:
        pytest.skip("set VAE_KIT_TEST_WEIGHTS to a folder with the TAESD files")
    webui.set(vae_kit_guard_by_hash=False, vae_kit_guard_by_fingerprint=False)
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    try:
        verify(page, webui, found[0].name, family)
    finally:
        page.close()
        webui.set(vae_kit_guard_by_hash=True, vae_kit_guard_by_fingerprint=True)


def verify(page, webui, name, family):
    page.goto(webui.url)
    expect(page.locator("#setting_sd_vae")).to_be_visible(timeout=LOAD_MS)
    open_tab(page)
    expect(told(page, "table")).to_contain_text(name, timeout=LOAD_MS)
    pick(page, name)
    press(page, "verify")
    expect(told(page, "progress")).to_contain_text(f"Family: {family} (tried on a small picture).", timeout=LOAD_MS)
