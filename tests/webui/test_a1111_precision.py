"""The precision guard in A1111: NaN is named, fp32 and bf16 runs, and A1111's own handling of NaN repaired.

fp16 overflow itself is shown in tests/core: torch 2.1 has no fp16 convolution on a CPU.  Needs VAE_KIT_A1111_DIR; see
installation.py.
"""

import nan_maker
import precision_rows as rows
import pytest
from installation import A1111, SMALL, link_extension, picture, start
from vae_variants import smallest_checkpoint

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    data = tmp_path_factory.mktemp("a1111")
    (data / "extensions").mkdir()
    link_extension(data)
    nan_maker.link(data)
    webui = start(A1111, data, f"--ckpt={smallest_checkpoint(A1111.folder())}")
    webui.img2img_request = lambda **more: {
        **SMALL, "init_images": [picture()], "denoising_strength": 0.5, **more,
    }  # fmt: skip
    yield webui
    webui.stop()


@pytest.fixture
def webui(running):
    yield running
    rows.put_all_back(running, "float32")
    running.set(vae_kit_repair_nan_check=True, vae_kit_repair_sticky_fp32=True)


def test_a_bad_weight_is_named_and_the_next_picture_is_as_before(webui):
    rows.a_bad_weight_is_named_and_the_next_picture_is_as_before(webui)


def test_a_bad_weight_of_the_encoder_is_named_too(webui):
    rows.a_bad_weight_of_the_encoder_is_named_too(webui)


def test_a_bad_latent_is_the_samplers_fault(webui):
    rows.a_bad_latent_is_the_samplers_fault(webui)
    webui.set(vae_kit_repair_nan_check=False)
    rows.make(webui, latent="last")
    said = rows.refused(webui)
    assert "NanError" in said, "what the web UI's own check does not see, the guard does"
    assert "the latent already contains NaN: the sampler, not the VAE" in said


def test_the_check_of_one_value_is_repaired(webui):
    webui.set(vae_kit_precision_mode="Never", vae_kit_repair_nan_check=False)
    rows.make(webui, weight="decoder.conv_out.bias")  # of blue only
    assert webui.try_txt2img(**rows.SIZE).status == 200, "the web UI's own check sees only the first value"
    webui.set(vae_kit_repair_nan_check=True)
    assert "A tensor with NaNs was produced in VAE" in rows.refused(webui)


def test_the_switch_to_32_bits_is_undone(webui):
    webui.set(vae_kit_precision_mode="Never", vae_kit_repair_sticky_fp32=False)
    rows.make(webui, dtype="bfloat16", weight="decoder.conv_out.bias")
    assert webui.try_txt2img(**rows.SIZE).status == 200
    assert rows.facts(webui) == {"dtype_vae": "torch.float32", "module": ["torch.float32"]}, "the web UI's own way"
    rows.make(webui, dtype="bfloat16", weight="")
    webui.set(vae_kit_repair_sticky_fp32=True)
    rows.make(webui, weight="decoder.conv_out.bias")
    assert webui.try_txt2img(**rows.SIZE).status == 200
    assert "Web UI will now convert VAE into 32-bit float and retry" in webui.log
    assert rows.facts(webui) == {"dtype_vae": "torch.bfloat16", "module": ["torch.bfloat16"]}


def test_bf16_and_fp32_runs_are_what_the_report_says(webui):
    rows.bf16_and_fp32_runs_are_what_the_report_says(webui, "float32")


def test_never_leaves_the_picture_to_the_web_ui(webui):
    rows.never_leaves_the_picture_to_the_web_ui(webui)
