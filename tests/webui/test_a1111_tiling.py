"""Tiling in A1111: streamed pictures are the host's own within one level, and the page, the API and memory know of it.

Needs VAE_KIT_A1111_DIR; see installation.py.
"""

import base64
import io
import json
import threading

import memory_limit
import numpy as np
import pytest
from installation import A1111, SMALL, link_extension, made_from, picture, start, wait_until
from PIL import Image, ImageDraw
from vae_variants import smallest_checkpoint

pytestmark = pytest.mark.webui

SIZE = {"width": 192, "height": 256}
HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}
AUTOMATIC = "Automatic"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    data = tmp_path_factory.mktemp("a1111")
    (data / "extensions").mkdir()
    link_extension(data)
    memory_limit.link(data)
    webui = start(A1111, data, f"--ckpt={smallest_checkpoint(A1111.folder())}")
    yield webui
    webui.stop()


@pytest.fixture
def webui(running):
    """A test that left a traceback in the log fails."""
    running.checked = len(running.log)
    yield running
    running.call("/memory-limit?mb=0", {})
    assert "Traceback" not in running.log[running.checked :], running.log[running.checked :]


def tiling(mode, memory_mb=0, parts="As in Settings"):
    return {"alwayson_scripts": {"VAE Kit": {"args": [AUTOMATIC, AUTOMATIC, mode, memory_mb, parts]}}}


OFF, AUTO, ALWAYS, TIGHT = tiling("Off"), tiling("Auto"), tiling("Always stream"), tiling("Auto", 1)


def mask():
    image = Image.new("L", (192, 256), 0)
    ImageDraw.Draw(image).rectangle((40, 60, 150, 200), fill=255)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def own_of(webui, kind, **request):
    """The program's own pictures: neither in bands nor watched for overflows, which runs the network our way, too."""
    assert webui.set(vae_kit_precision_mode="Never").status == 200
    before = webui.status()["last_decode"]
    try:
        made = all_of(webui, kind, **request, **OFF)
    finally:
        webui.set(vae_kit_precision_mode="Automatic")
    assert webui.status()["last_decode"] == before, "our way was not taken"
    return made.astype(int)


def all_of(webui, kind, **request):
    """Every picture of an answer: [n, H, W, 3]."""
    answer = webui.call(f"/sdapi/v1/{kind}", {**SMALL, **SIZE, **request})
    assert answer.status == 200, answer.body
    images = answer.body["images"]
    return np.stack([made_from({"images": [image], "info": answer.body["info"]}).pixels for image in images])


def img2img(**more):
    return {"init_images": [picture(256)], "denoising_strength": 0.5, **more}


