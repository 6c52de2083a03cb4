"""The streamed picture is the module's own ordinary forward, for every plan, size, padding and layout."""

import gc
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from vae_zoo import (
    SMALL,
    CastingConv,
    GlobalConv,
    SeamlessXConv,
    picture,
    recast,
    set_padding_mode,
    small_vae,
)

from sd_vae_kit.core.engine import attention
from sd_vae_kit.core.engine.node_store import NodeStore
from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import NetConfig
from sd_vae_kit.core.plan.schedule import all_nodes, make_schedule, must_be_stored, split_rows
from sd_vae_kit.errors import Interrupted, PlanError

CPU = torch.device("cpu")
DEEPER = NetConfig(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1)


def plan_for(graph, dtype=torch.float32, *, band_bytes=12_000, stored=None):
    return Plan("stream", CPU, dtype, stored, band_bytes)


def assert_same(vae, part, x, *, band_bytes=12_000, stored=None, bands=None, tolerance=5e-5):
    """Streamed equals the module's own forward, and more than one band ran for each step (or `bands` in all)."""
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    with torch.no_grad():
        expected = vae.decode(x) if part == "decoder" else vae.encode(x)
    stats = RunStats()
    plan = plan_for(graph, x.dtype, band_bytes=band_bytes, stored=stored(graph) if stored else None)
    before = x.clone()
    y = run_streamed(graph, x, plan, stats=stats)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * scale)
    assert torch.equal(x, before)
    assert stats.bands == bands if bands is not None else stats.bands > len(graph.steps)
    return stats


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("band_bytes", [1, 30_000])
def test_every_step_runs_in_several_bands_and_the_picture_is_the_same(part, band_bytes):
    x = picture(4, 24, 18) if part == "decoder" else picture(3, 50, 34)
    stats = assert_same(small_vae(DEEPER), part, x, band_bytes=band_bytes)
    assert band_bytes > 1 or all(bands > 1 for _, bands in stats.bands_by_step)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_one_band_is_the_ordinary_forward(part):
    program_length = {"decoder": 17, "encoder": 13}[part]
    x = picture(4, 12, 10) if part == "decoder" else picture(3, 24, 20)
    assert_same(small_vae(), part, x, band_bytes=None, bands=program_length)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from(["decoder", "encoder"]),
    height=st.integers(2, 13),
    width=st.integers(2, 9),
    odd=st.integers(0, 3),
    batch=st.integers(1, 2),
    band_bytes=st.sampled_from([1, 4_000, 20_000, 100_000]),
    padding=st.sampled_from(["zeros", "circular", "reflect", "x-only", "casting"]),
    seed=st.integers(0, 3),
    leaving_out=st.lists(st.integers(1, 17), max_size=9),
)
def test_any_size_padding_band_height_and_choice_of_stored_values(
    part, height, width, odd, batch, band_bytes, padding, seed, leaving_out
):
    vae = small_vae(seed=seed)
    if padding in ("circular", "reflect"):
        set_padding_mode(vae, padding)
    elif padding == "x-only":
        recast(vae, SeamlessXConv, only=3)
    elif padding == "casting":
        recast(vae, CastingConv)
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    x = picture(4, height, width, batch, seed) if part == "decoder" else picture(3, 2 * height + odd, 2 * width, batch)
    stored = (all_nodes(graph) - set(leaving_out)) | must_be_stored(graph)
    with torch.no_grad():
        expected = vae.decode(x) if part == "decoder" else vae.encode(x)
    stats = RunStats()
    y = run_streamed(graph, x, plan_for(graph, band_bytes=band_bytes, stored=stored), stats=stats)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))
    assert stats.bands >= batch * len(stored)
    if band_bytes == 1:
        assert stats.bands > batch * len(stored)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_storing_as_little_as_possible_gives_the_same_picture(part):
    x = picture(4, 14, 9) if part == "decoder" else picture(3, 36, 22)
    stats = assert_same(small_vae(DEEPER), part, x, stored=must_be_stored)
    again = [name for name, _ in stats.bands_by_step]
    assert len(again) > len(set(again)) or len(again) > 4, "passes that only take statistics must have run"


def test_circular_padding_wraps_between_the_first_and_the_last_band():
    vae = set_padding_mode(small_vae(), "circular")
    z = picture(4, 11, 6)
    stats = assert_same(vae, "decoder", z)
    assert stats.bands > 17
    with torch.no_grad():
        rolled = vae.decode(z.roll((3, 2), (2, 3)))
    graph = decoder_graph(vae)
    y = run_streamed(graph, z, plan_for(graph)).roll((6, 4), (2, 3))
    torch.testing.assert_close(y, rolled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_pictures_of_a_few_rows_and_circular_padding(part, rows):
    vae = set_padding_mode(small_vae(), "circular")
    x = picture(4, rows, 5) if part == "decoder" else picture(3, 2 * rows, 10)
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    with torch.no_grad():
        expected = vae.decode(x) if part == "decoder" else vae.encode(x)
    stats = RunStats()
    y = run_streamed(graph, x, plan_for(graph, band_bytes=1), stats=stats)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-4)
    assert stats.bands > len(graph.steps) or rows == 1


