"""The extension inside a real Forge: everything through HTTP, as its users' scripts do."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time

import numpy as np
import pytest
from installation import Made, WebUi, picture, running_with, wait_until
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from programs import FORGE
from vae_variants import forge_vaes

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    return forge_vaes(tmp_path_factory.mktemp("vaes"), FORGE.folder())


@pytest.fixture(scope="module")
def forge(vaes, tmp_path_factory):
    with running_with(FORGE, tmp_path_factory.mktemp("forge"), f"--vae-dir={vaes}") as webui:
        yield webui


@pytest.fixture(scope="module")
def own(forge) -> Made:
    """The picture by the checkpoint's own VAE."""
    return forge.txt2img()


@pytest.fixture(scope="module")
def with_a(forge, own) -> Made:
    return forge.txt2img(override_settings={"sd_vae": "a.safetensors"})


@pytest.fixture(autouse=True)
def everything_is_put_back(request):
    """Each test starts and ends with the checkpoint's own VAE."""
    yield
    if "forge" in request.fixturenames:
        webui: WebUi = request.getfixturevalue("forge")
        webui.set(sd_vae="Automatic", forge_additional_modules=[])
        assert "Traceback" not in new_lines(webui)


SEEN: dict[str, int] = {}


def new_lines(webui: WebUi) -> str:
    """What the console said since the last call."""
    text = webui.log
    start_at = SEEN.get(webui.url, 0)
    SEEN[webui.url] = len(text)
    return text[start_at:]


def option(webui: WebUi, key: str) -> object:
    return webui.call("/sdapi/v1/options").body[key]


# -- the dropdown and the API of A1111 --------------------------------------------------------------------------------


def test_the_list_of_vaes_is_served_as_a1111_does(forge, vaes):
    listed = {item["model_name"]: item["filename"] for item in forge.call("/sdapi/v1/sd-vae").body}
    assert listed["a.safetensors"] == str(vaes / "a.safetensors")
    assert listed["sub/b.safetensors"] == str(vaes / "sub" / "b.safetensors")


def test_refresh_finds_a_new_file(forge, vaes, with_a):
    (vaes / "new.safetensors").symlink_to(vaes / "a.safetensors")
    forge.call("/sdapi/v1/refresh-vae", {})
    assert "new.safetensors" in {item["model_name"] for item in forge.call("/sdapi/v1/sd-vae").body}
    assert forge.txt2img(override_settings={"sd_vae": "new.safetensors"}) == with_a
    (vaes / "new.safetensors").unlink()
    forge.call("/sdapi/v1/refresh-vae", {})


def test_the_dropdown_is_in_the_bar_on_the_first_start_only(forge):
    assert option(forge, "quick_setting_list") == ["sd_vae"]


def test_an_option_changes_the_picture_and_none_gives_the_old_one_bit_for_bit(forge, own, with_a):
    assert own != with_a
    forge.set(sd_vae="a.safetensors")
    assert forge.txt2img() == with_a
    assert forge.status()["vae"] == "a.safetensors"
    assert "chosen in the SD VAE dropdown" in forge.status()["reason"]
    forge.set(sd_vae="None")
    assert forge.txt2img() == own
    forge.set(sd_vae="Automatic")
    assert forge.txt2img() == own


def test_the_checkpoint_is_not_loaded_again(forge, own):
    new_lines(forge)
    for name in ("a.safetensors", "b.safetensors", "None"):
        forge.set(sd_vae=name)
        forge.txt2img()
    assert "Loading Model" not in new_lines(forge)


def test_override_settings_hold_for_one_request(forge, own, with_a):
    assert with_a.parameter("VAE") == "a.safetensors"
    assert forge.txt2img() == own
    assert own.parameter("VAE") is None
    assert option(forge, "sd_vae") == "Automatic"


def test_every_layout_gives_the_same_picture(forge, with_a):
    assert forge.txt2img(override_settings={"sd_vae": "diffusers.safetensors"}) == with_a


def test_files_of_one_name_are_told_apart(forge, own):
    pictures = [forge.txt2img(override_settings={"sd_vae": name}) for name in ("b.safetensors", "sub/b.safetensors")]
    assert pictures[0] != pictures[1]
    assert [made.parameter("VAE") for made in pictures] == ["b.safetensors", "sub/b.safetensors"]


