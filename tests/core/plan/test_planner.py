"""The cost model against what torch really allocates, the choice of plans, and what happens when memory runs out."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from counted_memory import Peak
from vae_zoo import picture, small_vae

from sd_vae_kit.core.engine import node_store
from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.plan import candidates
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch, stream_plan, whole_plan
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.plan.free_memory import Free, free_memory, free_ram
from sd_vae_kit.core.plan.planner import choose_plan
from sd_vae_kit.core.plan.schedule import all_nodes
from sd_vae_kit.core.plan.search_cache import SEARCHES
from sd_vae_kit.core.run import oom_retry as ladder_module
from sd_vae_kit.core.run.oom_retry import is_out_of_memory, run_with_retries
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.errors import Interrupted, NoMemoryError, PlanError
from sd_vae_kit.units import MIB

CPU = torch.device("cpu")
CONFIG = NetConfig(ch=64, ch_mult=(1, 2, 2), num_res_blocks=1)


def test_the_counter_sees_the_worst_moment_and_not_what_is_gone():
    with Peak(torch.nn.Identity()) as peak:
        first = torch.zeros(1000)
        second = first.reshape(10, 100) + 1  # a view takes nothing
        del first
        torch.zeros(500)
        third = second * 2
        del second, third
        torch.zeros(100)
    assert peak.peak == 8000


def plans(graph, shape):
    return {
        "whole": whole_plan(CPU, torch.float32),
        "stream": stream_plan(CPU, torch.float32, 1 * MIB),
        "lean": PlanSearch(graph, shape, torch.float32, CPU).lean(LeanLimits(band_bytes=1 * MIB)),
        "leaner": PlanSearch(graph, shape, torch.float32, CPU).lean(LeanLimits(extra=3.0, band_bytes=MIB // 2)),
    }


@pytest.mark.parametrize("name", ["whole", "stream", "lean", "leaner"])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_predictions_are_within_15_percent_of_what_is_allocated(part, name):
    torch.manual_seed(0)
    vae = AutoencoderKL(KlConfig(encoder=CONFIG, decoder=CONFIG)).eval()
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    x = picture(4, 48, 40) if part == "decoder" else picture(3, 192, 160)
    plan = plans(graph, x.shape)[name]
    stats = RunStats()
    gc.collect()
    with Peak(vae) as peak:
        run_streamed(graph, x, plan, stats=stats)
    cost = predict(graph, plan, x.shape)
    assert stats.bands == cost.bands
    assert name == "whole" or stats.bands > len(graph.steps)
    assert cost.peak_bytes == pytest.approx(peak.peak, rel=0.15)


def test_the_full_decoder_takes_two_activations_of_the_widest_level():
    with torch.device("meta"):
        vae = AutoencoderKL(KlConfig())
    graph, shape = decoder_graph(vae), (1, 4, 512, 512)
    per_pixel = predict(graph, stream_plan(CPU, torch.float16), shape).peak_bytes / 4096**2
    assert 768 <= per_pixel < 800  # 256 + 128 channels of two bytes, and the bands
    lean = PlanSearch(graph, shape, torch.float16, CPU).lean(LeanLimits())
    cost, plain = predict(graph, lean, shape), predict(graph, stream_plan(CPU, torch.float16), shape)
    assert 384 <= cost.peak_bytes / 4096**2 < 410
    assert cost.macs <= 1.4 * plain.macs


def test_lean_plans_spend_no_more_arithmetic_than_they_may_and_stop_when_it_fits():
    graph, shape = decoder_graph(small_vae(CONFIG)), (1, 4, 64, 64)
    plain = predict(graph, stream_plan(CPU, torch.float32, MIB), shape)
    search = PlanSearch(graph, shape, torch.float32, CPU)
    costs = [predict(graph, search.lean(LeanLimits(extra=extra, band_bytes=MIB)), shape) for extra in (0.0, 0.5, 3.0)]
    assert costs[0].peak_bytes == plain.peak_bytes
    assert costs[0].peak_bytes > costs[1].peak_bytes >= costs[2].peak_bytes
    assert costs[1].macs <= 1.5 * plain.macs
    roomy = search.lean(LeanLimits(budget_bytes=plain.peak_bytes, band_bytes=MIB))
    assert roomy.stored == all_nodes(graph)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_lean_plans_give_the_ordinary_picture(part):
    vae = small_vae(CONFIG)
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    x = picture(4, 30, 21) if part == "decoder" else picture(3, 120, 84)
    with torch.no_grad():
        expected = vae.decode(x) if part == "decoder" else vae.encode(x)
    for extra in (0.4, 3.0):
        plan = PlanSearch(graph, x.shape, torch.float32, CPU).lean(LeanLimits(extra=extra, band_bytes=MIB // 4))
        assert plan.stored is not None
        assert len(plan.stored) < len(graph.steps)
        stats = RunStats()
        torch.testing.assert_close(run_streamed(graph, x, plan, stats=stats), expected, rtol=0, atol=5e-5)
        assert stats.bands > len(graph.steps)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("pixels", [512, 1024, 8192])
def test_a_tight_budget_is_planned_for_with_few_predictions(part, pixels, monkeypatch):
    """A prediction takes about a millisecond at any size; the search went through thousands before."""
    with torch.device("meta"):
        vae = AutoencoderKL(KlConfig())
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    shape = (1, 4, pixels // 8, pixels // 8) if part == "decoder" else (1, 3, pixels, pixels)
    whole = predict(graph, whole_plan(CPU, torch.float32), shape)
    asked = []
    SEARCHES.forget()
    monkeypatch.setattr(candidates, "predict", lambda *args: asked.append(args) or predict(*args))
    choice = choose_plan(graph, shape, torch.float32, CPU, MIB)
    assert len(asked) < 500
    assert (choice.plan.kind, choice.fits, choice.reason) == ("stream-lean", False, "nothing smaller exists")
    assert choice.predicted_mb < (0.45 if pixels == 512 else 0.38) * whole.peak_bytes / MIB


def test_enough_recomputation_leaves_an_eighth_of_the_whole_pictures_memory():
    with torch.device("meta"):
        graph, shape = decoder_graph(AutoencoderKL(KlConfig())), (1, 4, 512, 512)
    whole = predict(graph, whole_plan(CPU, torch.float32), shape)
    choice = choose_plan(graph, shape, torch.float32, CPU, int(0.18 * whole.peak_bytes))
    assert (choice.plan.kind, choice.fits) == ("stream-lean", True)
    assert predict(graph, choice.plan, shape).macs < 3.5 * predict(graph, stream_plan(CPU, torch.float32), shape).macs


def test_a_roomy_budget_runs_whole_a_smaller_one_streams_the_smallest_recomputes():
    graph, shape = decoder_graph(small_vae(CONFIG)), (1, 4, 128, 128)
    whole = predict(graph, whole_plan(CPU, torch.float32), shape).peak_bytes
    stream = predict(graph, stream_plan(CPU, torch.float32), shape).peak_bytes
    lean = predict(graph, PlanSearch(graph, shape, torch.float32, CPU).lean(LeanLimits()), shape).peak_bytes
    assert lean < stream < whole
    kinds = []
    for budget in (whole, stream, lean, 1):
        choice = choose_plan(graph, shape, torch.float32, CPU, budget)
        assert (choice.plan.kind, choice.budget_mb) == (choice.kind, budget // MIB)
        assert choice.fits == (budget > 1)
        kinds.append(choice.plan.kind)
    assert kinds == ["whole", "stream", "stream-lean", "stream-lean"]
    assert choice.reason == "nothing smaller exists"
    assert choice.predicted_mb < lean / MIB + 1


def test_mode_always_streams_and_mode_never_does_not():
    graph, shape = decoder_graph(small_vae()), (1, 4, 16, 16)
    assert choose_plan(graph, shape, torch.float32, CPU, None, "always").kind == "stream"
    choice = choose_plan(graph, shape, torch.float32, CPU, 1, "never")
    assert choice.plan.kind == "whole"
    assert not choice.fits


def test_the_free_memory_of_this_machine_is_read():
    free = free_memory(CPU)
    assert free.free_bytes is not None
    assert 16 * MIB < free.free_bytes < 1 << 50


def test_devices_that_do_not_tell_have_a_named_answer():
    free = free_memory(torch.device("privateuseone", 0))
    assert free.free_bytes is None
    assert "privateuseone does not tell" in free.source


def fake_root(root: Path, available_kb: int, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kb} kB\n")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_cgroup_v2_limit_of_a_parent_counts_and_page_cache_can_go(tmp_path):
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.current": "1000\n",
        "sys/fs/cgroup/outer/memory.max": "5000000\n",
        "sys/fs/cgroup/outer/memory.current": "3000000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 1000000\n",
    }
    free = free_ram(fake_root(tmp_path, 9_000, files))
    assert (free.free_bytes, free.source) == (3_000_000, "container limit")


def test_a_cgroup_v1_limit_counts_and_the_mount_stands_for_an_unknown_path(tmp_path):
    files = {
        "proc/self/cgroup": "7:cpu:/x\n5:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "3500000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 250000\n",
    }
    assert free_ram(fake_root(tmp_path, 9_000, files)).free_bytes == 750_000


def test_without_a_limit_the_systems_memory_counts(tmp_path):
    files = {
        "proc/self/cgroup": "5:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    free = free_ram(fake_root(tmp_path, 1_234, files))
    assert (free.free_bytes, free.source) == (1_234 * 1024, "RAM")


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("HIP out of memory. Tried to allocate"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_every_kind_of_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory"), KeyboardInterrupt()]
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


class FailingGuard:
    """Raises in the middle of the first runs, and watches whether the tensors it saw then go away."""

    def __init__(self, errors, after=20):
        self.errors, self.after, self.seen, self.watched = list(errors), after, 0, []

    def accept(self, step, rows, band, moments):
        self.seen += 1
        if self.errors:
            self.watched.append(weakref.ref(band))
            if self.seen >= self.after:
                self.seen = 0
                raise self.errors.pop(0)
        return band


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__ + str(error)[:16])
def test_running_out_of_memory_in_the_middle_goes_down_the_ladder(error):
    vae = small_vae(CONFIG)
    graph, z = decoder_graph(vae), picture(4, 32, 24)
    guard, stats = FailingGuard([error]), RunStats()
    tensor, used, failures = run_with_retries(
        graph, z, stream_plan(CPU, torch.float32, MIB // 2), guard=guard, stats=stats
    )
    with torch.no_grad():
        torch.testing.assert_close(tensor, vae.decode(z), rtol=0, atol=5e-5)
    assert len(failures) == 1
    assert failures[0].startswith("stream ran out of memory (")
    assert used.kind == "stream-lean"
    assert stats.bands > len(graph.steps)


def test_nothing_refers_to_the_failed_tensors_when_the_next_plan_starts(monkeypatch):
    graph, z = decoder_graph(small_vae(CONFIG)), picture(4, 32, 24)
    guard = FailingGuard([RuntimeError("CUDA out of memory")])
    left = []
    original = ladder_module.release_cached

    def release(device):
        # before any garbage collection: reference counting alone must have freed them
        left.append(sum(ref() is not None for ref in guard.watched))
        original(device)

    monkeypatch.setattr(ladder_module, "release_cached", release)
    gc.collect()
    gc.disable()
    try:
        run_with_retries(graph, z, stream_plan(CPU, torch.float32, MIB // 2), guard=guard)
    finally:
        gc.enable()
    assert len(guard.watched) == 20
    assert left == [0]


def test_other_models_are_asked_to_go_first_and_the_same_plan_is_tried_again():
    graph, z = decoder_graph(small_vae()), picture(4, 16, 12)
    plan = stream_plan(CPU, torch.float32, 20_000)
    asked = []
    guard = FailingGuard([MemoryError()])
    request = RunRequest(make_room=lambda needed: asked.append(needed) or True)
    _, used, _ = run_with_retries(graph, z, plan, request, guard=guard)
    assert used is plan
    assert asked == [predict(graph, plan, z.shape).peak_bytes]


def test_when_every_plan_fails_the_message_lists_them():
    graph, z = decoder_graph(small_vae(CONFIG)), picture(4, 32, 24)
    guard = FailingGuard([MemoryError()] * 50, after=1)
    with pytest.raises(
        PlanError, match=r"Not enough memory for a decoder input of 32x24 .*whole ran out of memory.*stream"
    ):
        run_with_retries(graph, z, whole_plan(CPU, torch.float32), guard=guard)


@pytest.mark.parametrize(("ram", "reaches_host"), [(1 << 40, True), (1 << 10, False)])
def test_after_a_failure_host_memory_is_tried_only_where_there_is_enough(ram, reaches_host, monkeypatch):
    """It would be pinned, so that the whole computer would stand still."""
    graph, z, tried, released = decoder_graph(small_vae(CONFIG)), picture(4, 32, 24), [], []

    def attempt(graph, x, plan, *others):
        tried.append(plan.kind)
        return z if plan.on_host else "CUDA out of memory"

    monkeypatch.setattr(ladder_module, "_attempt", attempt)
    monkeypatch.setattr(ladder_module, "release_cached", lambda device: None)
    monkeypatch.setattr(ladder_module, "release_pinned", lambda: released.append(len(tried)))
    monkeypatch.setattr("sd_vae_kit.core.plan.planner.free_memory", lambda device: Free(ram, "a test"))
    plan = stream_plan(torch.device("cuda", 0), torch.float16)
    if reaches_host:
        assert run_with_retries(graph, z, plan)[1].kind == "stream-host"
        assert released == [len(tried)], "what was pinned goes back when the picture is there"
    else:
        with pytest.raises(NoMemoryError):
            run_with_retries(graph, z, plan)
        assert "stream-host" not in tried


def test_other_errors_and_interrupts_pass_through_the_ladder():
    graph, z = decoder_graph(small_vae()), picture(4, 8, 8)
    plan = stream_plan(CPU, torch.float32)
    with pytest.raises(RuntimeError, match="illegal"):
        run_with_retries(graph, z, plan, guard=FailingGuard([RuntimeError("illegal memory access")], after=3))
    with pytest.raises(Interrupted):
        run_with_retries(graph, z, plan, RunRequest(on_step=lambda done, total: done < 3))


def test_the_ladder_goes_down():
    graph, shape = decoder_graph(small_vae(CONFIG)), (1, 4, 128, 128)
    peaks = [
        predict(graph, plan, shape).peak_bytes for plan in PlanSearch(graph, shape, torch.float32, CPU).candidates(0)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.6 * peaks[0]


@pytest.mark.parametrize("is_remote", [False, True])
def test_stream_host_is_exact_on_the_cpu_too(is_remote, monkeypatch):
    # True runs the bookkeeping of the link to a device, with the CPU as the device
    monkeypatch.setattr(node_store, "is_remote", lambda plan: is_remote)
    vae = small_vae()
    graph, z = decoder_graph(vae), picture(4, 16, 12)
    plan = Plan("stream-host", CPU, torch.float32, None, 12_000, on_host=True)
    stats = RunStats()
    y = run_streamed(graph, z, plan, stats=stats)
    assert stats.bands > len(graph.steps)
    with torch.no_grad():
        torch.testing.assert_close(y, vae.decode(z), rtol=0, atol=5e-5)