CASES = {
    "txt2img": ("txt2img", {}),
    "a size that does not divide evenly": ("txt2img", {"width": 200, "height": 264}),
    "img2img": ("img2img", img2img()),
    "hires, latent": ("txt2img", {"width": 96, "height": 128, **HIRES}),
    "hires, pixels": ("txt2img", {"width": 96, "height": 128, **HIRES, "hr_upscaler": "Lanczos"}),
    "batch": ("txt2img", {"batch_size": 2, "n_iter": 2}),
    "inpaint": ("img2img", img2img(mask=mask(), inpainting_fill=1)),
    "inpaint, only masked": ("img2img", img2img(mask=mask(), inpainting_fill=1, inpaint_full_res=True)),
    "seamless": ("txt2img", {"tiling": True}),
    "seamless img2img": ("img2img", img2img(tiling=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_streamed_picture_is_the_hosts_own(webui, case):
    kind, request = CASES[case]
    own = own_of(webui, kind, **request)
    for how in (ALWAYS, TIGHT):
        streamed = all_of(webui, kind, **request, **how).astype(int)
        status = webui.status()
        done = [status["last_decode"], status["last_encode"]][: 1 + (kind == "img2img")]
        assert all(report["bands"] > 1 and report["plan"].startswith("stream") for report in done), done
        assert abs(streamed - own).max() <= 1
        assert len(streamed) == len(own)
    whole = all_of(webui, kind, **request, **AUTO).astype(int)
    assert webui.status()["last_decode"]["plan"] == "whole"
    assert abs(whole - own).max() <= 1


def test_the_infotext_says_what_was_done_and_what_was_chosen(webui):
    plain = webui.txt2img(**SIZE)
    assert plain.parameter("VAE Kit tiling") is None
    assert plain.parameter("VAE tiling") is None
    made = webui.txt2img(**SIZE, **tiling("Always stream", 900))
    assert made.parameter("VAE Kit tiling").startswith("stream in ")
    assert made.parameter("VAE tiling") == "Always stream"
    assert made.parameter("VAE memory budget") == "900"
    encoded = webui.img2img(**SIZE, **tiling("Always stream", 0, "Encode only"))
    assert encoded.parameter("VAE Kit tiling of encode").startswith("stream in ")
    assert encoded.parameter("VAE Kit tiling") is None
    # the picture's own parameters make the same picture
    again = webui.txt2img(**SIZE, infotext=made.infotext)
    assert again.parameter("VAE Kit tiling") == made.parameter("VAE Kit tiling")
    assert again == made


def test_the_settings_hold_where_the_job_chooses_nothing(webui):
    try:
        assert webui.set(vae_kit_tiling_mode="Always stream", vae_kit_tiling_memory_mb=40).status == 200
        assert webui.txt2img(**SIZE).parameter("VAE Kit tiling")
        assert webui.status()["last_decode"]["budget_mb"] == 40
        assert webui.txt2img(**SIZE, **AUTO).parameter("VAE tiling") == "Auto"
        assert webui.set(vae_kit_tiling_enabled=False).status == 200
        assert webui.txt2img(**SIZE).parameter("VAE Kit tiling") is None
        assert webui.txt2img(**SIZE, **ALWAYS).parameter("VAE Kit tiling")
    finally:
        webui.set(vae_kit_tiling_mode="Auto", vae_kit_tiling_memory_mb=0, vae_kit_tiling_enabled=True)


def test_a_value_that_does_not_fit_is_refused(webui):
    for bad in (tiling("Sometimes"), tiling("Auto", -5), tiling("Auto", "much")):
        answer = webui.try_txt2img(**bad)
        assert answer.status == 422
        assert "\n" not in answer.detail


def test_arguments_of_older_requests_keep_their_places(webui):
    made = webui.txt2img(alwayson_scripts={"VAE Kit": {"args": ["None"]}})
    assert made.parameter("Job VAE") == "None"
    assert made.parameter("VAE tiling") is None
    both = webui.img2img(alwayson_scripts={"VAE Kit": {"args": ["None", "Automatic"]}})
    assert both.parameter("VAE tiling") is None


def test_requests_to_the_old_tiled_vae_are_taken(webui):
    """Its tile of 48 latent cells (with its border, 70) is a budget: a smaller picture runs whole, a larger one not."""

    def old(enabled):
        return {"alwayson_scripts": {"Tiled VAE": {"args": [enabled, 256, 48, True, True, True, False]}}}

    own = own_of(webui, "txt2img", width=576, height=640)
    tiled = all_of(webui, "txt2img", width=576, height=640, **old(True)).astype(int)
    assert webui.status()["last_decode"]["bands"] > 1
    assert abs(tiled - own).max() <= 1
    assert webui.txt2img(**SIZE, **old(True)).parameter("VAE Kit tiling") is None
    assert webui.txt2img(width=576, height=640, **old(False)).parameter("VAE Kit tiling") is None
    assert webui.txt2img(**SIZE).parameter("VAE Kit tiling") is None


def test_the_xyz_plot_has_mode_and_budget(webui):
    def cells(label, values):
        info = webui.call("/sdapi/v1/script-info").body
        script = next(i for i in info if i["name"] == "x/y/z plot" and not i["is_img2img"])
        args = [0, "", [], 0, "", [], 0, "", [], True, True, False, False, False, False, False, 0, False]
        args[0], args[1] = script["args"][0]["choices"].index(label), ",".join(values)
        args[2] = list(values)
        answer = webui.call("/sdapi/v1/txt2img", {**SMALL, **SIZE, "script_name": "x/y/z plot", "script_args": args})
        assert answer.status == 200, answer.body
        texts = json.loads(answer.body["info"])["infotexts"]
        return [
            made_from({"images": [image], "info": json.dumps({"infotexts": [text]})})
            for image, text in zip(answer.body["images"][1:], texts[1:], strict=True)
        ]

    whole, streamed = cells("[VAE Kit] Tiled VAE for this job", ["Off", "Always stream"])
    assert whole.parameter("VAE Kit tiling") is None
    assert streamed.parameter("VAE Kit tiling")
    roomy, tight = cells("[VAE Kit] Memory budget for this job", ["4000", "1"])
    assert roomy.parameter("VAE Kit tiling") is None
    assert tight.parameter("VAE Kit tiling").startswith("stream-lean")
    assert abs(tight.pixels.astype(int) - whole.pixels).max() <= 1


def test_where_memory_runs_out_the_picture_comes_all_the_same(webui):
    """The limit of the test extension: the host's own forward fails, ours goes down the ladder."""
    own = own_of(webui, "txt2img")
    webui.call("/memory-limit?mb=3", {})
    refused = webui.try_txt2img(**SIZE, **OFF)
    assert refused.status == 500
    assert "out of memory" in str(refused.body)
    webui.checked = len(webui.log)  # the host's own traceback, wanted here
    assert webui.call("/memory-limit?mb=3", {}).body["hits"] > 0
    made = all_of(webui, "txt2img", **AUTO).astype(int)
    assert webui.call("/memory-limit?mb=0", {}).body["hits"] > 0
    assert abs(made - own).max() <= 1
    done = webui.status()["last_decode"]
    assert done["failures"]
    assert done["plan"].startswith("stream")
    assert "whole ran out of memory" in webui.log[webui.checked :]
    assert "the result is the same" in webui.log[webui.checked :]


def test_a_decode_that_is_interrupted_gives_the_preview(webui):
    """Interrupted while decoding: the picture of the live preview in full size, at once, and no error."""
    large = {"width": 1024, "height": 1024, "steps": 1, **ALWAYS}
    answers = []
    running = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**large)))
    running.start()
    wait_until(lambda: "VAE decode" in str(progress(webui)["textinfo"]), 120, webui)
    webui.call("/sdapi/v1/interrupt", {})
    running.join(120)
    assert answers[0].status == 200
    assert webui.status()["last_decode"]["bands"] != 0
    made = made_from(answers[0].body)
    assert made.pixels.shape == (1024, 1024, 3)
    assert made.parameter("VAE Kit tiling") is None, "nothing was streamed to its end"
    assert made.pixels.std() > 1, "a picture, not one colour"
    assert not progress(webui)["textinfo"]
    assert all_of(webui, "txt2img", **ALWAYS).shape[1:] == (256, 192, 3)


def progress(webui):
    return webui.call("/sdapi/v1/progress?skip_current_image=true").body


def test_previews_by_the_same_vae_do_not_disturb(webui):
    """Live previews with Full decode in another thread while the job samples."""
    expected = webui.txt2img(**SIZE, **ALWAYS)
    try:
        webui.set(show_progress_type="Full", show_progress_every_n_steps=1)
        seen, answers = [], []
        running = threading.Thread(target=lambda: answers.append(webui.txt2img(**SIZE, steps=30, **ALWAYS)))
        running.start()
        while running.is_alive():
            seen.append(webui.call("/sdapi/v1/progress").body.get("current_image"))
        assert any(seen)
        assert answers[0].parameter("VAE Kit tiling") == expected.parameter("VAE Kit tiling")
    finally:
        webui.set(show_progress_type="Approx NN", show_progress_every_n_steps=10)
    assert webui.txt2img(**SIZE, **ALWAYS) == expected