@pytest.mark.parametrize("name", ["wrong.safetensors", "cut.safetensors", "poisoned.safetensors", "nowhere"])
def test_a_failed_load_leaves_the_next_picture_bit_equal(forge, own, with_a, name):
    forge.set(sd_vae="a.safetensors")
    new_lines(forge)
    refused = forge.set(sd_vae=name)
    assert refused.status == 422
    assert refused.detail.endswith("The option stays at a.safetensors.")
    assert new_lines(forge).count("VAE Kit:") == 1
    assert option(forge, "sd_vae") == "a.safetensors"
    assert forge.try_txt2img(override_settings={"sd_vae": name}).status == 422
    assert option(forge, "sd_vae") == "a.safetensors"
    assert forge.txt2img() == with_a


def test_a_vae_that_vanished_is_said_once_a_job_and_the_live_one_stays(forge, vaes, own):
    new_lines(forge)
    (vaes / "passing.safetensors").symlink_to(vaes / "b.safetensors")
    forge.call("/sdapi/v1/refresh-vae", {})
    forge.set(sd_vae="passing.safetensors")
    with_b = forge.txt2img()
    (vaes / "passing.safetensors").unlink()
    forge.call("/sdapi/v1/refresh-vae", {})
    assert forge.txt2img() == with_b
    assert new_lines(forge).count("there is no VAE 'passing.safetensors'") <= 2


# -- jobs -------------------------------------------------------------------------------------------------------------


def job(vae: str, hires: str = "Automatic") -> dict[str, object]:
    return {"alwayson_scripts": {"VAE Kit": {"args": [vae, hires]}}}


HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5, "hr_additional_modules": ["Use same choices"]}


def test_a_job_has_a_vae_of_its_own(forge, own, with_a):
    forge.set(sd_vae="b.safetensors")
    made = forge.txt2img(**job("a.safetensors"))
    assert made == with_a
    assert made.parameter("Job VAE") == "a.safetensors"
    assert forge.status()["vae"] == "b.safetensors"
    assert forge.txt2img(**job("None")) == own


def test_a_job_whose_vae_cannot_be_used_is_refused_in_one_line(forge, own):
    new_lines(forge)
    refused = forge.try_txt2img(**job("wrong.safetensors"))
    assert refused.status == 422
    assert "wrong.safetensors" in refused.detail
    assert new_lines(forge).count("VAE Kit:") == 1
    assert forge.txt2img() == own


def test_img2img_encodes_and_decodes_with_the_chosen_vae(forge, own):
    with_own, with_b = forge.img2img(), forge.img2img(override_settings={"sd_vae": "b.safetensors"})
    assert with_own != with_b
    assert forge.img2img(**job("b.safetensors")) == with_b
    assert forge.img2img() == with_own


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_takes_its_own_vae_for_the_second_pass(forge, own, upscaler):
    plain = forge.txt2img(**HIRES, hr_upscaler=upscaler)
    second = forge.txt2img(**HIRES, hr_upscaler=upscaler, **job("Automatic", "b.safetensors"))
    whole = forge.txt2img(**HIRES, hr_upscaler=upscaler, **job("b.safetensors"))
    assert plain.pixels.shape == (128, 128, 3)
    assert plain != second
    assert (second == whole) == (upscaler == "Latent")  # a pixel upscaler decodes and encodes in between
    assert second.parameter("Hires VAE") == "b.safetensors"
    assert forge.txt2img(**HIRES, hr_upscaler=upscaler) == plain


def test_a_hires_pass_with_other_modules_loads_another_model_and_keeps_the_job_s_vae(forge, own):
    """The engine is a new object then; the upscaled picture is encoded before the pass's first hook."""
    loading = {**HIRES, "hr_additional_modules": ["b.safetensors"], "hr_upscaler": "Lanczos"}
    kept = forge.txt2img(**{**HIRES, "hr_upscaler": "Lanczos"}, **job("a.safetensors"))
    assert forge.txt2img(**loading, **job("a.safetensors")) == kept
    assert forge.txt2img() == own