def test_a_latent_of_one_cell_and_a_picture_of_eight_pixels():
    vae = small_vae(NetConfig(ch=64, ch_mult=(1, 1, 1, 1), num_res_blocks=1)).double()
    assert_same(vae, "decoder", picture(4, 1, 1).double(), band_bytes=1, tolerance=1e-8)
    assert_same(vae, "encoder", picture(3, 8, 8).double(), band_bytes=1, tolerance=1e-8)


@pytest.mark.parametrize(("height", "width"), [(64, 1), (4, 64), (33, 2)])
def test_long_thin_pictures(height, width):
    assert_same(small_vae(), "decoder", picture(4, height, width), band_bytes=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_follow_their_own_forward(dtype):
    vae = small_vae().to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 0.05
    assert_same(vae, "decoder", picture(4, 12, 9).to(dtype), tolerance=tolerance)


def test_bf16_is_no_farther_from_fp32_than_the_ordinary_forward_is():
    vae = small_vae(DEEPER)
    z = picture(4, 20, 14)
    with torch.no_grad():
        reference = vae.decode(z)
        ordinary = vae.bfloat16().decode(z.bfloat16()).float()
    graph = decoder_graph(vae)
    stats = RunStats()
    y = run_streamed(graph, z.bfloat16(), plan_for(graph, torch.bfloat16), stats=stats).float()
    assert stats.bands > len(graph.steps)
    error, ordinary_error = ((a - reference).square().mean().sqrt() for a in (y, ordinary))
    assert float(error) <= 1.1 * float(ordinary_error)


def test_each_sample_of_a_batch_has_its_own_statistics():
    z = picture(4, 10, 8, batch=3)
    z[1] *= 20
    vae = small_vae()
    assert_same(vae, "decoder", z)
    graph = decoder_graph(vae)
    alone = run_streamed(graph, z[2:], plan_for(graph))
    torch.testing.assert_close(run_streamed(graph, z, plan_for(graph))[2:], alone, rtol=0, atol=0)


def test_activations_whose_mean_is_a_hundred_deviations_stay_exact():
    vae = small_vae()
    with torch.no_grad():
        vae.decoder.conv_in.bias += 100 * vae.decoder.conv_in(picture(4, 16, 16)).std()
    assert_same(vae, "decoder", picture(4, 16, 16), tolerance=1e-4)


def test_differences_between_bands_reach_the_statistics():
    z = picture(4, 16, 8) * 0.1
    z[:, :, 8:] += 4  # nearly all variance is between the upper and the lower bands
    stats = assert_same(small_vae(), "decoder", z)
    assert stats.bands > 2 * 17


def test_inputs_made_in_inference_mode_are_read_and_not_written():
    vae = small_vae()
    graph = decoder_graph(vae)
    with torch.inference_mode():
        z = picture(4, 9, 9)
        expected = vae.decode(z)
    stats = RunStats()
    y = run_streamed(graph, z, plan_for(graph), stats=stats)
    assert stats.bands > len(graph.steps)
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-5)
    with torch.inference_mode():
        torch.testing.assert_close(run_streamed(graph, z, plan_for(graph)), expected, rtol=0, atol=5e-5)


def test_weights_loaded_in_inference_mode_are_usable_outside_of_it():
    with torch.inference_mode():
        vae = small_vae()
    assert_same(vae, "decoder", picture(4, 9, 9))


def test_autocast_outside_does_not_change_the_picture():
    vae = small_vae()
    z = picture(4, 12, 9)
    with torch.no_grad():
        expected = vae.decode(z)
    graph = decoder_graph(vae)
    stats = RunStats()
    with torch.autocast("cpu", torch.bfloat16):
        y = run_streamed(graph, z, plan_for(graph), stats=stats)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-5)
    assert stats.bands > len(graph.steps)


def test_two_threads_on_one_vae_get_their_own_pictures():
    vae = small_vae()
    latents = [picture(4, 14, 10, seed=1), picture(4, 9, 15, seed=2)]
    graph = decoder_graph(vae)
    alone = [run_streamed(graph, z, plan_for(graph)) for z in latents]
    results: dict[tuple[int, int], torch.Tensor] = {}

    bands = []

    def work(i):
        for turn in range(4):
            stats = RunStats()
            results[i, turn] = run_streamed(decoder_graph(vae), latents[i], plan_for(graph), stats=stats)
            bands.append(stats.bands)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert min(bands) > len(graph.steps)
    for (i, _), y in results.items():
        torch.testing.assert_close(y, alone[i], rtol=0, atol=0)


