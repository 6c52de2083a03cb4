"""Tiling in a running web UI, the same rows for every program; the oracle is the program's own, unwatched forward."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import memory_limit
import numpy as np
import pytest
from installation import SMALL, HostRows, Made, WebUi, made_from, picture, wait_until, without_traceback
from PIL import Image, ImageDraw

AUTOMATIC = "Automatic"
Case = tuple[str, dict[str, Any]]


def tiling(mode: str, memory_mb: object = 0, parts: str = "as_set") -> dict[str, Any]:
    return {"alwayson_scripts": {"VAE Kit": {"args": [AUTOMATIC, AUTOMATIC, mode, memory_mb, parts]}}}


def old_tiled_vae(enabled: bool) -> dict[str, Any]:
    """A request to the extension that ours replaces: tiles of 256 and 48, its fast modes on."""
    return {"alwayson_scripts": {"Tiled VAE": {"args": [enabled, 256, 48, True, True, True, False]}}}


OFF, AUTO, ALWAYS, TIGHT = tiling("off"), tiling("auto"), tiling("stream"), tiling("auto", 1)


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> str:
    """White in the box, base64 PNG."""
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).rectangle(box, fill=255)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def img2img(side: int, strength: float, **more: object) -> Case:
    return "img2img", {"init_images": [picture(side)], "denoising_strength": strength, **more}


def progress(webui: WebUi) -> dict[str, Any]:
    return webui.call("/sdapi/v1/progress?skip_current_image=true").body


class TilingRows(HostRows):
    """Subclasses are tests: each says which program runs, at which size, and which pictures are compared.

    Attributes:
        size: Of every request that says nothing else.
        cases: Name -> (kind of request, what it asks for).
        large: Side of a picture whose decode takes long enough to be interrupted.
        starved: What is asked for where memory runs out.
        old_size: A picture that is larger than the old extension's tile of 48.
    """

    beside = {memory_limit.NAME: memory_limit.SCRIPT}
    size: dict[str, Any]
    cases: dict[str, Case]
    large: int
    starved: dict[str, Any] = {}
    old_size: tuple[int, int]

    @pytest.fixture
    def webui(self, running):
        with without_traceback(running):
            yield running
            running.call("/memory-limit?mb=0", {})

    def all_of(self, webui: WebUi, kind: str, **request: object) -> np.ndarray:
        """Every picture of an answer: [n, H, W, 3], int."""
        answer = webui.call(f"/sdapi/v1/{kind}", {**SMALL, **self.size, **request})
        assert answer.status == 200, answer.body
        images = answer.body["images"]
        info = answer.body["info"]
        return np.stack([made_from({"images": [image], "info": info}).pixels for image in images]).astype(int)

    def own_of(self, webui: WebUi, kind: str, **request: object) -> np.ndarray:
        """The program's own: neither in bands nor watched for overflows, which runs the network our way, too."""
        assert webui.set(vae_kit_precision_mode="Never").status == 200
        before = webui.status()["last_decode"]
        try:
            made = self.all_of(webui, kind, **request, **OFF)
        finally:
            webui.set(vae_kit_precision_mode="Automatic")
        assert webui.status()["last_decode"] == before, "our way was not taken"
        return made

    def made(self, webui: WebUi, **request: object) -> Made:
        return webui.txt2img(**{**self.size, **request})

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases)

    def test_a_streamed_picture_is_the_hosts_own(self, webui, case):
        kind, request = self.cases[case]
        own = self.own_of(webui, kind, **request)
        for how in (ALWAYS, TIGHT):
            streamed = self.all_of(webui, kind, **request, **how)
            status = webui.status()
            done = [status["last_decode"], status["last_encode"]][: 1 + (kind == "img2img")]
            assert all(report["bands"] > 1 and report["plan"].startswith("stream") for report in done), done
            difference = abs(streamed - own)
            assert difference.max() <= 1, np.bincount(difference.ravel())
            assert len(streamed) == len(own)
        whole = self.all_of(webui, kind, **request, **AUTO)
        assert webui.status()["last_decode"]["plan"] == "whole"
        assert abs(whole - own).max() <= 1

    def test_the_infotext_says_what_was_done_and_what_was_chosen(self, webui):
        plain = self.made(webui)
        assert plain.parameter("VAE Kit tiling") is None
        assert plain.parameter("VAE tiling") is None
        made = self.made(webui, **tiling("stream", 900))
        assert made.parameter("VAE Kit tiling").startswith("stream in ")
        assert made.parameter("VAE tiling") == "stream"
        assert made.parameter("VAE memory budget") == "900"
        encoded = webui.img2img(**self.size, **tiling("stream", 0, "encode"))
        assert encoded.parameter("VAE Kit tiling of encode").startswith("stream in ")
        assert encoded.parameter("VAE Kit tiling") is None

    def test_the_settings_hold_where_the_job_chooses_nothing(self, webui):
        try:
            assert webui.set(vae_kit_tiling_mode="Always stream", vae_kit_tiling_memory_mb=40).status == 200
            assert self.made(webui).parameter("VAE Kit tiling")
            assert webui.status()["last_decode"]["budget_mb"] == 40
            assert self.made(webui, **AUTO).parameter("VAE tiling") == "auto"
            assert webui.set(vae_kit_tiling_enabled=False).status == 200
            assert self.made(webui).parameter("VAE Kit tiling") is None
            assert self.made(webui, **ALWAYS).parameter("VAE Kit tiling")
        finally:
            webui.set(vae_kit_tiling_mode="Auto", vae_kit_tiling_memory_mb=0, vae_kit_tiling_enabled=True)

    def test_a_value_that_does_not_fit_is_refused(self, webui):
        for bad in (tiling("Sometimes"), tiling("Auto", -5), tiling("Auto", "much")):
            answer = webui.try_txt2img(**bad)
            assert answer.status == 422
            assert "\n" not in answer.detail

    def test_requests_to_the_old_tiled_vae_are_taken(self, webui):
        """Its tile of 48 latent cells (70 with its border) is a budget: smaller pictures run whole, larger ones not."""
        width, height = self.old_size
        large = {"width": width, "height": height}
        own = self.own_of(webui, "txt2img", **large)
        tiled = self.all_of(webui, "txt2img", **large, **old_tiled_vae(True))
        assert webui.status()["last_decode"]["bands"] > 1
        assert abs(tiled - own).max() <= 1
        assert self.made(webui, **old_tiled_vae(True)).parameter("VAE Kit tiling") is None
        assert self.made(webui, **large, **old_tiled_vae(False)).parameter("VAE Kit tiling") is None
        assert self.made(webui).parameter("VAE Kit tiling") is None

    def test_the_xyz_plot_has_mode_and_budget(self, webui):
        whole, streamed = self.cells(webui, "[VAE Kit] Tiled VAE for this job", ["Off", "Always stream"])
        assert whole.parameter("VAE Kit tiling") is None
        assert streamed.parameter("VAE Kit tiling")
        roomy, tight = self.cells(webui, "[VAE Kit] Memory budget for this job", ["4000", "1"])
        assert roomy.parameter("VAE Kit tiling") is None
        assert tight.parameter("VAE Kit tiling").startswith("stream-lean")
        assert abs(tight.pixels.astype(int) - whole.pixels).max() <= 1

    def cells(self, webui: WebUi, label: str, values: list[str]) -> list[Made]:
        """The pictures of an X/Y/Z plot along one axis."""
        info = webui.call("/sdapi/v1/script-info").body
        script = next(i for i in info if i["name"] == "x/y/z plot" and not i["is_img2img"])
        axis = script["args"][0]["choices"].index(label)
        nothing = [0, "", []]
        # legend, lone images, sub-grids, random seeds, ..., margin
        options = [argument["value"] for argument in script["args"][9:]]
        options[1] = True
        args = [axis, ",".join(values), values, *nothing, *nothing, *options]
        request = {**SMALL, **self.size, "script_name": "x/y/z plot", "script_args": args}
        answer = webui.call("/sdapi/v1/txt2img", request)
        assert answer.status == 200, answer.body
        texts = json.loads(answer.body["info"])["infotexts"]
        return [
            made_from({"images": [image], "info": json.dumps({"infotexts": [text]})})
            for image, text in zip(answer.body["images"][1:], texts[1:], strict=True)
        ]

    def test_where_memory_runs_out_ours_goes_down_the_ladder(self, webui):
        """The limit of the test's extension holds for whoever computes: the program's own forward meets it as well."""
        own = self.own_of(webui, "txt2img", **self.starved)
        webui.call("/memory-limit?mb=3", {})
        made = self.all_of(webui, "txt2img", **self.starved, **AUTO)
        assert webui.call("/memory-limit?mb=0", {}).body["hits"] > 0
        assert abs(made - own).max() <= 1
        done = webui.status()["last_decode"]
        assert done["failures"]
        assert done["plan"].startswith("stream")
        said = webui.log[webui.checked :]
        assert "whole ran out of memory" in said
        assert "the result is the same" in said
        assert "retrying with tiled VAE" not in said, "the inexact tiling that Forge falls back to"

    def test_a_decode_that_is_interrupted_gives_the_preview(self, webui):
        """Interrupted while decoding: the picture of the live preview in full size, at once, and no error."""
        large = {"width": self.large, "height": self.large, "steps": 1, **ALWAYS}
        answers = []
        job = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**large)))
        job.start()
        wait_until(lambda: "VAE decode" in str(progress(webui)["textinfo"]), 200, webui)
        webui.call("/sdapi/v1/interrupt", {})
        job.join(200)
        assert answers[0].status == 200
        made = made_from(answers[0].body)
        assert made.pixels.shape == (self.large, self.large, 3)
        assert made.parameter("VAE Kit tiling") is None, "nothing was streamed to its end"
        assert made.pixels.std() > 1, "a picture, not one colour"
        assert not progress(webui)["textinfo"]
        after = self.all_of(webui, "txt2img", **ALWAYS)
        assert after.shape[1:] == (self.size["height"], self.size["width"], 3)
