"""Previews beside the sampling: newest wins, one at a time, bounded, harmless."""

import gc
import threading
import time
import weakref

import pytest
import torch

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import tiny_decoder
from sd_vae_kit.core.preview import Previewer
from sd_vae_kit.core.preview_worker import Budget, Previews, PreviewTiming
from sd_vae_kit.standalone.sampling import karras_sigmas, sample_euler


def latent_of(value, size=4):
    return torch.full((1, 4, size, size), float(value))


class Slow:
    """A renderer that is held up until it is released; notes what it was given and by which threads."""

    def __init__(self):
        self.seen, self.threads, self.running, self.most = [], set(), 0, 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, latent):
        self.running += 1
        self.most = max(self.most, self.running)
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.go_on.wait(10)
        self.seen.append(float(latent.mean()))
        self.running -= 1
        return self.seen[-1]


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def test_rendering_is_done_by_another_thread_one_at_a_time_and_the_newest_wins():
    slow, shown = Slow(), []
    with Previews(slow, shown.append, PreviewTiming(share=1.0)) as previews:
        previews.offer(latent_of(0))
        assert slow.begun.wait(10)
        for step in range(1, 50):
            previews.offer(latent_of(step))  # returns at once, though nothing can be rendered now
        assert shown == []
        slow.go_on.set()
        until(lambda: len(shown) == 2)
    assert shown == [0.0, 49.0]
    assert slow.most == 1
    assert slow.threads == {"vae-kit-preview"}
    assert previews.rendered == 2


def test_the_latent_may_be_changed_as_soon_as_offer_has_returned():
    slow, shown = Slow(), []
    latent = latent_of(7)
    with Previews(slow, shown.append, PreviewTiming(share=1.0)) as previews:
        previews.offer(latent)
        latent.fill_(-1)
        slow.go_on.set()
        until(lambda: shown)
    assert shown == [7.0]


def test_a_latent_of_inference_mode_is_copied_into_an_ordinary_one():
    given = []
    with torch.inference_mode():
        latent = latent_of(5)
    with Previews(given.append, print, PreviewTiming(beside=False)) as previews:
        previews.offer(latent)
    assert not given[0].is_inference()
    assert torch.equal(given[0], latent_of(5))


def vicious(latent):
    """A renderer that writes into whatever it is given."""
    return latent.mul_(0).sub_(3).mean()