def test_stopping_between_bands_raises_and_leaves_nothing_behind():
    vae = small_vae()
    graph = decoder_graph(vae)
    seen = []

    def on_step(done, total):
        seen.append((done, total))
        return done < 20

    def activations():
        gc.collect()
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        return {id(t) for t in tensors if t.dim() == 4 and t.shape[-1] in (12, 24)}

    before = activations()  # of other tests
    with pytest.raises(Interrupted, match="Stopped after 20 of"):
        run_streamed(graph, picture(4, 16, 12), plan_for(graph, band_bytes=1), on_step=on_step)
    assert [done for done, _ in seen] == list(range(1, 21))
    assert len({total for _, total in seen}) == 1
    assert seen[0][1] > 20
    assert activations() <= before
    assert all(not vars(m).get("_buffers") for m in vae.modules())


def test_progress_counts_every_band_once():
    graph = decoder_graph(small_vae())
    seen, stats = [], RunStats()
    run_streamed(
        graph, picture(4, 10, 6, 2), plan_for(graph), on_step=lambda d, t: seen.append((d, t)) or True, stats=stats
    )
    assert [done for done, _ in seen] == list(range(1, stats.bands + 1))
    assert seen[-1][0] == seen[-1][1]


def test_casting_layers_are_called_and_not_read():
    vae = recast(small_vae(), CastingConv)
    CastingConv.calls = 0
    assert_same(vae, "decoder", picture(4, 12, 8))
    assert CastingConv.calls > 17


def test_a_class_level_patch_of_conv2d_as_a1111s_lora_extension_makes_is_honoured(monkeypatch):
    original = nn.Conv2d.forward

    def patched(self, x):
        return original(self, x) * 1.5

    monkeypatch.setattr(nn.Conv2d, "forward", patched)
    assert_same(small_vae(), "decoder", picture(4, 10, 8))


def test_hooks_and_replaced_forwards_of_convolutions_are_honoured():
    vae = small_vae()
    vae.decoder.conv_in.register_forward_hook(lambda module, args, y: y + 1)
    conv = vae.decoder.up[0].block[0].conv1
    conv._conv_forward = lambda x, w, b: nn.Conv2d._conv_forward(conv, x, w * 0.5, b)
    assert_same(vae, "decoder", picture(4, 12, 8))


def test_a_convolution_that_is_not_local_makes_us_step_aside():
    vae = recast(small_vae(), GlobalConv, only=3)
    graph = decoder_graph(vae)
    with pytest.raises(
        PlanError, match=r"decoder\.conv_in \(GlobalConv\) was changed by another extension and is not local"
    ):
        run_streamed(graph, picture(4, 8, 8), plan_for(graph))


def test_weights_that_are_not_numbers_are_not_taken_for_a_patch():
    vae = recast(small_vae(), CastingConv)
    with torch.no_grad():
        vae.decoder.conv_in.weight[0, 0, 0, 0] = float("nan")
    graph, stats = decoder_graph(vae), RunStats()
    y = run_streamed(graph, picture(4, 8, 8), plan_for(graph), stats=stats)
    assert stats.bands > len(graph.steps)
    assert bool(torch.isnan(y).any())


def test_the_hosts_random_numbers_are_left_alone():
    vae = recast(small_vae(), SeamlessXConv)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run_streamed(decoder_graph(vae), picture(4, 6, 6), plan_for(decoder_graph(vae)))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_queries_are_answered_in_chunks():
    vae = small_vae()
    graph = decoder_graph(vae)
    z = picture(4, 16, 12)
    stats = RunStats()
    y = run_streamed(graph, z, Plan("stream", CPU, torch.float32, None, None, attention_bytes=1), stats=stats)
    assert stats.chunks == 12
    with torch.no_grad():
        torch.testing.assert_close(y, vae.decode(z), rtol=0, atol=5e-5)


def test_where_no_scores_are_stored_many_queries_are_answered_at_once(monkeypatch):
    """Few at a time would leave most of a GPU idle."""
    monkeypatch.setattr(attention, "stores_scores", lambda device, dtype, width: False)
    vae, z, stats = small_vae(), picture(4, 16, 12), RunStats()
    plan = Plan("stream", CPU, torch.float32, None, None, attention_bytes=1)
    y = run_streamed(decoder_graph(vae), z, plan, stats=stats)
    assert stats.chunks == 1
    with torch.no_grad():
        torch.testing.assert_close(y, vae.decode(z), rtol=0, atol=5e-5)
    assert attention.attention_chunk(plan, 1 << 20, 1, stores=False) == attention.FUSED_QUERIES


