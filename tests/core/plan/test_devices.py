"""What is different on other devices, tried on the CPU by pretending, and the order of copies to host memory."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from vae_zoo import picture, set_padding_mode, small_vae

from sd_vae_kit.core.engine import device_tensors, node_store
from sd_vae_kit.core.engine.device_tensors import without_autocast
from sd_vae_kit.core.engine.offload import CudaCopyStreams, OffloadedStore
from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch, host_plan
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.plan.devices import TRAITS, Traits, traits
from sd_vae_kit.core.plan.free_memory import free_memory, free_ram
from sd_vae_kit.core.plan.planner import choose_plan
from sd_vae_kit.core.run.oom_retry import release_cached
from sd_vae_kit.units import MIB

CPU = torch.device("cpu")
KINDS = ["cuda", "xpu", "mps", "privateuseone"]


def forward(vae, part, x):
    with torch.no_grad():
        return vae.decode(x) if part == "decoder" else vae.encode(x)


def program_and_input(vae, part):
    return (decoder_graph(vae), picture(4, 14, 9)) if part == "decoder" else (encoder_graph(vae), picture(3, 38, 22))


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("kind", [*KINDS, "something new"])
def test_the_way_of_every_kind_of_device_gives_the_ordinary_picture(kind, part, monkeypatch):
    """Layout, kernels and autocast as there; the arithmetic is the CPU's."""
    monkeypatch.setitem(TRAITS, "cpu", TRAITS.get(kind, Traits(kind)))
    vae = small_vae()
    graph, x = program_and_input(vae, part)
    layouts = []
    original = torch.nn.functional.conv2d

    def conv2d(x, weight, *args, **options):
        layouts.append([t.is_contiguous(memory_format=traits(CPU).memory_format) for t in (x, weight)])
        return original(x, weight, *args, **options)

    expected = forward(vae, part, x)
    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    for plan in (
        Plan("stream", CPU, torch.float32, None, 12_000),
        PlanSearch(graph, x.shape, torch.float32, CPU).lean(LeanLimits(extra=3.0, band_bytes=12_000)),
    ):
        stats = RunStats()
        torch.testing.assert_close(run_streamed(graph, x, plan, stats=stats), expected, rtol=0, atol=5e-5)
        assert stats.bands > len(graph.steps)
    assert len(layouts) > 2 * len(graph.steps)
    assert all(map(all, layouts)), "every convolution gets its band and its weight in the layout of the device"


@pytest.mark.parametrize("kind", ["xpu", "mps", "privateuseone", "something new"])
def test_devices_on_which_views_of_channels_last_may_be_wrong_never_see_it(kind, monkeypatch):
    wanted = torch.channels_last if kind == "xpu" else torch.contiguous_format
    assert TRAITS.get(kind, Traits(kind)).memory_format == wanted
    monkeypatch.setitem(TRAITS, "cpu", TRAITS.get(kind, Traits(kind)))
    assert device_tensors.empty((1, 8, 4, 4), torch.float32, CPU).is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("kind", ["cpu", *KINDS, "meta"])
def test_switching_autocast_off_fails_on_no_kind_of_device(kind):
    """In torch 2.1 asking for it is a RuntimeError on MPS, an AttributeError on XPU, an AssertionError on DirectML."""
    ran = False
    with without_autocast(torch.device(kind)):
        ran = True
    assert ran


# how much memory they have


def test_cuda_counts_what_its_allocator_keeps_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    stats = {"reserved_bytes.all.current": 700, "active_bytes.all.current": 200}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    free = free_memory(torch.device("cuda", 0))
    assert (free.free_bytes, free.source) == (1500, "driver and torch's cache")


