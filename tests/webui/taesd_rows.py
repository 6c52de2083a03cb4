"""TAESD and live previews in a running web UI, the same rows for every program; real weights, so results are known."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from installation import SMALL, Answer, Made, WebUi, made_from, running_with, without_traceback
from PIL import Image
from programs import Program

HALVES = ("taesd_decoder.safetensors", "taesd_encoder.safetensors")
TAESD_BOTH = {"sd_vae_encode_method": "TAESD", "sd_vae_decode_method": "TAESD"}
FULL_BOTH = {"sd_vae_encode_method": "Full", "sd_vae_decode_method": "Full"}
OWN_NAMES = ("Downloading TAESD", "Downloading VAEApprox")  # what the program prints before it goes to the network


def models_folder(models: Path, target: Path, weights: Path) -> Path:
    """A web UI's models by links, but for VAE-taesd, which holds the real TAESD of SD 1 and nothing else."""
    target.mkdir()
    for child in models.iterdir():
        if child.name != "VAE-taesd":
            (target / child.name).symlink_to(child)
    (target / "VAE-taesd").mkdir()
    for name in HALVES:
        shutil.copy(weights / name, target / "VAE-taesd" / name)
        (target / "VAE-taesd" / name).chmod(0o644)
    return target


def photograph(side: int = 128) -> Image.Image:
    """Something with broad shapes and soft edges."""
    rows, columns = np.mgrid[:side, :side] / side
    pixels = np.stack([0.3 + 0.5 * rows, 0.5 + 0.3 * np.sin(6 * columns), 0.8 - 0.5 * columns * rows], -1)
    disc = (rows - 0.55) ** 2 + (columns - 0.4) ** 2 < 0.06
    pixels[disc] = pixels[disc] * 0.3 + np.array([0.6, 0.25, 0.1])
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def as_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def through_and_back(webui: WebUi, image: Image.Image, **options: object) -> Made:
    """The picture through encode and decode; at denoising 0 hardly anything happens between."""
    request = {
        "init_images": [as_base64(image)], "denoising_strength": 0, "steps": 20, "width": image.width,
        "height": image.height, "override_settings": options, "seed": 1, "sampler_name": "Euler", "cfg_scale": 1,
    }  # fmt: skip
    answer = webui.call("/sdapi/v1/img2img", request)
    assert answer.status == 200, answer.body
    return made_from(answer.body)


def with_polls(webui: WebUi, steps: int, **request: object) -> tuple[Made, list[tuple[int, bytes]]]:
    """A picture, and (step, preview) of every different preview that polls of /sdapi/v1/progress brought meanwhile."""
    answers: list[Answer] = []
    body = {**SMALL, "steps": steps, "width": 128, "height": 128, **request}
    job = threading.Thread(target=lambda: answers.append(webui.call("/sdapi/v1/txt2img", body)))
    job.start()
    seen: list[tuple[int, bytes]] = []
    while job.is_alive():
        progress = webui.call("/sdapi/v1/progress").body
        shown = progress.get("current_image")
        if shown and (not seen or seen[-1][1] != base64.b64decode(shown)):
            step = progress["state"]["sampling_step"]
            if seen and seen[-1][0] > step == 0:
                step = steps  # sampling is over: the program counts from 0 again while it decodes
            seen.append((step, base64.b64decode(shown)))
        time.sleep(0.02)
    assert answers[0].status == 200, answers[0].body
    return made_from(answers[0].body), seen


def pixels_of(preview: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(preview)).convert("RGB"))


def parameters(webui: WebUi, **request: object) -> str:
    """The infotext of a request."""
    answer = webui.call("/sdapi/v1/txt2img", {**SMALL, **request})
    assert answer.status == 200, answer.body
    return json.loads(answer.body["info"])["infotexts"][0]


