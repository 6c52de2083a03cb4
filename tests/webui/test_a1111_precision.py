"""The precision guard in A1111: NaN is named, fp32 and bf16 runs, and A1111's own handling of NaN repaired.

fp16 overflow itself is shown in tests/core: torch 2.1 has no fp16 convolution on a CPU.  Needs VAE_KIT_A1111_DIR; see
installation.py.
"""

import pytest
from precision_rows import SIZE, PrecisionRows, facts, make, refused
from programs import A1111

pytestmark = pytest.mark.webui


class TestPrecisionInA1111(PrecisionRows):
    program = A1111
    left_alone = (200, 500)  # its own check decides

    @pytest.fixture(autouse=True)
    def repairs_are_put_back(self, webui):
        yield
        webui.set(vae_kit_repair_nan_check=True, vae_kit_repair_sticky_fp32=True)

    def test_what_the_hosts_own_check_does_not_see_the_guard_does(self, webui):
        webui.set(vae_kit_repair_nan_check=False)
        make(webui, latent="last")
        said = refused(webui)
        assert "NanError" in said, "what the web UI's own check does not see, the guard does"
        assert "the latent already contains NaN: the sampler, not the VAE" in said

    def test_the_check_of_one_value_is_repaired(self, webui):
        webui.set(vae_kit_precision_mode="Never", vae_kit_repair_nan_check=False)
        make(webui, weight="decoder.conv_out.bias")  # of blue only
        assert webui.try_txt2img(**SIZE).status == 200, "the web UI's own check sees only the first value"
        webui.set(vae_kit_repair_nan_check=True)
        assert "A tensor with NaNs was produced in VAE" in refused(webui)

    def test_the_switch_to_32_bits_is_undone(self, webui):
        webui.set(vae_kit_precision_mode="Never", vae_kit_repair_sticky_fp32=False)
        make(webui, dtype="bfloat16", weight="decoder.conv_out.bias")
        assert webui.try_txt2img(**SIZE).status == 200
        assert facts(webui) == {"dtype_vae": "torch.float32", "module": ["torch.float32"]}, "the web UI's own way"
        make(webui, dtype="bfloat16", weight="")
        webui.set(vae_kit_repair_sticky_fp32=True)
        make(webui, weight="decoder.conv_out.bias")
        assert webui.try_txt2img(**SIZE).status == 200
        assert "Web UI will now convert VAE into 32-bit float and retry" in webui.log
        assert facts(webui) == {"dtype_vae": "torch.bfloat16", "module": ["torch.bfloat16"]}