def test_cuda_without_an_index_is_the_current_one(monkeypatch):
    """A1111's device has none, and torch before 2.5 refuses it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: asked.append(device) or {})
    assert free_memory(torch.device("cuda")).free_bytes == 1000
    assert asked == [3, 3]


def test_mps_shares_the_ram_and_metal_may_allow_less(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5000, raising=False)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2000, raising=False)
    free = free_memory(torch.device("mps"))
    assert (free.free_bytes, free.source) == (3000, "Metal")
    monkeypatch.delattr(torch.mps, "recommended_max_memory")  # before torch 2.5
    assert free_memory(torch.device("mps")).source == "RAM shared with Metal"


def test_xpu_asks_the_driver_which_may_not_tell(monkeypatch):
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(mem_get_info=lambda device: (4000, 8000)), raising=False)
    assert free_memory(torch.device("xpu", 0)).free_bytes == 4000

    def refuse(device):
        raise RuntimeError("The device does not have the ext_intel_free_memory aspect")

    monkeypatch.setattr(torch, "xpu", SimpleNamespace(mem_get_info=refuse), raising=False)
    free = free_memory(torch.device("xpu", 0))
    assert (free.free_bytes, free.source) == (None, "this XPU driver does not tell")


def test_a_device_that_does_not_tell_gets_a_gigabyte():
    graph = decoder_graph(small_vae())
    choice = choose_plan(graph, (1, 4, 16, 16), torch.float32, torch.device("privateuseone", 0))
    assert (choice.plan.kind, choice.free_mb, choice.budget_mb) == ("whole", None, 1024)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_cached_memory_is_returned_where_the_device_has_a_cache(kind, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: emptied.append("pinned"), raising=False)
    backend = SimpleNamespace(empty_cache=lambda: emptied.append(kind), is_initialized=lambda: True)
    if kind != "cuda":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch, kind, backend, raising=False)
    release_cached(torch.device(kind))
    assert emptied == [kind, "pinned"]
    release_cached(torch.device("privateuseone"))  # DirectML has none to empty


# activations in host memory


class TrackedLanes:
    """Copies as late or as early as their contract allows: an order that is right by luck shows."""

    def __init__(self, brings_late, sends_late):
        self.brings_late, self.sends_late = brings_late, sends_late
        self.brought = self.taken = self.sent = self.waits = self.bands = 0
        self.leaving = []

    def bring(self, rows):
        self.brought += 1
        there = torch.full_like(rows, float("nan"))
        if not self.brings_late:
            there.copy_(rows)
        return there, rows

    def arrived(self, rows, ticket):
        self.taken += 1
        if self.brings_late:
            rows.copy_(ticket)

    def send(self, place, rows):
        self.sent += 1
        if self.sends_late:
            self.leaving.append((place, rows))
        else:
            place.copy_(rows)

    def next_band(self):
        self.bands += 1

    def wait(self):
        self.waits += 1
        for place, rows in self.leaving:
            place.copy_(rows)
        self.leaving.clear()


@pytest.mark.parametrize("sends_late", [False, True])
@pytest.mark.parametrize("brings_late", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_copies_beside_the_computation_never_meet(part, padding, brings_late, sends_late, monkeypatch):
    lanes = TrackedLanes(brings_late, sends_late)
    links = []

    class Link(OffloadedStore):
        def __init__(self, device):
            super().__init__(device, lanes)
            self.made = 0
            links.append(self)

        def empty(self, shape, dtype):
            self.made += 1
            return super().empty(shape, dtype)

    monkeypatch.setattr(node_store, "OffloadedStore", Link)
    monkeypatch.setattr(node_store, "is_remote", lambda plan: plan.on_host)
    vae = set_padding_mode(small_vae(), padding)
    graph, x = program_and_input(vae, part)
    stats = RunStats()
    y = run_streamed(graph, x, Plan("stream-host", CPU, torch.float32, None, 12_000, on_host=True), stats=stats)
    torch.testing.assert_close(y, forward(vae, part, x), rtol=0, atol=5e-5)
    assert stats.bands > len(graph.steps)
    assert lanes.brought >= (1 if padding == "circular" else stats.bands // 2)
    assert lanes.taken > 0
    assert lanes.bands >= stats.bands - len(graph.steps)
    assert lanes.sent >= stats.bands - len(graph.steps)
    assert lanes.waits >= len(graph.steps)
    assert 3 <= links[0].made <= len(graph.steps), "the input and the stored values are made in host memory"


class Recorder:
    """Stands for a CUDA stream, event or tensor and writes down what is asked of it."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def __getattr__(self, verb):
        def record(*args, **options):
            names = [arg.name for arg in args if isinstance(arg, Recorder)]
            self.log.append(" ".join([self.name, verb, *names, *(key for key, value in options.items() if value)]))
            return Recorder(f"{self.name}'", self.log)

        return record


