"""What the guard says and leaves behind: whose fault NaN is, what the user allows, what the next picture knows."""

import copy

import pytest
import torch
from overflow_zoo import CASES, CPU, FULL, HALF, base_vae, case, check, narrow_plan, rescued, rms
from torch import nn
from vae_files import needs_half
from vae_zoo import picture

from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.engine.stream import Plan
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.run.precision import run_guarded
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.weights_key import weights_key
from sd_vae_kit.errors import Interrupted, NanError

pytestmark = needs_half


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_latent_that_is_not_finite_is_the_samplers_fault(bad, word):
    z = picture(4, 16, 12)
    z[0, 1, 5, 6] = bad
    graph = decoder_graph(base_vae().half())
    with pytest.raises(NanError, match=rf"^the latent already contains {word}: the sampler, not the VAE; "):
        run_guarded(graph, z.half(), narrow_plan())
    with pytest.raises(NanError, match=rf"^the latent already contains {word}"):
        run_guarded(decoder_graph(base_vae()), z, narrow_plan(FULL))


def test_a_picture_that_is_not_finite_is_named_when_it_is_encoded():
    image = picture(3, 32, 24)
    image[0, 0, 3, 3] = float("nan")
    with pytest.raises(NanError, match=r"^the picture already contains NaN"):
        run_guarded(encoder_graph(base_vae().half()), image.half(), narrow_plan())


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
@pytest.mark.parametrize(
    ("weight", "value", "message"),
    [
        ("decoder.conv_out.bias", "nan", r"^the weights of my\.safetensors contain NaN in decoder\.conv_out\.bias; "),
        ("decoder.up.0.block.1.norm2.weight", "nan", r"contain NaN in decoder\.up\.0\.block\.1\.norm2\.weight; "),
        ("decoder.mid.attn_1.k.weight", "nan", r"contain NaN in decoder\.mid\.attn_1\.k\.weight; "),
        ("decoder.mid.attn_1.proj_out.bias", "inf", r"contain infinity in decoder\.mid\.attn_1\.proj_out\.bias"),
        ("post_quant_conv.weight", "nan", r"contain NaN in post_quant_conv\.weight; "),
    ],
)
def test_a_weight_that_is_not_finite_is_named(weight, value, message, dtype):
    vae = base_vae().to(dtype)
    with torch.no_grad():
        dict(vae.named_parameters())[weight].view(-1)[-1] = float(value)
    with pytest.raises(NanError, match=message):
        run_guarded(
            decoder_graph(vae), picture(4, 16, 12).to(dtype), narrow_plan(dtype), RunRequest(label="my.safetensors")
        )


def test_one_bad_pixel_of_the_result_is_caught():
    """The result has no norm after it: a weight that only spoils one pixel."""

    class OnePixel(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y.masked_fill(y == y.max(), float("nan")) if x.shape[3] > 20 else y  # not while it is tried out

    vae = base_vae().half()
    graph = decoder_graph(vae)
    z = picture(4, 24, 16).half()
    vae.decoder.conv_out.__class__ = OnePixel
    with torch.no_grad():
        assert int(torch.isnan(vae.decode(z)).sum()) == 1
    with pytest.raises(NanError, match=r"^this VAE gives NaN in decoder\.conv_out even in fp32, though .* are sound"):
        run_guarded(graph, z, Plan("whole", CPU, HALF))


def snapshot(vae):
    """Everything about a module that a call could leave changed."""
    return {
        name: (type(module), dict(vars(module)), [id(p) for p in module.parameters()], module.training)
        for name, module in vae.named_modules()
    }, {name: tensor.clone() for name, tensor in vae.state_dict().items()}


def assert_unchanged(vae, before):
    modules, state = snapshot(vae)
    assert modules.keys() == before[0].keys()
    for name, (kind, attributes, parameters, training) in before[0].items():
        assert (modules[name][0], modules[name][2:]) == (kind, (parameters, training))
        assert {k: v for k, v in modules[name][1].items() if not k.startswith("_")} == {
            k: v for k, v in attributes.items() if not k.startswith("_")
        }
    assert all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in before[1].items()
    )