def sampled(previews):
    torch.manual_seed(0)
    weight = torch.randn(4, 4) * 0.3

    def denoise(x, sigma):
        return torch.einsum("oc,bchw->bohw", weight, x).tanh()

    def callback(step, steps, x, denoised):
        if previews is not None:
            previews.offer(denoised)
            if step % 10 == 0:
                until(lambda: previews.rendered > step // 10)  # let the other thread in
        return True

    return sample_euler(denoise, torch.randn(2, 4, 16, 16) * 14, karras_sigmas(40), callback)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("method", ["taesd", "linear", "vicious"])
def test_the_picture_is_bit_equal_with_and_without_previews(beside, method):
    decoder = tiny_decoder(4, 8).eval().requires_grad_(False)
    render = vicious if method == "vicious" else Previewer(FORMATS["sd1"], method, 256, decoder)
    shown = []
    with Previews(render, shown.append, PreviewTiming(share=1.0, beside=beside)) as previews:
        with_previews = sampled(previews)
    assert shown, "there were none, so this proved nothing"
    assert torch.equal(with_previews, sampled(None))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("where", ["render", "show"])
def test_nothing_that_fails_reaches_the_sampler(beside, where, caplog):
    calls = []

    def fail(argument):
        calls.append(argument)
        raise RuntimeError("CUDA error: out of memory")

    render, show = (fail, calls.append) if where == "render" else (torch.Tensor.sum, fail)
    with Previews(render, show, PreviewTiming(share=1.0, beside=beside)) as previews:
        for step in range(5):
            previews.offer(latent_of(step))
            until(lambda step=step: beside or len(calls) == step + 1)
        until(lambda: calls)
    assert previews.failure == "CUDA error: out of memory"
    assert previews.rendered == 0
    assert [record.message for record in caplog.records] == ["No preview: CUDA error: out of memory"]


def test_a_latent_that_cannot_be_copied_costs_only_the_preview():
    class Huge:
        is_cuda = False

        def detach(self):
            raise MemoryError("no room")

    with Previews(torch.Tensor.sum, lambda picture: None) as previews:
        previews.offer(Huge())
    assert previews.failure == "no room"


def test_a_budget_keeps_previews_below_their_share():
    """By its own clock: previews of 0.1 s at 20 % may begin every half second."""
    budget, now, begun = Budget(0.2, expected=0.1), 0.0, []
    while now < 10:
        if budget.wait(now) == 0:
            begun.append(now)
            budget.took(0.1)
            now += 0.1
        else:
            now += 0.01
    assert budget.spent <= 0.2 * 10 + 1e-9
    assert len(begun) == pytest.approx(20, abs=1)
    assert begun[0] == pytest.approx(0.5, abs=0.02), "the first one waits, too, if its time is known"
    assert Budget(1.0, 5.0).wait(0.0) == 0


@pytest.mark.parametrize("beside", [True, False])
def test_offers_that_come_too_soon_are_passed_over(beside):
    shown = []

    def render(latent):
        time.sleep(0.03)
        return float(latent.mean())

    with Previews(render, shown.append, PreviewTiming(share=0.1, beside=beside)) as previews:
        started = time.perf_counter()
        while time.perf_counter() - started < 0.9:
            previews.offer(latent_of(time.perf_counter() - started))
            time.sleep(0.005)
        wall = time.perf_counter() - started
        spent, longest = previews.budget.spent, max(0.03, previews.budget.expected)
    assert 1 <= len(shown) < 0.9 / 0.03 / 3
    # but for the first one, whose time nobody knew, and what a later one took longer than the one before it
    assert spent <= 0.1 * wall + 0.03 * 2 + longest


def test_on_demand_nothing_is_rendered_until_somebody_asks():
    shown = []
    with Previews(
        lambda latent: float(latent.mean()), shown.append, PreviewTiming(share=1.0, on_demand=True)
    ) as previews:
        assert not previews.ask(0.05), "there is nothing yet"
        until(lambda: previews._is_asked)
        previews._is_asked = False
        for step in range(5):
            previews.offer(latent_of(step))
        time.sleep(0.02)
        assert shown == []
        assert previews.ask(5.0)
        assert shown == [4.0]
        assert previews.ask(5.0), "no newer one: the last one holds"
        assert shown == [4.0]


def test_asking_does_not_wait_for_a_budget_that_is_used_up():
    shown = []
    with Previews(
        lambda latent: time.sleep(0.05) or 1.0, shown.append, PreviewTiming(share=0.01, on_demand=True)
    ) as previews:
        previews.offer(latent_of(1))
        assert previews.ask(5.0)
        previews.offer(latent_of(2))
        started = time.perf_counter()
        assert not previews.ask(5.0)
        assert time.perf_counter() - started < 4
    assert len(shown) == 1


@pytest.mark.parametrize("beside", [True, False])
def test_until_the_budget_allows_the_first_picture_there_are_sketches(beside):
    """Then none any more, and all that was spent counts."""
    shown, made = [], threading.Event()

    def render(latent):
        time.sleep(0.05)
        made.set()
        return "picture"

    options = {"share": 0.5, "beside": beside, "expected": 0.1}
    with Previews(render, shown.append, PreviewTiming(**options), lambda latent: "sketch") as previews:
        until(lambda: previews.offer(latent_of(1)) or time.sleep(0.005) or made.is_set())
        until(lambda: previews.offer(latent_of(1)) or time.sleep(0.005) or shown.count("picture") > 1)
    first = shown.index("picture")
    assert first > 0
    assert set(shown[:first]) == {"sketch"}
    assert set(shown[first:]) == {"picture"}
    assert previews.budget.spent >= 0.1
    assert previews.budget.expected == pytest.approx(0.05, abs=0.04)


def test_a_renderer_is_told_how_long_it_may_take():
    with Previews(torch.Tensor.sum, print, PreviewTiming(share=0.25)) as previews:
        previews._started -= 10.0
        previews._offers = 20  # half a second per step
        assert previews.goal == pytest.approx(0.25 * 0.5 * 8, rel=0.05)
        previews._offers = 100_000
        assert previews.goal == 0.02
        previews._offers = 1
        assert previews.goal == 1.0
    with Previews(torch.Tensor.sum, print, PreviewTiming(share=1.0)) as previews:
        assert previews.goal == float("inf")


def test_after_the_job_nothing_of_it_is_kept_and_nothing_is_shown():
    slow, shown = Slow(), []
    previews = Previews(slow, shown.append, PreviewTiming(share=1.0))
    previews.offer(latent_of(1))
    assert slow.begun.wait(10)
    previews.offer(latent_of(2))
    threading.Timer(0.05, slow.go_on.set).start()
    held = weakref.ref(slow)
    previews.close()
    assert shown == []
    until(lambda: not previews._thread.is_alive())
    previews.offer(latent_of(3))
    assert previews._waiting is None
    del slow
    gc.collect()
    assert held() is None


def test_memory_is_flat_over_200_previews():
    """Not one tensor, picture or thread more after 200 previews than after 20."""
    decoder = tiny_decoder(4, 8).eval().requires_grad_(False)
    shown = []

    def show(picture):
        shown[:] = [picture]

    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()), threading.active_count()

    counts = []
    with Previews(Previewer(FORMATS["sd1"], "taesd", 256, decoder), show, PreviewTiming(share=1.0)) as previews:
        for step in range(1, 201):
            previews.offer(torch.randn(1, 4, 12, 12))
            until(lambda step=step: previews.rendered == step)
            if step in (20, 200):
                until(lambda: not previews._is_rendering)
                counts.append(alive())
    assert previews.rendered == 200
    assert counts[0] == counts[1]
    until(lambda: not previews._thread.is_alive())
    assert alive()[1] == counts[0][1] - 1