def test_batches_are_made_with_one_vae(forge, own, with_a):
    answer = forge.call(
        "/sdapi/v1/txt2img",
        {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", "cfg_scale": 2}
        | {"n_iter": 2, "batch_size": 2, "override_settings": {"sd_vae": "a.safetensors"}},
    )
    assert answer.status == 200
    assert answer.body["info"].count("VAE: a.safetensors") == 4
    assert forge.txt2img() == own


def test_taesd_decodes_as_without_us(forge, own):
    forge.set(sd_vae_decode_method="TAESD")
    try:
        tiny = forge.txt2img()
        assert forge.txt2img(override_settings={"sd_vae": "a.safetensors"}) == tiny
    finally:
        forge.set(sd_vae_decode_method="Full")
    assert forge.txt2img() == own


def test_seamless_tiling_does_not_disturb(forge, own):
    assert forge.txt2img(tiling=True, override_settings={"sd_vae": "None"}).pixels.shape == own.pixels.shape
    assert forge.txt2img() == own


def test_a_request_that_raises_leaves_nothing_behind(forge, own):
    forge.set(sd_vae="b.safetensors")
    with_b = forge.txt2img()
    failing = forge.try_txt2img(
        **{**HIRES, "hr_upscaler": "no such upscaler"}, override_settings={"sd_vae": "a.safetensors"}
    )
    assert failing.status == 500
    assert option(forge, "sd_vae") == "b.safetensors"
    assert forge.status()["vae"] == "b.safetensors"
    assert forge.txt2img() == with_b
    assert "could not find upscaler" in new_lines(forge)  # the host's own traceback


def test_an_interrupted_job_gives_its_vae_back(forge, own):
    forge.set(sd_vae="b.safetensors")
    answers = []
    slow = {"steps": 60, "width": 256, "height": 256, **job("a.safetensors")}
    running = threading.Thread(target=lambda: answers.append(forge.try_txt2img(**slow)))
    running.start()
    wait_until(lambda: forge.status()["vae"] == "a.safetensors", 60, forge)
    forge.set(sd_vae="None")  # waits for the job's end
    time.sleep(1)
    still = forge.status()["vae"]
    forge.call("/sdapi/v1/interrupt", {})
    running.join()
    assert still == "a.safetensors"
    assert answers[0].status == 200
    assert forge.txt2img() == own


def test_a_checkpoint_that_is_loaded_again_gets_the_vae_again(forge, own, with_a):
    forge.set(sd_vae="a.safetensors")
    forge.set(forge_unet_storage_dtype="float8-e4m3fn", forge_inference_memory=1025)  # reads the checkpoint again
    forge.set(forge_unet_storage_dtype="Automatic", forge_inference_memory=1024)
    assert forge.txt2img() == with_a


# -- beside the program's own way -------------------------------------------------------------------------------------


def test_a_module_is_the_model_s_own_vae(forge, own, with_a):
    forge.set(forge_additional_modules=["a.safetensors"])
    assert forge.txt2img() == with_a
    assert forge.status()["reason"] == (
        "Automatic: a.safetensors is chosen under VAE / Text Encoder, which makes it the checkpoint's own VAE."
    )
    forge.set(sd_vae="b.safetensors")
    over = forge.txt2img()
    assert over.parameter("VAE") == "b.safetensors"
    assert over.parameter("Module 1") == "a"
    assert over != with_a
    forge.set(sd_vae="None")
    assert forge.txt2img() == with_a
    assert forge.status()["reason"].endswith("That is a.safetensors from VAE / Text Encoder.")
    forge.set(sd_vae="Automatic", forge_additional_modules=[])
    assert forge.txt2img() == own


def test_both_ways_at_once_in_one_request(forge, own, with_a):
    both = {"forge_additional_modules": ["b.safetensors"], "sd_vae": "a.safetensors"}
    assert forge.txt2img(override_settings=both) == with_a
    assert forge.txt2img() == own
    assert option(forge, "forge_additional_modules") == []


def test_a_pasted_infotext_sets_sd_vae_and_leaves_the_modules_alone(forge, own, with_a):
    text = with_a.infotext
    assert "VAE: a.safetensors" in text
    # without the two lists Forge fails here on any infotext: isinstance(value, list[str]), api.py:410
    pasted = forge.txt2img(infotext=text, hr_additional_modules=["Use same choices"], styles=[])
    assert pasted == with_a
    assert pasted.parameter("VAE") == "a.safetensors"
    assert pasted.parameter("Module 1") is None
    assert option(forge, "forge_additional_modules") == []
    info = forge.call("/sdapi/v1/png-info", {"image": with_parameters(text)}).body
    assert info["parameters"]["VAE"] == "a.safetensors"
    assert "VAE/TE" not in info["parameters"]


def test_an_unknown_vae_in_an_infotext_is_left_to_the_program(forge, own, with_a):
    text = with_a.infotext.replace("VAE: a.safetensors", "VAE: elsewhere.safetensors")
    info = forge.call("/sdapi/v1/png-info", {"image": with_parameters(text)}).body
    assert info["parameters"]["VAE/TE"] == ["elsewhere.safetensors"]


def with_parameters(text: str) -> str:
    """A PNG with an infotext, base64."""
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


# -- X/Y/Z plot -------------------------------------------------------------------------------------------------------


def xyz(webui: WebUi, label: str, values: list[str]) -> list[str]:
    """The infotexts of a plot along one axis: the grid's, then one per cell."""
    scripts = webui.call("/sdapi/v1/script-info").body
    plot = next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    axis = next(a for a in plot["args"] if a["label"] == "X type")["choices"].index(label)
    nothing = [0, "", []]
    given = [axis, "", values, *nothing, *nothing, False, True, False, False, False, False, False, 0, False]
    answer = webui.try_txt2img(script_name="x/y/z plot", script_args=given)
    assert answer.status == 200, answer.detail
    return json.loads(answer.body["info"])["infotexts"]


@pytest.mark.parametrize("label", ["VAE", "[VAE Kit] VAE for this job"])
def test_an_axis_of_vaes(forge, own, label):
    texts = xyz(forge, label, ["a.safetensors", "None", "b.safetensors"])
    named = [match[1] if (match := re.search(r"\n?(?:^|, )VAE: ([^,]*)", text)) else None for text in texts]
    assert named[1:] == ["a.safetensors", None, "b.safetensors"]
    assert forge.txt2img() == own


# -- the extension's own API and a client library ---------------------------------------------------------------------


def test_the_extension_s_api_lists_inspects_encodes_and_decodes(forge, own):
    listed = {item["name"]: item["problem"] for item in forge.call("/vae-kit/v1/list").body["vaes"]}
    assert listed["cut.safetensors"]
    assert listed["a.safetensors"] == ""
    assert forge.call("/vae-kit/v1/inspect?name=diffusers.safetensors").body["layout"] == "diffusers"
    encoded = forge.call("/vae-kit/v1/encode", {"image": picture(60), "vae": "a.safetensors", "family": "sd1"})
    assert encoded.body["shape"] == [1, 4, 8, 8]
    decoded = forge.call("/vae-kit/v1/decode", {"latent": encoded.body["latent"], "vae": "a.safetensors"})
    assert (decoded.body["height"], decoded.body["width"]) == (60, 60)
    assert forge.txt2img() == own


def test_a_client_library_drives_it(forge, own):
    """webuiapi, as scripts use it."""
    import webuiapi as client_library

    host, port = forge.url.removeprefix("http://").split(":")
    client = client_library.WebUIApi(host=host, port=int(port))
    small = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler"}
    client.set_options({"sd_vae": "a.safetensors"})
    assert "VAE: a.safetensors" in client.txt2img(**small).info["infotexts"][0]
    once = client.txt2img(**small, override_settings={"sd_vae": "b.safetensors"})
    assert "VAE: b.safetensors" in once.info["infotexts"][0]
    assert "sub/b.safetensors" in {item["model_name"] for item in client.get_sd_vae()}


# -- speed ------------------------------------------------------------------------------------------------------------


def test_a_warm_swap_takes_well_under_a_second(forge, own):
    names = ("a.safetensors", "b.safetensors")
    for name in (*names, "None"):
        forge.set(sd_vae=name)
    seconds = []
    for name in names * 4:
        before = time.perf_counter()
        forge.set(sd_vae=name)
        seconds.append(time.perf_counter() - before)
    assert np.median(seconds) < 0.5