def fake_cuda(log):
    names = iter(["arriving", "leaving"])

    @contextlib.contextmanager
    def stream(lane):
        log.append(f"in {lane.name}")
        yield
        log.append(f"out of {lane.name}")

    return SimpleNamespace(
        Stream=lambda device: Recorder(next(names), log), stream=stream, Event=lambda: Recorder("event", log),
        current_stream=lambda device: Recorder("computation", log),
    )  # fmt: skip


def test_the_streams_of_cuda_wait_for_each_other_and_keep_memory_until_it_was_read():
    log = []
    lanes = CudaCopyStreams(torch.device("cuda", 0), fake_cuda(log))
    rows, ticket = lanes.bring(Recorder("host rows", log))
    assert log == ["in arriving", "host rows to non_blocking", "event record arriving", "out of arriving"]
    log.clear()
    lanes.arrived(rows, ticket)
    assert log == ["computation wait_event event", "host rows' record_stream computation"]
    log.clear()
    lanes.send(Recorder("place", log), Recorder("band", log))
    assert log == [
        "leaving wait_stream computation", "in leaving", "place copy_ band non_blocking", "out of leaving",
        "band record_stream leaving",
    ]  # fmt: skip
    log.clear()
    lanes.wait()
    assert log == ["leaving synchronize"]


def test_bands_do_not_pile_up_on_the_device():
    log = []
    lanes = CudaCopyStreams(torch.device("cuda", 0), fake_cuda(log))
    asked = ["leaving wait_stream computation", "event record leaving"]
    lanes.next_band()
    lanes.next_band()
    assert log == [*asked, *asked]
    lanes.next_band()
    assert log == [*asked, *asked, *asked, "event synchronize"]
    lanes.wait()
    log.clear()
    lanes.next_band()
    assert log == asked, "a new pass waits for no band of the last one"


def full_decoder():
    with torch.device("meta"):
        return decoder_graph(AutoencoderKL(KlConfig()))


def test_host_memory_leaves_little_on_the_device_at_4096_px():
    device, graph, shape = torch.device("cuda", 0), full_decoder(), (1, 4, 512, 512)
    cost = predict(graph, host_plan(device, torch.float16), shape)
    stored = predict(graph, Plan("stream", device, torch.float16, None, 64 * MIB), shape)
    assert cost.peak_bytes < 1500 * MIB
    assert cost.host_bytes >= 768 * 4096**2
    assert stored.peak_bytes > 10 * cost.peak_bytes
    odd = predict(graph, host_plan(device, torch.float16), (1, 4, 320, 320)).host_bytes
    assert odd >= (4 << 30) + (2 << 30) > 768 * 2560**2, "pinned memory comes in powers of two"


def test_host_memory_is_only_planned_where_there_is_enough_of_it(monkeypatch):
    graph, shape, device = full_decoder(), (1, 4, 512, 512), torch.device("cuda", 0)
    kinds = [plan.kind for plan in PlanSearch(graph, shape, torch.float16, device).candidates(0)]
    assert kinds[-2:] == ["stream-host", "stream-host"]
    ram = {"cpu": 64 << 30}

    def free(device):
        return free_ram().__class__(ram.get(device.type, 1 << 30), "a test")

    monkeypatch.setattr("sd_vae_kit.core.plan.planner.free_memory", free)
    choice = choose_plan(graph, shape, torch.float16, device)
    assert (choice.plan.kind, choice.fits) == ("stream-host", True)
    ram["cpu"] = 8 << 30
    choice = choose_plan(graph, shape, torch.float16, device)
    assert (choice.plan.kind, choice.fits) == ("stream-lean", False)
