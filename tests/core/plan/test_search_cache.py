"""Searches for plans are kept: the next picture of the same kind has its plan at once, and nothing else is kept."""

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from vae_zoo import small_vae

from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import NetConfig
from sd_vae_kit.core.plan import candidates
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.plan.devices import TRAITS
from sd_vae_kit.core.plan.planner import choose_plan
from sd_vae_kit.core.plan.search_cache import SEARCHES, SearchCache

CPU, FP32, SHAPE = torch.device("cpu"), torch.float32, (1, 4, 64, 48)


@pytest.fixture
def predicted(monkeypatch):
    """Every plan that is predicted."""
    plans = []
    SEARCHES.forget()
    monkeypatch.setattr(
        candidates, "predict", lambda graph, plan, shape: plans.append(plan) or predict(graph, plan, shape)
    )
    return plans


def choose(vae, shape=SHAPE, dtype=FP32, budget=1 << 20):
    return choose_plan(decoder_graph(vae), shape, dtype, CPU, budget)


def test_the_second_picture_has_its_plan_without_a_prediction(predicted):
    first = choose(small_vae())
    assert first.plan.kind == "stream-lean"
    assert len(predicted) > 20
    predicted.clear()
    again = choose(small_vae(seed=1))
    assert again.plan == first.plan
    assert predicted == [], "other weights, the same structure"


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (1, 4, 64, 56)},
        {"shape": (2, 4, 64, 48)},
        {"dtype": torch.float16},
        {"vae": small_vae(NetConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1))},
        {"vae": small_vae(quant=False)},
    ],
    ids=["width", "batch", "type", "channels", "layers"],
)
def test_what_differs_is_searched_for_anew(predicted, other):
    first = choose(small_vae())
    predicted.clear()
    found = choose(**{"vae": small_vae(), **other})
    assert predicted
    assert found.cost != first.cost


@pytest.mark.parametrize("order", [1, -1])
def test_every_budget_gets_the_plan_that_a_search_of_its_own_would_find(order):
    graph = decoder_graph(small_vae(NetConfig(ch=64, ch_mult=(1, 2, 2), num_res_blocks=1)))
    whole = choose_plan(graph, SHAPE, FP32, CPU, 1 << 40).whole.peak_bytes
    kept = PlanSearch(graph.outline(), SHAPE, FP32, CPU)
    seen = set()
    for share in [0.9, 0.6, 0.4, 0.3, 0.25, 0.2, 0.1][::order]:
        for extra in (0.4, 2.0):
            limits = LeanLimits(extra, int(share * whole), band_bytes=50_000)
            plan = kept.lean(limits)
            assert plan == PlanSearch(graph, SHAPE, FP32, CPU).lean(limits)
            seen.add(plan)
    assert len(seen) > 2


def test_a_kind_of_device_that_turns_out_otherwise_is_another(predicted, monkeypatch):
    choose(small_vae())
    predicted.clear()
    monkeypatch.setitem(TRAITS, "cpu", replace(TRAITS["cpu"], keeps_heap=False))
    choose(small_vae())
    assert predicted


def test_the_one_used_longest_ago_is_forgotten_first():
    cache, graph = SearchCache(most=2), decoder_graph(small_vae())

    def opened(height):
        with cache.opened(graph, (1, 4, height, 8), FP32, CPU) as search:
            return search

    first, second = opened(8), opened(16)
    assert opened(8) is first
    opened(24)
    assert len(cache) == 2
    assert opened(8) is first
    assert opened(16) is not second


def test_no_weights_are_kept():
    vae = small_vae()
    weights = weakref.ref(vae.decoder.conv_in.weight)
    choose(vae)
    del vae
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize("graph_of", [decoder_graph, encoder_graph])
def test_an_outline_has_the_sizes_and_costs_of_the_graph_and_no_module_of_it(graph_of):
    vae = small_vae()
    graph, own = graph_of(vae), {id(module) for module in vae.modules()}
    outline, shape = graph.outline(), (1, graph.channels_in, 32, 24)
    assert outline.shapes(shape[2:]) == graph.shapes(shape[2:])
    plan = PlanSearch(graph, shape, FP32, CPU).lean(LeanLimits(band_bytes=20_000))
    assert predict(outline, plan, shape) == predict(graph, plan, shape)
    held = [value for step in outline.steps for value in vars(step).values() if isinstance(value, nn.Module)]
    held += [conv.module for step in outline.steps for conv in (getattr(step, "conv", None),) if conv is not None]
    assert held
    assert not own & {id(module) for module in held}
    assert outline == graph_of(small_vae(seed=3)).outline()
    assert hash(outline) == hash(graph_of(small_vae(seed=3)).outline())


def test_threads_that_ask_at_once_get_the_same_plan():
    SEARCHES.forget()
    plans, start = [], threading.Barrier(4)

    def ask():
        start.wait()
        plans.append(choose(small_vae()).plan)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 4
    assert len(set(plans)) == 1
    assert len(SEARCHES) == 1
