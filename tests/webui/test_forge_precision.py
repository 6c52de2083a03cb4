"""The precision guard in Forge, which does not look for NaN itself: NaN is named, fp32 and bf16 runs.

Needs VAE_KIT_FORGE_DIR; see installation.py.
"""

import nan_maker
import precision_rows as rows
import pytest
from installation import FORGE, SMALL, link_extension, picture, start
from vae_variants import smallest_checkpoint

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    data = tmp_path_factory.mktemp("forge")
    (data / "extensions").mkdir()
    link_extension(data)
    nan_maker.link(data)
    webui = start(FORGE, data, f"--ckpt={smallest_checkpoint(FORGE.folder())}")
    webui.img2img_request = lambda **more: {
        **SMALL, "init_images": [picture()], "denoising_strength": 0.5, **more,
    }  # fmt: skip
    yield webui
    webui.stop()


@pytest.fixture
def webui(running):
    running.txt2img(**rows.SIZE)  # it loads the model with the first job
    yield running
    rows.put_all_back(running, "float32")


def test_a_bad_weight_is_named_and_the_next_picture_is_as_before(webui):
    rows.a_bad_weight_is_named_and_the_next_picture_is_as_before(webui)


def test_a_bad_weight_of_the_encoder_is_named_too(webui):
    rows.a_bad_weight_of_the_encoder_is_named_too(webui)


def test_a_bad_latent_is_the_samplers_fault(webui):
    rows.a_bad_latent_is_the_samplers_fault(webui)


def test_bf16_and_fp32_runs_are_what_the_report_says(webui):
    rows.bf16_and_fp32_runs_are_what_the_report_says(webui, "float32")


def test_never_leaves_the_picture_to_the_web_ui(webui):
    assert rows.never_leaves_the_picture_to_the_web_ui(webui).status == 200, "black, without a word, as Forge does"
