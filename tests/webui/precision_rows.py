"""What holds in every web UI where a VAE or a latent is not finite, or is computed in another type."""

from __future__ import annotations

import json

import nan_maker
import numpy as np
import pytest
from installation import SMALL, HostRows, picture

SIZE = {"width": 128, "height": 96}


def make(webui, **what):
    """Ask the test's own extension for a change; what the web UI's globals are then."""
    query = "&".join(f"{name}={value}" for name, value in what.items())
    answer = webui.call(f"/nan-maker?{query}", {})
    assert answer.status == 200, answer.body
    return answer.body


def facts(webui):
    return webui.call("/nan-maker").body


def refused(webui, **request):
    """A request that ends in an error: everything its answer says."""
    answer = webui.try_txt2img(**SIZE, **request)
    assert answer.status != 200, "a picture was made"
    return json.dumps(answer.body)


def difference(a, b):
    return float(np.abs(a.pixels.astype(int) - b.pixels.astype(int)).mean())


class PrecisionRows(HostRows):
    """Subclasses are tests: each says which program runs.

    Attributes:
        left_alone: How the program may answer where a VAE gives NaN and ours does not look.
    """

    beside = {nan_maker.NAME: nan_maker.SCRIPT}
    left_alone: tuple[int, ...]

    @pytest.fixture
    def webui(self, running):
        running.txt2img(**SIZE)  # Forge loads the model with the first job
        yield running
        make(running, weight="", latent="", dtype="float32")
        running.set(vae_kit_precision_mode="Automatic", vae_kit_precision_prefer_bf16=False)

    def test_a_bad_weight_is_named_and_the_next_picture_is_as_before(self, webui):
        before, globals_before = webui.txt2img(**SIZE), facts(webui)
        for weight in ("decoder.conv_out.bias", "decoder.mid.block_1.norm2.weight", "post_quant_conv.bias"):
            make(webui, weight=weight)
            said = refused(webui)
            assert f"contain NaN in {weight}; download it again or choose another VAE" in said, said
            make(webui, weight="")
        assert facts(webui) == globals_before
        assert webui.txt2img(**SIZE) == before

    def test_a_bad_weight_of_the_encoder_is_named_too(self, webui):
        for weight in ("encoder.conv_out.bias", "quant_conv.bias"):
            make(webui, weight=weight)
            answer = webui.call("/sdapi/v1/img2img", {**SMALL, **SIZE, "init_images": [picture()]})
            assert answer.status != 200
            assert f"contain NaN in {weight}; " in json.dumps(answer.body), answer.body
            make(webui, weight="")

    def test_a_bad_latent_is_the_samplers_fault(self, webui):
        for place in ("first", "last"):
            make(webui, latent=place)
            said = refused(webui)
            assert "the latent already contains NaN: the sampler, not the VAE" in said, said
        make(webui, latent="")
        assert webui.txt2img(**SIZE).pixels.std() > 1

    def test_bf16_and_fp32_runs_are_what_the_report_says(self, webui):
        exact = webui.txt2img(**SIZE)
        assert webui.status()["last_decode"]["dtype"] == "fp32"
        make(webui, dtype="bfloat16")
        before = facts(webui)
        assert before["module"] == ["torch.bfloat16"]
        rough = webui.txt2img(**SIZE)
        assert webui.status()["last_decode"]["dtype"] == "bf16"
        assert 0 < difference(rough, exact) < 12
        webui.set(vae_kit_precision_mode="Always fp32")
        fine = webui.txt2img(**SIZE)
        assert webui.status()["last_decode"]["dtype"] == "fp32"
        assert difference(fine, exact) < difference(rough, exact), "only the weights are rounded now, not the values"
        assert facts(webui) == before, "the module stays as it was"
        webui.set(vae_kit_precision_mode="Automatic")
        make(webui, dtype="float32")
        assert difference(webui.txt2img(**SIZE), exact) < 12  # weights were rounded to bf16 for good

    def test_never_leaves_the_picture_to_the_web_ui(self, webui):
        webui.set(vae_kit_precision_mode="Never")
        make(webui, weight="decoder.conv_out.bias")
        answer = webui.try_txt2img(**SIZE)
        assert "contain NaN" not in json.dumps(answer.body if answer.status != 200 else "")
        assert answer.status in self.left_alone
