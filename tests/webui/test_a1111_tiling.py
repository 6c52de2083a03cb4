"""Tiling in A1111: streamed pictures are the host's own within one level, and the page, the API and memory know of it.

Needs VAE_KIT_A1111_DIR; see installation.py.
"""

import threading

import pytest
from programs import A1111
from tiling_rows import ALWAYS, OFF, TilingRows, img2img, mask, tiling

pytestmark = pytest.mark.webui

HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}
SMALL_HIRES = {"width": 96, "height": 128, **HIRES}
MASK = mask(192, 256, (40, 60, 150, 200))


class TestTilingInA1111(TilingRows):
    program = A1111
    size = {"width": 192, "height": 256}
    large = 1024
    old_size = (576, 640)
    cases = {
        "txt2img": ("txt2img", {}),
        "a size that does not divide evenly": ("txt2img", {"width": 200, "height": 264}),
        "img2img": img2img(256, 0.5),
        "hires, latent": ("txt2img", SMALL_HIRES),
        "hires, pixels": ("txt2img", {**SMALL_HIRES, "hr_upscaler": "Lanczos"}),
        "batch": ("txt2img", {"batch_size": 2, "n_iter": 2}),
        "inpaint": img2img(256, 0.5, mask=MASK, inpainting_fill=1),
        "inpaint, only masked": img2img(256, 0.5, mask=MASK, inpainting_fill=1, inpaint_full_res=True),
        "seamless": ("txt2img", {"tiling": True}),
        "seamless img2img": img2img(256, 0.5, tiling=True),
    }

    def test_the_pictures_own_parameters_make_the_same_picture(self, webui):
        """Not in Forge, whose API fails by itself where a request has an infotext (a check against list[str])."""
        made = self.made(webui, **tiling("stream", 900))
        again = self.made(webui, infotext=made.infotext)
        assert again.parameter("VAE Kit tiling") == made.parameter("VAE Kit tiling")
        assert again == made

    def test_arguments_of_older_requests_keep_their_places(self, webui):
        made = webui.txt2img(alwayson_scripts={"VAE Kit": {"args": ["None"]}})
        assert made.parameter("Job VAE") == "None"
        assert made.parameter("VAE tiling") is None
        both = webui.img2img(alwayson_scripts={"VAE Kit": {"args": ["None", "Automatic"]}})
        assert both.parameter("VAE tiling") is None

    def test_left_to_itself_the_host_runs_out_of_memory(self, webui):
        webui.call("/memory-limit?mb=3", {})
        refused = webui.try_txt2img(**self.size, **OFF)
        assert refused.status == 500
        assert "out of memory" in str(refused.body)
        webui.checked = len(webui.log)  # the host's own traceback, wanted here

    def test_previews_by_the_same_vae_do_not_disturb(self, webui):
        """Live previews with Full decode in another thread while the job samples."""
        expected = self.made(webui, **ALWAYS)
        try:
            webui.set(show_progress_type="Full", show_progress_every_n_steps=1)
            seen, answers = [], []
            job = threading.Thread(target=lambda: answers.append(self.made(webui, steps=30, **ALWAYS)))
            job.start()
            while job.is_alive():
                seen.append(webui.call("/sdapi/v1/progress").body.get("current_image"))
            assert any(seen)
            assert answers[0].parameter("VAE Kit tiling") == expected.parameter("VAE Kit tiling")
        finally:
            webui.set(show_progress_type="Approx NN", show_progress_every_n_steps=10)
        assert self.made(webui, **ALWAYS) == expected
