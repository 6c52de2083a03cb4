"""What every web UI must do with this extension, the same rows for all six.

The oracle is the web UI itself: it is started once without the extension, and what it makes then, with its own VAE and
with a file chosen in its own way, is what it must make with the extension.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory_limit
import pytest
from installation import (
    SMALL,
    Answer,
    Made,
    WebUi,
    further_vaes,
    made_from,
    picture,
    running_with,
    wait_until,
    without_traceback,
)
from programs import Program
from tiling_rows import ALWAYS, AUTO, OFF, img2img, progress
from vae_variants import write_diffusers_folder, write_some

A, B, SUB_B = "a.safetensors", "b.safetensors", "sub/b.safetensors"
BAD = ("wrong.safetensors", "cut.safetensors", "poisoned.safetensors", "nowhere.safetensors")
ONE_LEVEL = 1  # of 255: rounding may fall to either side where the order of sums differs
PREVIEW_STEPS = 20
PREVIEW_FILES = ("VAE-approx", "VAE-taesd", "TAESD")  # folders
WIDE = {"width": 128, "height": 96}


@dataclass(frozen=True)
class Plain:
    """What the web UI makes without the extension.

    Attributes:
        own: With the checkpoint's own VAE.
        with_a: With the file `A`, chosen in its own way.
        from_picture: With its own VAE from a picture.
    """

    own: Made
    with_a: Made
    from_picture: Made


def fresh_models(models: Path, target: Path) -> Path:
    """A web UI's models by links, without those for previews."""
    target.mkdir()
    for child in models.iterdir():
        if child.name not in PREVIEW_FILES:
            (target / child.name).symlink_to(child)
    return target


def job(*values: object) -> dict[str, Any]:
    """A request with values for the panel, in its order."""
    return {"alwayson_scripts": {"VAE Kit": {"args": list(values)}}}


def levels(one: Made, other: Made) -> int:
    """The largest difference between two pictures, in levels of 255."""
    assert one.pixels.shape == other.pixels.shape
    return int(abs(one.pixels.astype(int) - other.pixels).max())


def lines_of_ours(text: str) -> list[str]:
    """What the extension said on the console."""
    return re.findall(r"^.*VAE Kit: (.*)$", text, re.MULTILINE)


