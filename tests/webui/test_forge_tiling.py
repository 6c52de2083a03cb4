"""Tiling in Forge: streamed pictures are the host's own within one level; its own inexact tiling is the last resort.

Needs VAE_KIT_FORGE_DIR; see installation.py.
"""

import base64
import io
import threading

import memory_limit
import numpy as np
import pytest
from installation import FORGE, SMALL, link_extension, made_from, picture, start, wait_until
from PIL import Image, ImageDraw
from vae_variants import smallest_checkpoint

pytestmark = pytest.mark.webui

SIZE = {"width": 192, "height": 128, "steps": 1}
HIRES = {
    "enable_hr": True,
    "denoising_strength": 0.6,
    "hr_scale": 2,
    "hr_additional_modules": ["Use same choices"],
    "width": 96,
    "height": 64,
}
AUTOMATIC = "Automatic"
NEVER_OOM = "Never OOM Integrated"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    data = tmp_path_factory.mktemp("forge")
    (data / "extensions").mkdir()
    link_extension(data)
    memory_limit.link(data)
    webui = start(FORGE, data, f"--ckpt={smallest_checkpoint(FORGE.folder())}")
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
    return {"init_images": [picture(192)], "denoising_strength": 0.9, **more}


def mask():
    image = Image.new("L", (192, 128), 0)
    ImageDraw.Draw(image).rectangle((40, 30, 150, 100), fill=255)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


CASES = {
    "txt2img": ("txt2img", {}),
    "img2img": ("img2img", img2img()),
    "hires, latent": ("txt2img", {**HIRES, "hr_upscaler": "Latent"}),
    "hires, pixels": ("txt2img", {**HIRES, "hr_upscaler": "Lanczos"}),
    "batch": ("txt2img", {"batch_size": 2}),
    "inpaint": ("img2img", img2img(mask=mask(), inpainting_fill=1)),
    "seamless": ("txt2img", {"tiling": True}),
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
        difference = abs(streamed - own)
        assert difference.max() <= 1, np.bincount(difference.ravel())
        assert len(streamed) == len(own)


def test_the_infotext_says_what_was_done_and_what_was_chosen(webui):
    assert webui.txt2img(**SIZE).parameter("VAE Kit tiling") is None
    made = webui.txt2img(**SIZE, **tiling("Always stream", 900))
    assert made.parameter("VAE Kit tiling").startswith("stream in ")
    assert made.parameter("VAE tiling") == "Always stream"
    assert made.parameter("VAE memory budget") == "900"


def test_the_hosts_own_tiling_is_stepped_aside_for(webui):
    """Never OOM tiles in three averaged passes; ours says so once and leaves the calls to it."""
    own = own_of(webui, "txt2img")
    args = [False, True]  # UNet always offloaded, VAE always tiled
    both = {"alwayson_scripts": {**ALWAYS["alwayson_scripts"], NEVER_OOM: {"args": args}}}
    for _ in range(2):
        assert webui.txt2img(**{**SIZE, "width": 640}, **both).parameter("VAE Kit tiling") is None
    assert webui.log[webui.checked :].count("Never OOM tiles the VAE") == 1
    off = {"alwayson_scripts": {**ALWAYS["alwayson_scripts"], NEVER_OOM: {"args": [False, False]}}}
    streamed = all_of(webui, "txt2img", **off).astype(int)
    assert webui.status()["last_decode"]["bands"] > 1
    assert abs(streamed - own).max() <= 1


def test_where_memory_runs_out_ours_goes_down_the_ladder_instead_of_tiling_inexactly(webui):
    """The limit of the test extension: left to itself, the host falls back to its three averaged passes."""
    own = own_of(webui, "txt2img", width=320)
    webui.call("/memory-limit?mb=3", {})
    made = all_of(webui, "txt2img", width=320, **AUTO).astype(int)
    assert webui.call("/memory-limit?mb=0", {}).body["hits"] > 0
    assert "retrying with tiled VAE" not in webui.log[webui.checked :]
    assert abs(made - own).max() <= 1
    done = webui.status()["last_decode"]
    assert done["failures"]
    assert done["plan"].startswith("stream")
    assert "whole ran out of memory" in webui.log[webui.checked :]


def test_requests_to_the_old_tiled_vae_are_taken(webui):
    old = {"alwayson_scripts": {"Tiled VAE": {"args": [True, 256, 48, True, True, True, False]}}}
    assert webui.txt2img(**SIZE, **old).parameter("VAE Kit tiling") is None
    assert webui.txt2img(width=704, height=576, steps=1, **old).parameter("VAE Kit tiling").startswith("stream")


def test_a_decode_that_is_interrupted_gives_the_preview(webui):
    large = {"width": 640, "height": 640, "steps": 1, **ALWAYS}
    answers = []
    running = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**large)))
    running.start()
    wait_until(lambda: "VAE decode" in str(progress(webui)["textinfo"]), 200, webui)
    webui.call("/sdapi/v1/interrupt", {})
    running.join(200)
    assert answers[0].status == 200
    made = made_from(answers[0].body)
    assert made.pixels.shape == (640, 640, 3)
    assert made.parameter("VAE Kit tiling") is None, "nothing was streamed to its end"
    assert made.pixels.std() > 1, "a picture, not one colour"
    assert not progress(webui)["textinfo"]


def progress(webui):
    return webui.call("/sdapi/v1/progress?skip_current_image=true").body