@pytest.mark.parametrize("place", CASES)
def test_module_and_global_state_are_as_before_after_success_interrupt_and_exception(place):
    found = case(place, "decoder", "middle")
    vae = copy.deepcopy(found.overflowing).half()
    graph, before = decoder_graph(vae), snapshot(vae)
    globals_before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled())
    done = run_guarded(graph, found.x.half(), narrow_plan())
    bands = 0

    def stop(done_bands, total):
        nonlocal bands
        bands = done_bands
        return done_bands < total - 1  # after every repair

    def fail(done_bands, total):
        if done_bands == total - 1:
            raise ValueError("a callback of someone else")

    assert_unchanged(vae, before)
    with pytest.raises(Interrupted):
        run_guarded(graph, found.x.half(), narrow_plan(), RunRequest(on_step=stop))
    assert bands > len(graph.steps)
    assert_unchanged(vae, before)
    with pytest.raises(ValueError, match="someone else"):
        run_guarded(graph, found.x.half(), narrow_plan(), RunRequest(on_step=fail))
    assert_unchanged(vae, before)
    assert globals_before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled())
    again = run_guarded(graph, found.x.half(), narrow_plan())
    assert torch.equal(again.tensor, done.tensor)


def test_what_was_repaired_stays_repaired_when_memory_runs_out_afterwards():
    found = case("stream", "decoder", "middle")
    failures = [MemoryError()]

    def on_step(done_bands, total):
        if done_bands == total // 2 and failures:
            raise failures.pop()

    done, _ = rescued(found, plan=narrow_plan(band_bytes=60_000), on_step=on_step)
    assert len(done.report.failures) == 1
    assert len(done.report.rescued) == 1, "the second plan must start with the exponents of the first"
    check(found, done)


def test_samples_of_a_batch_share_what_was_learnt():
    found = case("inner", "decoder", "first")
    done = run_guarded(found.graph(), found.x.half().repeat(3, 1, 1, 1), narrow_plan())
    assert len(done.report.rescued) == 1
    torch.testing.assert_close(done.tensor[1:], done.tensor[:1].expand(2, -1, -1, -1), rtol=0, atol=0.02)


# what the user allows


def test_never_leaves_the_picture_as_it_comes():
    done, _ = rescued(case("stream", "decoder", "middle"), policy=PrecisionPolicy("never"))
    assert not bool(torch.isfinite(done.tensor).all())
    assert (done.report.steps_shifted, done.report.rescued) == (0, ())


@pytest.mark.parametrize("place", CASES)
def test_always_fp32_computes_everything_in_fp32_from_half_precision_weights(place):
    found = case(place, "decoder", "middle")
    done, _ = rescued(found, policy=PrecisionPolicy("fp32"))
    assert (done.report.dtype, done.report.precision, done.report.steps_recomputed) == ("fp32", "", 0)
    assert done.tensor.dtype == HALF
    reference = found.forward("twin", FULL)
    assert rms(done.tensor.float() - reference) <= 2e-3 * rms(reference)
    assert not done.fixes


@pytest.mark.parametrize("place", CASES)
def test_bf16_only_where_the_user_prefers_it(place):
    found = case(place, "decoder", "middle")
    done, _ = rescued(found, policy=PrecisionPolicy(prefer_bf16=True))
    assert done.report.dtype == "bf16"
    assert done.report.precision == f"all {len(found.graph().steps)} steps were computed in bf16: fp16 overflowed"
    assert done.fixes == PrecisionFixes(whole="bf16")
    assert bool(torch.isfinite(done.tensor).all())
    again, _ = rescued(found, done.fixes, policy=PrecisionPolicy(prefer_bf16=True))
    assert (again.report.dtype, again.report.steps_recomputed) == ("bf16", 0)
    otherwise, _ = rescued(found, done.fixes)
    assert otherwise.report.dtype == "fp16", "what was learnt for bf16 says nothing to those who do not want it"


@pytest.mark.parametrize("place", ["stream", "last norm"])
def test_bf16_is_preferred_to_repairs_that_are_known_from_earlier_pictures_too(place):
    found = case(place, "decoder", "middle")
    repaired, _ = rescued(found)
    assert repaired.report.dtype == "fp16"
    done, _ = rescued(found, repaired.fixes, policy=PrecisionPolicy(prefer_bf16=True))
    assert (done.report.dtype, done.report.steps_recomputed) == ("bf16", 0)
    again, _ = rescued(found, done.fixes)
    assert (again.report.dtype, again.report.steps_recomputed) == ("fp16", 0), "the repairs are not forgotten over it"


def test_without_fp32_a_range_shift_still_helps_and_what_needs_fp32_is_an_error():
    allowed = PrecisionPolicy(may_use_fp32=False)
    done, _ = rescued(case("stream", "decoder", "middle"), policy=allowed)
    assert done.report.steps_shifted > 0
    with pytest.raises(NanError, match=r"overflows fp16 in decoder\.conv_out and computing in fp32 is switched off"):
        rescued(case("last norm", "decoder", "middle"), policy=allowed)


