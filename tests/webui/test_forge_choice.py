"""Who chooses the VAE inside Forge: rules per checkpoint and pass, the family guard."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from catalogue_rows import NAME, open_tab, pick, prepare, press, told
from fault_server import FaultServer
from installation import FORGE, start, wait_until
from playwright.sync_api import expect
from safetensors.torch import save_file
from test_a1111_browser import LOAD_MS, browser
from test_forge import vaes
from vae_variants import smallest_checkpoint

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui
__all__ = ["browser", "vaes"]  # fixtures

HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}
HIRES["hr_additional_modules"] = []


@pytest.fixture(scope="module")
def forge(vaes, tmp_path_factory):
    data = tmp_path_factory.mktemp("forge")
    state = dict(read_vae(smallest_checkpoint(FORGE.folder())).state)
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"].float() + 0.5
    save_file({name: tensor.half() for name, tensor in state.items()}, vaes / "tinted_encoder.safetensors")
    weights = os.environ.get("VAE_KIT_TEST_WEIGHTS")
    for file in sorted(Path(weights).rglob("taesd*_decoder.*")) if weights else ():
        shutil.copy(file, vaes / f"tried_{file.name}")
    with FaultServer(b"") as server:
        prepare(data, server, b"")
        own = data / "vae-kit" / "catalogue.json"
        catalogue = json.loads(own.read_text("utf-8"))
        entry = catalogue["entries"][0]
        digest = hashlib.sha256((vaes / "b.safetensors").read_bytes()).hexdigest()
        foreign = {**entry, "name": "Some SDXL VAE", "file": "some.safetensors", "family": "sdxl", "sha256": digest}
        own.write_text(json.dumps({**catalogue, "entries": [entry, foreign], "standard": {"sd1": NAME}}), "utf-8")
        webui = start(FORGE, data, f"--vae-dir={vaes}", f"--gradio-allowed-path={FORGE.folder()}")
        wait_until(lambda: "Startup time:" in webui.log, 300, webui)
        yield webui
        webui.stop()


@pytest.fixture
def webui(forge):
    rules(forge)
    assert forge.set(sd_vae="Automatic", vae_kit_guard_wrong_family="warn").status == 200
    forge.checked = len(forge.log)
    yield forge
    assert "Traceback" not in forge.log[forge.checked :], forge.log[forge.checked :]


@pytest.fixture(scope="module")
def own(forge):
    return forge.txt2img()


def rules(webui, *listed):
    """Write the rules file, as an editor does."""
    (webui.data / "vae-kit" / "vae_rules.json").write_text(json.dumps({"version": 1, "rules": listed}), "utf-8")


def test_a_rule_changes_the_picture_and_the_reason_says_so(webui, own):
    expected = webui.txt2img(override_settings={"sd_vae": "a.safetensors"})
    rules(webui, {"checkpoint": "no_such_model", "vae": "b.safetensors"}, {"family": "sd1", "vae": "a.safetensors"})
    made = webui.txt2img()
    assert made == expected != own
    assert made.parameter("VAE") == "a.safetensors"
    assert webui.status()["reason"] == "a.safetensors follows from rule 2 (family sd1)."
    rules(webui)
    assert webui.txt2img() == own


def test_a_rule_for_the_hires_pass(webui):
    job = {"VAE Kit": {"args": ["Automatic", "sub/b.safetensors"]}}
    expected = webui.txt2img(**HIRES, alwayson_scripts=job)
    plain = webui.txt2img(**HIRES)
    rules(webui, {"pass": "hires", "vae": "sub/b.safetensors"})
    assert webui.txt2img(**HIRES) == expected != plain
    assert webui.status()["vae"] == "None", "the pass is over"


def test_a_rule_for_encoding_an_img2img_picture(webui):
    plain = webui.img2img()
    rules(webui, {"pass": "img2img encode", "vae": "tinted_encoder.safetensors"})
    made = webui.img2img()
    assert made != plain, "encoded by another VAE"
    assert made.parameter("VAE") is None, "decoded by the checkpoint's own"


def test_a_rules_file_that_is_wrong_stops_the_job_with_one_line(webui, own):
    (webui.data / "vae-kit" / "vae_rules.json").write_text('{"version": 1, "rules": [{"vea": "x"}]}', "utf-8")
    answer = webui.try_txt2img()
    assert answer.status == 422
    assert 'rule 1 has the unknown key "vea"' in answer.detail
    rules(webui)
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