@pytest.fixture
def kernel(monkeypatch):
    """CUDA's memory-efficient kernel on a device that is pretended: zeros stay on the CPU, the answer is the test's."""
    asked = SimpleNamespace(shapes=[], error=None)

    def pretended(query, key, value, bias, with_sums):
        asked.shapes.append((tuple(query.shape), query.dtype))
        if asked.error is not None:
            raise asked.error

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, dtype: zeros(*shape, dtype=dtype))
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", pretended)
    attention.stores_scores.cache_clear()
    yield asked
    attention.stores_scores.cache_clear()


@pytest.mark.parametrize(
    ("error", "enabled", "stores"),
    [(None, True, False), (None, False, True), (RuntimeError("Mem efficient: not for this width"), True, True)],
)
def test_the_memory_efficient_kernel_is_tried_once(error, enabled, stores, kernel, monkeypatch):
    kernel.error = error
    monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: enabled)
    for _ in range(2):
        assert attention.stores_scores(torch.device("cuda", 0), torch.float16, 512) is stores
    assert kernel.shapes == [((1, 1, 64, 512), torch.float16)] * enabled
    assert attention.stores_scores(CPU, torch.float32, 512), "what the CPU does is not changed"


def test_a_full_card_says_nothing_about_the_kernel(kernel):
    kernel.error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            attention.stores_scores(torch.device("cuda", 0), torch.float16, 512)
    assert len(kernel.shapes) == 2


def test_residual_blocks_are_written_over_their_input():
    graph = decoder_graph(small_vae())
    schedule = make_schedule(graph, plan_for(graph), (16, 12))
    over = {graph.steps[sweep.node - 1].name: sweep for sweep in schedule}
    assert over["decoder.up.0.block.1.conv2"].over is not None
    assert over["decoder.up.0.block.1.conv2"].held == 0
    # channels change: the result goes over the inner activation, of which the next band still reads a row
    assert over["decoder.up.0.block.0.conv2"].held == 1
    assert all(sweep.over != 0 for sweep in schedule), "the caller's tensor is never written"


def test_what_nobody_reads_any_more_is_freed(monkeypatch):
    graph = decoder_graph(small_vae())
    alive = []
    original = NodeStore.keep

    def keep(self, *given):
        original(self, *given)
        alive.append(len(self))

    monkeypatch.setattr(NodeStore, "keep", keep)
    run_streamed(graph, picture(4, 8, 8), plan_for(graph))
    assert len(alive) == len(graph.steps)
    assert max(alive) <= 3


class Repairing:
    """A guard that counts bands and replaces the first non-finite one."""

    def __init__(self):
        self.seen, self.bad = 0, 0

    def accept(self, step, rows, band, moments):
        self.seen += 1
        finite = bool(torch.isfinite(band if moments is None else moments.host).all())
        if finite:
            return band
        self.bad += 1
        return torch.nan_to_num(band, nan=0.0, posinf=0.0, neginf=0.0)


def test_a_guard_sees_each_band_before_it_is_committed_and_may_replace_it():
    vae = small_vae()
    graph = decoder_graph(vae)
    guard, stats = Repairing(), RunStats()
    z = picture(4, 12, 8)
    run_streamed(graph, z, plan_for(graph), guard=guard, stats=stats)
    assert (guard.seen, guard.bad) == (stats.bands, 0)
    z[0, 0, 0, 0] = float("nan")
    guard = Repairing()
    y = run_streamed(graph, z, plan_for(graph), guard=guard)
    assert guard.bad > 0
    assert bool(torch.isfinite(y).all())


@given(st.integers(1, 300), st.integers(1, 80))
def test_bands_cover_the_height_exactly_once(height, rows):
    rows = rows // 2 * 2 or 2
    bands = split_rows(height, rows)
    assert [top for top, _ in bands[1:]] == [bottom for _, bottom in bands[:-1]]
    assert (bands[0][0], bands[-1][1]) == (0, height)
    assert all(0 < bottom - top <= max(rows, 2) for top, bottom in bands)


def test_a_plan_that_leaves_out_what_attention_reads_is_refused():
    graph = decoder_graph(small_vae())
    with pytest.raises(PlanError, match="attention or the result"):
        run_streamed(graph, picture(4, 8, 8), plan_for(graph, stored=frozenset({len(graph.steps)})))


def test_a_latent_with_the_wrong_channels_is_refused_with_both_numbers():
    graph = decoder_graph(small_vae(SMALL))
    with pytest.raises(PlanError, match=r"\(B, 4, height, width\); the input is \(1, 16, 8, 8\)"):
        run_streamed(graph, picture(16, 8, 8), plan_for(graph))
