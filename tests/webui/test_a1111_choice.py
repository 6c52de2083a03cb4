"""Who chooses the VAE inside A1111: rules per checkpoint and pass, the family guard, checkpoints without a VAE."""

import os
import shutil

import numpy as np
import pytest
from catalogue_rows import NAME, add_tried, prepare, with_a_foreign_vae, write_rules
from fault_server import FaultServer
from installation import running_with, without_traceback
from odd_checkpoints import demo_without_a_word, sdxl_vae, write_bare, write_with_demo_vae, write_with_strange_vae
from programs import A1111
from safetensors.torch import save, save_file
from vae_variants import changed, smallest_checkpoint, write_variants

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui

HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}
BY_BEHAVIOUR = {"vae_kit_guard_by_hash": False, "vae_kit_guard_by_fingerprint": False}


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, smallest_checkpoint(A1111.folder()))
    state = dict(read_vae(smallest_checkpoint(A1111.folder())).state)
    tinted = {**state, "encoder.conv_in.bias": state["encoder.conv_in.bias"] + 0.5}
    save_file(tinted, folder / "tinted_encoder.safetensors")
    for name, weights in (("demo_like", demo_without_a_word()), ("sdxl_like", sdxl_vae())):
        save_file({key: tensor.contiguous() for key, tensor in weights.state.items()}, folder / f"{name}.safetensors")
    add_tried(os.environ.get("VAE_KIT_TEST_WEIGHTS"), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The installation's smallest checkpoint, a copy with other weights, one without a VAE, one with the demo's."""
    folder = tmp_path_factory.mktemp("checkpoints")
    smallest = smallest_checkpoint(A1111.folder())
    write_bare(folder, smallest)
    write_with_demo_vae(folder, smallest)
    write_with_strange_vae(folder, smallest)
    for end in (".safetensors", ".yaml"):
        shutil.copy(smallest.with_suffix(end), folder / f"second{end}")
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory, vaes, checkpoints):
    data = tmp_path_factory.mktemp("a1111")
    content = save(changed(dict(read_vae(smallest_checkpoint(A1111.folder())).state), 9))
    with FaultServer(content) as server:
        prepare(data, server, content)
        with_a_foreign_vae(data, vaes / "other.safetensors")
        with running_with(A1111, data, f"--vae-dir={vaes}", f"--ckpt-dir={checkpoints}") as webui:
            yield webui


@pytest.fixture
def webui(running):
    title = next(m["title"] for m in running.call("/sdapi/v1/sd-models").body if m["title"].startswith("tiny.safe"))
    write_rules(running)
    warn = {"vae_kit_guard_wrong_family": "warn", **dict.fromkeys(BY_BEHAVIOUR, True)}
    assert running.set(sd_model_checkpoint=title, sd_vae="Automatic", **warn).status == 200
    with without_traceback(running):
        yield running


def load(webui, stem):
    """Choose a checkpoint."""
    title = next(m["title"] for m in webui.call("/sdapi/v1/sd-models").body if m["title"].startswith(stem))
    assert webui.set(sd_model_checkpoint=title).status == 200


# --- rules -----------------------------------------------------------------------------------------------------------


def test_a_rule_for_a_checkpoint_changes_its_pictures_only(webui):
    own = webui.txt2img()
    expected = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    write_rules(webui, {"checkpoint": "tiny", "vae": "plain.safetensors"})
    made = webui.txt2img()
    assert made == expected != own
    assert made.parameter("VAE") == "plain.safetensors"
    assert webui.status()["reason"] == "plain.safetensors follows from rule 1 (checkpoint tiny)."
    load(webui, "second")
    assert webui.txt2img() == own
    assert webui.status()["vae"] == "None"
    write_rules(webui)
    load(webui, "tiny.safe")
    assert webui.txt2img() == own


def test_a_rule_for_the_hires_pass(webui):
    own = webui.txt2img(**HIRES)
    job = {"VAE Kit": {"args": ["Automatic", "other.safetensors"]}}
    expected = webui.txt2img(**HIRES, alwayson_scripts=job)
    write_rules(webui, {"pass": "hires", "vae": "other.safetensors"})
    assert webui.txt2img(**HIRES) == expected != own
    assert webui.status()["vae"] == "None", "the pass is over"
    write_rules(webui)
    assert webui.txt2img(**HIRES) == own


def test_a_rule_for_encoding_an_img2img_picture(webui):
    own = webui.img2img()
    write_rules(webui, {"pass": "img2img encode", "vae": "tinted_encoder.safetensors"})
    made = webui.img2img()
    assert made != own, "encoded by another VAE"
    assert made.parameter("VAE") is None, "decoded by the checkpoint's own"
    assert webui.txt2img().parameter("VAE") is None
    write_rules(webui, {"pass": ["img2img encode", "picture"], "vae": "tinted_encoder.safetensors"})
    assert webui.img2img().parameter("VAE") == "tinted_encoder.safetensors"


def test_the_dropdown_and_the_job_beat_a_rule(webui):
    expected = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    write_rules(webui, {"family": "sd1", "vae": "other.safetensors"})
    assert webui.txt2img(alwayson_scripts={"VAE Kit": {"args": ["plain.safetensors"]}}) == expected
    assert webui.txt2img(override_settings={"sd_vae": "plain.safetensors"}) == expected


def test_a_rules_file_that_is_wrong_stops_the_job_with_one_line(webui):
    own = webui.txt2img()
    (webui.data / "vae-kit" / "vae_rules.json").write_text('{"version": 1, "rules": [{"vea": "x"}]}', "utf-8")
    answer = webui.try_txt2img()
    assert answer.status == 422
    assert 'rule 1 has the unknown key "vea"' in answer.detail
    write_rules(webui, {"vae": "gone.safetensors"})
    answer = webui.try_txt2img()
    assert answer.status == 422
    assert "Rule 1 of vae_rules.json (always): " in answer.detail
    write_rules(webui)
    assert webui.txt2img() == own


# --- the guard -------------------------------------------------------------------------------------------------------


def test_a_wrong_family_known_by_its_hash_is_warned_about(webui):
    assert webui.set(sd_vae="other.safetensors").status == 200
    (warning,) = webui.status()["warnings"]
    assert warning == (
        "other.safetensors is a VAE for SDXL (its hash is that of Some SDXL VAE), the loaded model is SD 1.x / 2.x: "
        f'colours would be wrong; install "{NAME}" from the catalogue.'
    )
    assert webui.txt2img().parameter("VAE") == "other.safetensors"


def test_a_wrong_family_is_refused_where_the_user_wants_it_so(webui):
    own = webui.txt2img()
    webui.set(vae_kit_guard_wrong_family="refuse")
    answer = webui.set(sd_vae="other.safetensors")
    assert answer.status == 422
    assert "other.safetensors is a VAE for SDXL" in answer.detail
    assert webui.txt2img() == own
    answer = webui.try_txt2img(alwayson_scripts={"VAE Kit": {"args": ["other.safetensors"]}})
    assert answer.status == 422
    assert webui.txt2img() == own
    webui.set(vae_kit_guard_wrong_family="off")
    assert webui.set(sd_vae="other.safetensors").status == 200
    assert webui.status()["warnings"] == []


def test_random_weights_stay_undecided_and_that_is_said(webui):
    assert webui.set(sd_vae="plain.safetensors").status == 200
    (warning,) = webui.status()["warnings"]
    assert warning.startswith("plain.safetensors may be a VAE for SD 1.x / 2.x or SDXL, it could not be told which;")


def test_behaviour_alone_tells_the_families_apart(webui):
    """A checkpoint with the demo's VAE; hash and weights may not be compared, the files say nothing of themselves."""
    webui.set(**BY_BEHAVIOUR)
    load(webui, "withdemo")
    own = webui.txt2img()
    assert webui.set(sd_vae="demo_like.safetensors").status == 200
    assert webui.status()["warnings"] == []
    assert webui.txt2img() != own
    assert webui.set(sd_vae="sdxl_like.safetensors").status == 200
    (warning,) = webui.status()["warnings"]
    assert warning.startswith("sdxl_like.safetensors is a VAE for SDXL (tried on a small picture), the loaded model is")
    webui.set(sd_vae="Automatic", vae_kit_guard_wrong_family="refuse")
    assert webui.txt2img() == own
    answer = webui.set(sd_vae="sdxl_like.safetensors")
    assert answer.status == 422
    assert "(tried on a small picture)" in answer.detail
    assert webui.txt2img() == own


# --- checkpoints without a VAE ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_vae_is_no_grey_picture(webui, vaes):
    load(webui, "bare")
    status = webui.status()
    assert "bare holds no VAE of its own" in " ".join([status["reason"], *status["warnings"]])
    spoiled = webui.txt2img()
    assert np.ptp(spoiled.pixels) < 3, "one grey: this is what the program makes of it by itself"
    content = save(changed(dict(read_vae(smallest_checkpoint(A1111.folder())).state), 9))
    (vaes / "standard.safetensors").write_bytes(content)
    try:
        assert webui.call("/sdapi/v1/refresh-vae", {}).status == 200
        load(webui, "second")
        load(webui, "bare")
        made = webui.txt2img()
        assert made.parameter("VAE") == "standard.safetensors"
        assert np.ptp(made.pixels) > 30
        reason = webui.status()["reason"]
        assert reason == (
            "Automatic: bare holds no VAE of its own, so standard.safetensors is used, "
            "the standard VAE of SD 1.x / 2.x."
        )
        assert webui.set(sd_vae="plain.safetensors").status == 200
        assert webui.txt2img().parameter("VAE") == "plain.safetensors"
        assert webui.set(sd_vae="Automatic").status == 200
        assert webui.txt2img() == made
    finally:
        (vaes / "standard.safetensors").unlink()
        webui.call("/sdapi/v1/refresh-vae", {})


# --- VAEs nobody here knows ------------------------------------------------------------------------------------------


def test_an_unknown_vae_module_is_left_to_the_web_ui_with_one_line(webui):
    own = webui.txt2img()
    load(webui, "strange")
    for _ in range(2):
        assert webui.txt2img() == own, "its attention has no weights, so the picture is the same"
    assert webui.status()["reason"] == "The web UI looks after this model's VAE itself."
    assert webui.log.count("VAE Kit leaves the VAE of this model to the web UI") == 1
    load(webui, "tiny.safe")
    assert webui.txt2img(override_settings={"sd_vae": "plain.safetensors"}).parameter("VAE") == "plain.safetensors"
    assert webui.txt2img() == own


# --- the refiner -----------------------------------------------------------------------------------------------------


def test_a_refiner_is_another_checkpoint_with_rules_of_its_own(webui):
    refiner = next(m["title"] for m in webui.call("/sdapi/v1/sd-models").body if m["title"].startswith("second"))
    refined = {"refiner_checkpoint": refiner, "refiner_switch_at": 0.5, "steps": 4}
    plain = webui.txt2img(**refined, override_settings={"sd_vae": "plain.safetensors"})
    assert plain.parameter("Refiner") is not None
    assert plain.parameter("VAE") == "plain.safetensors"
    assert plain == webui.txt2img(steps=4, override_settings={"sd_vae": "plain.safetensors"}), "the same weights"
    own = webui.txt2img(steps=4)
    assert webui.txt2img(**refined) == own
    assert webui.txt2img(**refined, alwayson_scripts={"VAE Kit": {"args": ["plain.safetensors"]}}) == plain
    assert webui.txt2img(steps=4) == own
