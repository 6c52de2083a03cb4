"""The runner: right pictures by every plan, a report of what was done, and a clear word where it steps aside."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from vae_files import kl_config, picture, randomised

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.run.forecast import forecast
from sd_vae_kit.core.run.planning import graph_of, planned
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.errors import Interrupted, NoMemoryError, StepAsideError
from sd_vae_kit.hosts.multidiffusion_compat import DEFAULTS, TileSizes, tile_sizes
from sd_vae_kit.settings.job import AS_SET, JobTiling
from sd_vae_kit.settings.sections import STREAM, TilingSettings

CPU, FP32 = torch.device("cpu"), torch.float32
AUTO, ALWAYS, OFF = TilingSettings(), TilingSettings(mode=STREAM), TilingSettings(enabled=False)
TIGHT = TilingSettings(memory_mb=1)


@pytest.fixture
def vae():
    return randomised(AutoencoderKL(kl_config())).requires_grad_(False)


def run(runner, network, part, x, tiling, **more):
    return runner.run(network, part, x, RunRequest(tiling, dtype=FP32, **more)).tensor


@pytest.mark.parametrize(("tiling", "is_streamed"), [(AUTO, False), (OFF, False), (ALWAYS, True), (TIGHT, True)])
def test_both_halves_give_what_their_own_forward_gives(vae, tiling, is_streamed):
    runner = Runner()
    z, image = torch.randn(2, 4, 40, 24), picture(80, 48)
    assert_close(run(runner, vae, "decoder", z, tiling), vae.decode(z), atol=1e-5, rtol=0)
    assert_close(run(runner, vae, "encoder", image, tiling), vae.encode(image), atol=1e-5, rtol=0)
    for part in ("encoder", "decoder"):
        report = runner.last[part]
        assert report.is_streamed is is_streamed
        assert (report.bands > 1) is is_streamed
        assert (report.dtype, report.failures, report.steps_shifted) == ("fp32", (), 0)


def test_a_half_alone_is_run_without_the_convolution_beside_it(vae):
    z = torch.randn(1, 4, 24, 16)
    assert_close(run(Runner(), vae.decoder, "decoder", z, ALWAYS), vae.decoder(z), atol=1e-5, rtol=0)


def test_a_tiny_vae_runs_by_the_same_way():
    tiny = randomised(TinyAutoencoder(TinyConfig(width=16))).requires_grad_(False)
    latent, runner = torch.randn(1, 4, 24, 16), Runner()
    assert_close(run(runner, tiny, "decoder", latent, TIGHT), tiny.decode(latent), atol=1e-5, rtol=0)
    assert runner.last["decoder"].bands > 1


def test_the_input_may_be_an_inference_tensor_and_autocast_active_outside(vae):
    with torch.inference_mode():
        z = torch.randn(1, 4, 24, 16)
    before = z.clone()
    with torch.autocast("cpu", torch.bfloat16):
        result = run(Runner(), vae, "decoder", z, ALWAYS)
    assert result.dtype == FP32
    assert_close(result, vae.decode(before), atol=1e-5, rtol=0)
    assert torch.equal(z, before)


def test_progress_counts_bands_and_stops_when_told(vae):
    seen, z, runner = [], torch.randn(1, 4, 24, 16), Runner()
    run(runner, vae, "decoder", z, ALWAYS, on_step=lambda done, total: seen.append((done, total)) is None)
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
    kept = runner.last["decoder"]
    with pytest.raises(Interrupted):
        run(runner, vae, "decoder", z, ALWAYS, on_step=lambda done, total: done < 3)
    assert runner.last["decoder"] is kept, "what was stopped is not what was done"


def test_running_out_of_memory_goes_on_with_a_smaller_plan_and_says_so(vae):
    z, runner = torch.randn(1, 4, 128, 96), Runner()
    expected = vae.decode(z)
    graph = graph_of(vae, "decoder")
    assert planned(graph, tuple(z.shape), FP32, CPU, AUTO).kind == "whole"
    calls = itertools.count()

    def out_of_memory(done, total):
        if next(calls) == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
        return True

    result = run(runner, vae, "decoder", z, AUTO, on_step=out_of_memory)
    assert_close(result, expected, atol=1e-5, rtol=0)
    assert runner.last["decoder"].plan.startswith("stream")
    assert runner.last["decoder"].failures == (
        "whole ran out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.)",
    )


def test_other_models_are_moved_away_before_a_smaller_plan_is_tried(vae):
    z, runner, asked = torch.randn(1, 4, 24, 16), Runner(), []
    calls = itertools.count()

    def on_step(done, total):
        if next(calls) == 0:
            raise MemoryError
        return True

    run(runner, vae, "decoder", z, AUTO, on_step=on_step, make_room=lambda needed: asked.append(needed) is None)
    assert len(asked) == 1
    assert asked[0] > 0
    assert (runner.last["decoder"].plan, len(runner.last["decoder"].failures)) == ("whole", 1)


def test_room_is_asked_for_where_even_the_smallest_plan_does_not_fit(vae):
    asked = []

    def make_room(needed):
        asked.append(needed)
        return False

    run(Runner(), vae, "decoder", torch.randn(1, 4, 64, 64), TIGHT, make_room=make_room)
    assert len(asked) == 1


def test_weights_that_do_not_count_who_writes_to_them_are_looked_at_each_time():
    """Forge's are inference tensors: another VAE in the same place must not pass for the one before."""
    with torch.inference_mode():
        vae = randomised(AutoencoderKL(kl_config())).requires_grad_(False)
        runner, graph = Runner(), graph_of(vae, "decoder")
        before = runner._key(vae, graph)
        assert runner._key(vae, graph) == before
        vae.decoder.conv_out.bias.mul_(2.0)
        assert runner._key(vae, graph) != before