def test_an_input_beyond_half_precision_runs_in_fp32_as_a_whole():
    vae = base_vae()
    x = picture(4, 16, 12) * 1e5
    done = run_guarded(decoder_graph(copy.deepcopy(vae).half()), x, narrow_plan())
    assert (done.report.dtype, done.report.steps_fp32) == ("fp32", 17)
    assert done.report.steps_recomputed >= 1
    assert done.report.precision == "all 17 steps were computed in fp32: fp16 overflowed"
    with torch.no_grad():
        reference = vae.decode(x)
    assert rms(done.tensor.float() - reference) <= 2e-3 * rms(reference)
    again = run_guarded(decoder_graph(copy.deepcopy(vae).half()), x, narrow_plan(), fixes=done.fixes)
    assert again.report.steps_recomputed == 0


def test_sentences_count_steps():
    stream, _ = rescued(case("stream", "decoder", "middle"))
    assert stream.report.precision == "8 of 17 steps were shifted to stay in range"
    assert stream.report.precision_infotext == "fp16, 8 shifted"
    last, _ = rescued(case("last norm", "decoder", "middle"))
    assert last.report.precision == "1 of 17 steps were computed in fp32"
    assert last.report.precision_infotext == "fp16, 1 in fp32"
    sound = run_guarded(decoder_graph(base_vae().half()), picture(4, 16, 12).half(), narrow_plan())
    assert (sound.report.precision, sound.report.precision_infotext, sound.report.dtype) == ("", "", "fp16")
    assert not sound.fixes


# what was learnt


def test_needs_are_kept_by_fingerprint_and_part(tmp_path):
    path = tmp_path / "folder" / "needs.json"
    kept = PrecisionFixesFile(path)
    assert kept.get("a", "decoder") == PrecisionFixes()
    kept.put("a", "decoder", PrecisionFixes({"decoder.conv_in": 4}, {"decoder.conv_out"}))
    kept.put("a", "encoder", PrecisionFixes(whole="fp32"))
    other = PrecisionFixesFile(path)
    assert other.get("a", "decoder") == PrecisionFixes({"decoder.conv_in": 4}, {"decoder.conv_out"})
    assert other.get("a", "encoder") == PrecisionFixes(whole="fp32")
    assert other.get("b", "decoder") == PrecisionFixes()
    other.get("a", "decoder").shifts["x"] = 1
    assert "x" not in other.get("a", "decoder").shifts
    assert (other.forget(), other.count, path.exists()) == (1, 0, False)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 99, "vaes": {}}', '{"format": 1, "vaes": {"a": {"decoder": {}}}}',
     '{"format": 1, "vaes": {"a": {"decoder": {"shifts": {"x": 4000}, "fp32": [], "whole": ""}}}}'],
)  # fmt: skip
def test_a_damaged_file_is_made_anew(tmp_path, text):
    path = tmp_path / "needs.json"
    path.write_text(text)
    kept = PrecisionFixesFile(path)
    assert kept.get("a", "decoder") == PrecisionFixes()
    kept.put("a", "decoder", PrecisionFixes({"x": 8}))
    assert PrecisionFixesFile(path).get("a", "decoder") == PrecisionFixes({"x": 8})


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    kept = PrecisionFixesFile(tmp_path / "file" / "needs.json")
    kept.put("a", "decoder", PrecisionFixes({"x": 8}))
    assert kept.get("a", "decoder") == PrecisionFixes({"x": 8})
    assert "cannot be kept" in caplog.text


def test_the_key_of_live_weights_follows_the_weights_and_not_their_type():
    vae = base_vae()
    graph = decoder_graph(vae)
    key = weights_key(graph)
    assert weights_key(decoder_graph(copy.deepcopy(vae).half())) == key
    assert weights_key(decoder_graph(vae.decoder)) != key, "without post_quant_conv it is another program"
    assert weights_key(encoder_graph(vae)) != key
    with torch.no_grad():
        vae.decoder.conv_out.bias.mul_(2.0)
    assert weights_key(graph) != key
    assert weights_key(decoder_graph(base_vae(seed=1))) != key


def test_weights_made_in_inference_mode_are_guarded_too():
    """Forge's are: they may not be written to, and do not count who did."""
    with torch.inference_mode():
        vae = base_vae()
        with torch.no_grad():
            vae.decoder.conv_out.bias[-1] = float("nan")
    with pytest.raises(NanError, match=r"contain NaN in decoder\.conv_out\.bias"):
        run_guarded(decoder_graph(vae), picture(4, 16, 12), narrow_plan(FULL))
    assert len(weights_key(decoder_graph(vae))) == 32