class TaesdRows:
    """Subclasses are tests: each says which program runs, and how many steps are long enough for some polls.

    Attributes:
        hires: What the program wants of a request with hires fix, beside A1111's.
    """

    program: Program
    steps: int
    hires: dict[str, object] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, tmp_path_factory, weights_dir):
        return models_folder(cls.program.models(), tmp_path_factory.mktemp("links") / "models", weights_dir)

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, tmp_path_factory, models):
        with running_with(
            cls.program, tmp_path_factory.mktemp("webui"), f"{cls.program.models_flag}={models}"
        ) as webui:
            yield webui

    @pytest.fixture
    def webui(self, running):
        with without_traceback(running):
            yield running
            assert not [name for name in OWN_NAMES if name in running.log]

    def test_a_picture_comes_back_through_taesd_and_the_infotext_says_so(self, webui):
        """Real TAESD both ways brings the picture back; the program's tiny random VAE does not, nor do mixed ways."""
        image = photograph()
        tiny = through_and_back(webui, image, **TAESD_BOTH)
        full = through_and_back(webui, image, **FULL_BOTH)
        decoded = through_and_back(webui, image, sd_vae_encode_method="Full", sd_vae_decode_method="TAESD")
        encoded = through_and_back(webui, image, sd_vae_encode_method="TAESD", sd_vae_decode_method="Full")
        scores = [psnr(made.pixels, np.asarray(image)) for made in (tiny, full, decoded, encoded)]
        assert scores[0] > 24, scores
        assert max(scores[1:]) < 16, scores
        pictures = (tiny, full, decoded, encoded)
        types = [(made.parameter("VAE Encoder"), made.parameter("VAE Decoder")) for made in pictures]
        assert types == [("TAESD", "TAESD"), (None, None), (None, "TAESD"), ("TAESD", None)]

    def test_hires_fix_names_taesd(self, webui):
        """The program itself forgets it with hires fix."""
        hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent", **self.hires}
        text = parameters(webui, override_settings={"sd_vae_decode_method": "TAESD"}, **hires)
        assert "VAE Decoder: TAESD" in text
        assert "VAE Decoder" not in parameters(webui, **hires)

    @pytest.mark.parametrize("method", ["TAESD", "Approx cheap", "Approx NN"])
    def test_previews_change_over_the_steps_and_do_not_change_the_picture(self, webui, method):
        """Pictures that change over the steps, and the result is bit-equal to one without previews."""
        webui.set(show_progress_type=method, show_progress_every_n_steps=1, vae_kit_preview_share=100)
        made, seen = with_polls(webui, self.steps)
        assert len(seen) >= 3, [step for step, _ in seen]
        shapes = {pixels_of(preview).shape for _, preview in seen}
        assert len(shapes) == 1
        assert method == "Approx NN" or shapes == {(128, 128, 3)}  # the program's own network makes small pictures
        reached = [step for step, _ in seen]
        assert reached == sorted(reached)
        assert not np.array_equal(pixels_of(seen[0][1]), pixels_of(seen[-1][1]))
        webui.set(live_previews_enable=False)
        plain, none = with_polls(webui, self.steps)
        webui.set(live_previews_enable=True)
        assert none == []
        assert plain == made

    def test_the_preview_shows_the_denoised_prediction(self, webui):
        """The preview is of the denoised prediction: the last one is nearly the picture that TAESD makes in the end."""
        webui.set(show_progress_type="TAESD", show_progress_every_n_steps=1, vae_kit_preview_share=100)
        made, seen = with_polls(webui, self.steps, override_settings={"sd_vae_decode_method": "TAESD"})
        late = [preview for step, preview in seen if step >= 0.8 * self.steps]
        assert late, [step for step, _ in seen]
        # noise of the size of the latent itself would leave nothing of the picture: below 15 dB
        assert max(psnr(pixels_of(preview), made.pixels) for preview in late) > 22

    def test_without_files_nothing_stops_and_one_line_says_what_to_install(self, webui, models):
        """Sampling goes on with the linear preview, the VAE itself decodes, one line says so, nobody is contacted."""
        kept = models.with_name("kept")
        (models / "VAE-taesd").rename(kept)
        (models / "VAE-taesd").mkdir()
        before = len(webui.log)
        try:
            webui.set(show_progress_type="TAESD", show_progress_every_n_steps=1, vae_kit_preview_share=100)
            made, seen = with_polls(webui, self.steps, override_settings={"sd_vae_decode_method": "TAESD"})
            full, _ = with_polls(webui, self.steps)
        finally:
            (models / "VAE-taesd").rmdir()
            kept.rename(models / "VAE-taesd")
        assert made == full
        assert "VAE Decoder" not in made.infotext
        assert len(seen) >= 2
        said = webui.log[before:]
        assert said.count("The VAE itself is used.") == 1
        assert said.count("The linear preview is shown.") == 1
        assert 'download "TAESD decoder"' in said
        assert not [name for name in OWN_NAMES if name in said]

    def test_a_method_that_does_not_exist_is_refused(self, webui):
        """The program decodes Approx NN to a quarter of the size, and writes any word into the infotext."""
        answer = webui.try_txt2img(override_settings={"sd_vae_decode_method": "Approx NN"})
        assert answer.status == 422, answer.body
        assert "choose Full or TAESD" in answer.detail
        assert webui.try_txt2img().status == 200