class EveryProgramRows:
    """Subclasses are tests: each says which program runs."""

    program: Program

    @pytest.fixture(scope="class")
    @classmethod
    def vaes(cls, tmp_path_factory) -> Path:
        weights = cls.program.vae_weights()
        folder = write_some(tmp_path_factory.mktemp("vaes"), weights)
        if cls.program.weights:
            write_diffusers_folder(folder / "a_folder", weights.parent / "config.json", folder / A)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, tmp_path_factory, vaes) -> Plain:
        """Made by a start without the extension."""
        beside = {memory_limit.NAME: memory_limit.SCRIPT}
        data = tmp_path_factory.mktemp("plain")
        flags = further_vaes(cls.program, data, vaes)
        with running_with(cls.program, data, *flags, beside=beside, with_extension=False) as webui:
            assert webui.call("/vae-kit/v1/status").status == 404
            own = webui.txt2img()
            with_a = webui.txt2img(override_settings=cls.program.own_choice(vaes / A))
            assert levels(own, with_a) > ONE_LEVEL, "the web UI chose the file in its own way"
            return Plain(own, with_a, webui.img2img())

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, tmp_path_factory, vaes, plain) -> Iterator[WebUi]:
        """With the extension, and without the files of any preview method, as a fresh installation is."""
        models = fresh_models(cls.program.models(), tmp_path_factory.mktemp("links") / "models")
        data = tmp_path_factory.mktemp("webui")
        flags = [*further_vaes(cls.program, data, vaes), f"{cls.program.models_flag}={models}"]
        beside = {memory_limit.NAME: memory_limit.SCRIPT}
        with running_with(cls.program, data, *flags, beside=beside) as webui:
            yield webui

    @pytest.fixture
    def webui(self, running) -> Iterator[WebUi]:
        """The web UI with its checkpoint's own VAE."""
        with without_traceback(running):
            assert running.set(sd_vae="Automatic").status == 200
            yield running
        running.set(sd_vae="Automatic")

    @pytest.fixture(scope="class")
    @classmethod
    def own(cls, running) -> Made:
        """The picture by the checkpoint's own VAE."""
        assert running.set(sd_vae="Automatic").status == 200
        return running.txt2img()

    def option(self, webui: WebUi, key: str) -> object:
        return webui.call("/sdapi/v1/options").body[key]

    # -- load ------------------------------------------------------------------------------------------------------

    def test_it_loads_without_a_complaint(self, running):
        """The first row: nothing was asked yet."""
        assert "Traceback" not in running.log, running.log
        assert not [line for line in lines_of_ours(running.log) if "has no" in line or "switched off" in line]
        assert running.call("/vae-kit/v1/list").status == 200
        listed = running.call("/sdapi/v1/scripts").body
        for tab in ("txt2img", "img2img"):
            assert "vae kit" in [name.lower() for name in listed[tab]]

    def test_the_status_names_program_checkpoint_and_vae(self, webui, own):
        status = webui.status()
        assert status["host"].startswith(self.program.name)
        assert self.program.checkpoint().stem in status["checkpoint"]
        assert status["family"] == "SD 1.x / 2.x"
        assert status["vae"] == "None"
        assert status["last_decode"]["plan"]
        webui.set(sd_vae=A)
        webui.txt2img()
        status = webui.status()
        assert status["vae"] == A
        assert status["reason"]

    def test_a_picture_is_the_web_uis_own_where_nothing_is_chosen(self, webui, own, plain):
        assert levels(own, plain.own) <= ONE_LEVEL
        assert levels(webui.img2img(), plain.from_picture) <= ONE_LEVEL
        assert own.parameter(self.program.vae_key) is None
        assert own.parameter("Job VAE") is None

    # -- the list --------------------------------------------------------------------------------------------------

    def test_files_are_listed_and_bad_ones_say_why(self, webui):
        listed = {item["name"]: item["problem"] for item in webui.call("/vae-kit/v1/list").body["vaes"]}
        assert listed[A] == listed[B] == listed[SUB_B] == ""
        assert listed["cut.safetensors"]
        names = [item["model_name"] for item in webui.call("/sdapi/v1/sd-vae").body]
        assert A in names

    def test_refresh_finds_a_new_file(self, webui, vaes, plain):
        (vaes / "new.safetensors").symlink_to(vaes / A)
        try:
            assert webui.call("/sdapi/v1/refresh-vae", {}).status in (200, 204)
            made = webui.txt2img(override_settings={"sd_vae": "new.safetensors"})
            assert levels(made, plain.with_a) <= ONE_LEVEL
        finally:
            (vaes / "new.safetensors").unlink()
            webui.call("/sdapi/v1/refresh-vae", {})

    # -- choose ----------------------------------------------------------------------------------------------------

    def test_the_option_makes_the_picture_that_the_web_ui_makes_with_the_file(self, webui, vaes, own, plain):
        assert webui.set(sd_vae=A).status == 200
        made = webui.txt2img()
        assert levels(made, plain.with_a) <= ONE_LEVEL
        assert made.parameter(self.program.vae_key) in (A, Path(A).stem)
        assert made.parameter(f"{self.program.vae_key} hash") == self.hash_of(vaes / A)
        assert webui.set(sd_vae=B).status == 200
        assert levels(webui.txt2img(), plain.with_a) > ONE_LEVEL
        for word in (self.program.none, "Automatic"):
            webui.set(sd_vae=A)
            assert webui.set(sd_vae=word).status == 200
            assert webui.txt2img() == own
            assert webui.status()["vae"] == "None"

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_file_is_refused_in_one_line_and_nothing_changes(self, webui, name):
        assert webui.set(sd_vae=B).status == 200
        expected, before = webui.txt2img(), len(webui.log)
        refused = webui.set(sd_vae=name)
        assert refused.status == 422, refused.body
        assert name.removesuffix(".safetensors") in refused.detail
        assert "\n" not in refused.detail
        assert len(lines_of_ours(webui.log[before:])) == 1
        assert self.option(webui, "sd_vae") == B
        assert webui.txt2img() == expected

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_file_for_one_request_is_refused_and_nothing_changes(self, webui, name):
        assert webui.set(sd_vae=B).status == 200
        expected = webui.txt2img()
        for request in ({"override_settings": {"sd_vae": name}}, job(name)):
            refused = webui.try_txt2img(**request)
            assert refused.status == 422, refused.body
            assert name.removesuffix(".safetensors") in refused.detail
            assert webui.txt2img() == expected
        assert self.option(webui, "sd_vae") == B

    def hash_of(self, file: Path) -> str | None:
        """As the infotext has it; None where the program was told not to hash."""
        return None if "--no-hashing" in self.program.flags else hashlib.sha256(file.read_bytes()).hexdigest()[:10]

    # -- one job ---------------------------------------------------------------------------------------------------

    def test_override_settings_hold_for_one_request(self, webui, own, plain):
        made = webui.txt2img(override_settings={"sd_vae": A})
        assert levels(made, plain.with_a) <= ONE_LEVEL
        assert self.option(webui, "sd_vae") == "Automatic"
        assert webui.txt2img() == own

    def test_a_job_has_a_vae_of_its_own(self, webui, own, plain):
        assert webui.set(sd_vae=B).status == 200
        made = webui.txt2img(**job(A))
        assert levels(made, plain.with_a) <= ONE_LEVEL
        assert made.parameter("Job VAE") == A
        assert webui.status()["vae"] == B
        assert webui.txt2img(**job("None")) == own

    def test_img2img_encodes_and_decodes_with_the_chosen_vae(self, webui):
        with_own, with_b = webui.img2img(), webui.img2img(override_settings={"sd_vae": B})
        assert with_own != with_b
        assert webui.img2img(**job(B)) == with_b
        assert webui.img2img() == with_own

    def test_the_own_vae_is_not_lost_between_txt2img_and_img2img(self, webui, own):
        webui.set(sd_vae=A)
        webui.img2img()
        webui.txt2img()
        webui.img2img()
        webui.set(sd_vae=self.program.none)
        assert webui.status()["vae"] == "None"
        assert webui.txt2img() == own

    def test_the_hires_pass_can_have_its_own(self, webui):
        self.program.skip_where_lacking("hires pass")
        hires = {
            "enable_hr": True,
            "denoising_strength": 0.5,
            "hr_scale": 2,
            "hr_upscaler": "None",
            "hr_second_pass_steps": 1,
        }
        request = {**hires, **self.program.hires}
        plain, whole = webui.txt2img(**request), webui.txt2img(**request, **job(B))
        second = webui.txt2img(**request, **job("Automatic", B))
        assert plain.pixels.shape == (128, 128, 3)
        assert plain != second != whole, "the picture between the passes is decoded by the first"
        assert second.parameter("Hires VAE") == B
        assert webui.txt2img(**request) == plain

    def test_a_batch_is_made_with_one_vae(self, webui, plain):
        answer = webui.call("/sdapi/v1/txt2img", {**SMALL, "batch_size": 2, "override_settings": {"sd_vae": A}})
        assert answer.status == 200, answer.body
        assert len(answer.body["images"]) == 2
        assert levels(made_from(answer.body), plain.with_a) <= 2, "two pictures at once are summed in another order"

    def test_an_interrupted_job_gives_its_vae_back(self, webui):
        webui.set(sd_vae=B)
        expected, answers = webui.txt2img(), list[Answer]()
        slow = {"steps": 150, "width": 256, "height": 256, **job(A)}
        running = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**slow)))
        running.start()
        wait_until(lambda: webui.status()["vae"] == A, 60, webui)
        webui.call("/sdapi/v1/interrupt", {})
        running.join()
        assert answers[0].status == 200
        assert webui.status()["vae"] == B
        assert webui.txt2img() == expected

    # -- tiling ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", ["txt2img", "img2img"])
    def test_a_streamed_picture_is_the_untiled_one(self, webui, case):
        kind, request = ("txt2img", dict(WIDE)) if case == "txt2img" else img2img(96, 0.9, **WIDE)
        assert webui.set(vae_kit_precision_mode="never").status == 200
        before = webui.status()["last_decode"]
        try:
            own = self.made(webui, kind, **request, **OFF)
        finally:
            webui.set(vae_kit_precision_mode="auto")
        assert webui.status()["last_decode"] == before, "our way was not taken"
        streamed = self.made(webui, kind, **request, **ALWAYS)
        status = webui.status()
        done = [status["last_decode"], status["last_encode"]][: 1 + (kind == "img2img")]
        assert all(report["bands"] > 1 and report["plan"].startswith("stream") for report in done), done
        assert levels(own, streamed) <= ONE_LEVEL
        whole = self.made(webui, kind, **request, **AUTO)
        assert webui.status()["last_decode"]["plan"] == "whole"
        assert levels(own, whole) <= ONE_LEVEL

    def made(self, webui: WebUi, kind: str, **request: object) -> Made:
        answer = webui.call(f"/sdapi/v1/{kind}", {**SMALL, **request})
        assert answer.status == 200, answer.body
        return made_from(answer.body)

    def test_the_infotext_says_what_was_done(self, webui, own):
        assert own.parameter("VAE Kit tiling") is None
        assert own.parameter("VAE tiling") is None
        made = webui.txt2img(**WIDE, **ALWAYS)
        assert made.parameter("VAE Kit tiling").startswith("stream in ")
        assert made.parameter("VAE tiling") == "stream"
        assert webui.txt2img() == own

    def test_a_pasted_infotext_makes_the_same_picture(self, webui, own, plain):
        self.program.skip_where_lacking("infotext")
        text = webui.txt2img(override_settings={"sd_vae": A}).infotext
        request = {"infotext": text, "styles": [], **self.program.hires}
        assert levels(webui.txt2img(**request), plain.with_a) <= ONE_LEVEL
        assert webui.txt2img() == own

    # -- previews and TAESD ----------------------------------------------------------------------------------------

    def test_every_preview_is_answered_and_none_fails_a_job(self, webui):
        """Where the file of a method is missing, the linear map is shown: a fresh installation has none of them."""
        self.program.skip_where_lacking("previews")
        request = {"steps": PREVIEW_STEPS, **WIDE}
        plain = webui.txt2img(**request)
        try:
            for method in self.program.preview_methods:
                webui.set(show_progress_type=method, show_progress_every_n_steps=1, vae_kit_preview_share=100)
                made, seen = self.with_polls(webui, **request)
                assert made == plain, method
                assert len(seen) >= 2, method
        finally:
            webui.set(show_progress_type=self.program.preview_methods[-1])

    def with_polls(self, webui: WebUi, **request: object) -> tuple[Made, list[str]]:
        """A picture, and every different preview that polls of /sdapi/v1/progress brought meanwhile."""
        answers: list[Answer] = []
        job = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**request)))
        job.start()
        seen: list[str] = []
        while job.is_alive():
            shown = webui.call("/sdapi/v1/progress").body.get("current_image")
            if shown and shown not in seen:
                seen.append(shown)
            time.sleep(0.05)
        assert answers[0].status == 200, answers[0].body
        return made_from(answers[0].body), seen

    def test_a_method_that_does_not_exist_is_refused(self, webui):
        self.program.skip_where_lacking("methods")
        answer = webui.try_txt2img(override_settings={"sd_vae_decode_method": "Approx NN"})
        assert answer.status == 422, answer.body
        assert "choose Full or TAESD" in answer.detail
        assert webui.try_txt2img().status == 200

    def test_a_decode_that_is_interrupted_gives_a_picture(self, webui):
        self.program.skip_where_lacking("interrupted decode")
        large = {"width": 640, "height": 512, "steps": 1, **ALWAYS}
        answers = list[Answer]()
        running = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**large)))
        running.start()
        wait_until(lambda: "VAE decode" in str(progress(webui)["textinfo"]), 200, webui)
        webui.call("/sdapi/v1/interrupt", {})
        running.join(200)
        assert answers[0].status == 200
        made = made_from(answers[0].body)
        assert made.pixels.shape == (512, 640, 3)
        assert made.pixels.std() > 1, "a picture, not one colour"

    # -- X/Y/Z, the extension's own API, Reload UI --------------------------------------------------------------------

    def test_the_xyz_plot_has_a_vae_per_cell(self, webui, own, plain):
        self.program.skip_where_lacking("x/y/z")
        first, second, third = self.cells(webui, "[VAE Kit] VAE for this job", [A, "None", B])
        assert levels(first, plain.with_a) <= ONE_LEVEL
        assert second == own
        assert [cell.parameter("Job VAE") for cell in (first, second, third)] == [A, "None", B]
        assert webui.txt2img() == own

    def cells(self, webui: WebUi, label: str, values: list[str]) -> list[Made]:
        """The pictures of an X/Y/Z plot along one axis."""
        info = webui.call("/sdapi/v1/script-info").body
        script = next(i for i in info if i["name"] == "x/y/z plot" and not i["is_img2img"])
        lone = "Include Sub Images"  # besides the grid
        nothing = [0, "", []]
        options = [argument["label"] == lone or argument["value"] for argument in script["args"][9:]]
        args = [script["args"][0]["choices"].index(label), ",".join(values), values, *nothing, *nothing, *options]
        answer = webui.try_txt2img(script_name="x/y/z plot", script_args=args)
        assert answer.status == 200, answer.body
        texts = json.loads(answer.body["info"])["infotexts"]
        return [
            made_from({"images": [image], "info": json.dumps({"infotexts": [text]})})
            for image, text in zip(answer.body["images"][1:], texts[1:], strict=True)
        ]

    def test_the_extensions_api_inspects_encodes_and_decodes(self, webui, own):
        assert webui.call("/vae-kit/v1/inspect?name=diffusers.safetensors").body["layout"] == "diffusers"
        encoded = webui.call("/vae-kit/v1/encode", {"image": picture(60), "vae": A, "family": "sd1"})
        assert encoded.status == 200, encoded.body
        assert encoded.body["shape"] == [1, 4, 8, 8]
        decoded = webui.call("/vae-kit/v1/decode", {"latent": encoded.body["latent"], "vae": A})
        assert decoded.status == 200, decoded.body
        assert (decoded.body["height"], decoded.body["width"]) == (60, 60)
        assert webui.call("/vae-kit/v1/encode", {"image": picture(8), "vae": "nowhere"}).status == 404
        assert webui.txt2img() == own

    def test_reload_ui_twice(self, webui, own, plain):
        self.program.skip_where_lacking("reload")
        webui.set(sd_vae=A)
        for _ in range(2):
            reload_ui(webui)
            assert levels(webui.txt2img(), plain.with_a) <= ONE_LEVEL
            assert webui.status()["vae"] == A
            assert webui.set(sd_vae="cut.safetensors").status == 422
            webui.set(sd_vae="None")
            assert webui.txt2img() == own
            webui.set(sd_vae=A)
        assert webui.txt2img(**job(B)).parameter("Job VAE") == B


def reload_ui(webui: WebUi) -> None:
    """What the button does, over gradio's own HTTP interface."""
    config = webui.call("/config").body
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "settings_restart_gradio")
    of_button = ([button, "click"], button)  # gradio 4 and 3
    number = next(i for i, d in enumerate(config["dependencies"]) if any(t in of_button for t in d["targets"]))
    started = webui.log.count("Startup time")
    webui.call("/run/predict", {"fn_index": number, "data": [], "session_hash": "test"})
    wait_until(lambda: webui.log.count("Startup time") > started, 180, webui)