def test_when_no_plan_works_all_of_them_are_named(vae):
    def on_step(done, total):
        raise MemoryError("no")

    with pytest.raises(NoMemoryError, match=r"with any plan \(whole ran out of memory .*stream"):
        run(Runner(), vae, "decoder", torch.randn(1, 4, 128, 96), AUTO, on_step=on_step)


def test_switched_off_it_never_falls_back_to_bands(vae):
    def on_step(done, total):
        raise MemoryError("no")

    with pytest.raises(MemoryError, match="no"):
        run(Runner(), vae, "decoder", torch.randn(1, 4, 24, 16), OFF, on_step=on_step)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda vae: setattr(vae.decoder, "mid", nn.Identity()), "is built in an unknown way: .*block_1"),
        (lambda vae: setattr(vae.decoder, "extra", nn.Linear(2, 2)), "extra"),
        (lambda vae: setattr(vae.decoder.mid, "forward", lambda x: x), "changed by another extension"),
        (lambda vae: setattr(vae.decoder, "conv_in", nn.Conv3d(4, 32, 3)), "not a two-dimensional"),
    ],
)
def test_what_is_not_understood_is_left_alone_with_a_reason(vae, change, reason):
    change(vae)
    runner = Runner()
    with pytest.raises(StepAsideError, match=reason):
        run(runner, vae, "decoder", torch.randn(1, 4, 8, 8), AUTO)
    assert runner.last == {}


# --- what a job chooses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [AUTO, ALWAYS, OFF, TilingSettings(memory_mb=300, encoder=False)])
def test_a_job_that_chooses_nothing_has_the_settings(settings):
    assert JobTiling().over(settings) == settings


def test_a_jobs_choice_beats_the_settings():
    assert JobTiling("off").over(AUTO) == OFF
    assert JobTiling("stream", 70).over(OFF) == TilingSettings(True, "stream", 70)
    assert JobTiling("auto").over(ALWAYS) == AUTO
    assert JobTiling(AS_SET, 0, "decode").over(AUTO) == TilingSettings(encoder=False)
    assert JobTiling(AS_SET, 0, "encode").over(AUTO) == TilingSettings(decoder=False)


# --- requests to the old extension -----------------------------------------------------------------------------------


def test_switched_off_the_old_arguments_mean_nothing():
    assert tile_sizes([]) is None
    assert tile_sizes(DEFAULTS) is None
    assert tile_sizes([False, 100, 100]) is None


def test_tile_sizes_become_a_budget_of_memory(vae):
    sizes = tile_sizes([True, 512, 64, True, True, True, False])
    assert sizes == TileSizes(512, 64)
    small, large = (TileSizes(512, side).budget(OFF, vae, "decoder", FP32, CPU) for side in (48, 192))
    assert small.enabled
    assert 0 < small.memory_mb < large.memory_mb
    # a picture of one tile runs whole, a larger one does not
    graph = graph_of(vae, "decoder")
    for side, kind in ((48, "whole"), (240, "stream")):
        assert planned(graph, (1, 4, side, side), FP32, CPU, small).kind.startswith(kind)


# --- the sentence ----------------------------------------------------------------------------------------------------


def said(vae, tiling, size=(1024, 1536)):
    return str(forecast(vae, size, FP32, CPU, tiling))


def test_the_sentence_says_what_will_happen(vae, monkeypatch):
    import sd_vae_kit.core.plan.planner as memory
    from sd_vae_kit.core.plan.free_memory import Free

    def free(mb):
        monkeypatch.setattr(memory, "free_memory", lambda device: Free(None if mb is None else mb << 20, "test"))

    free(5325)
    assert said(vae, AUTO).startswith("1536x1024 with this VAE: about ")
    assert said(vae, AUTO).endswith(" whole, 5.2 GB free: will run whole")
    assert " 5.2 GB free: will stream, about " in said(vae, ALWAYS)
    assert said(vae, ALWAYS).endswith(", same picture")
    assert said(vae, TIGHT).endswith(", and may run out of it")
    assert " 1 MB budget: will stream in the least memory there is a way for, about " in said(vae, TIGHT)
    assert said(vae, OFF).endswith("tiling is off, will run whole")
    free(200)
    assert " whole, 200 MB free: will stream" in said(vae, AUTO)
    assert said(vae, OFF).endswith("tiling is off, may run out of memory")
    free(None)
    assert " whole, free memory is not known: will " in said(vae, AUTO)


def test_a_vae_that_is_not_ours_has_a_sentence_too(vae):
    vae.decoder.mid = nn.Identity()
    assert said(vae, AUTO).startswith("This VAE runs without VAE Kit: ")
