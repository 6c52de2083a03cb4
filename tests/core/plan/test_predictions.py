"""The cost model at the sizes people use, against the engine's own allocations counted without computing."""

import pytest
import torch
from counted_memory import META, Peak, without_computing

from sd_vae_kit.core.engine.stream import RunStats, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch, band_bytes_for, stream_plan, whole_plan
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.units import MIB

FULL, NARROW = NetConfig(), NetConfig(ch=32)


def plan_named(name, graph, shape, dtype):
    if name == "whole":
        return whole_plan(META, dtype)
    if name == "stream":
        return stream_plan(META, dtype, 16 * MIB)
    is_narrow = graph.shapes(shape[2:])[-2][0] < 100
    bands = band_bytes_for(graph, shape, dtype, 24 * MIB if is_narrow else 8 * MIB)
    return PlanSearch(graph, shape, dtype, META).lean(
        LeanLimits(extra={"lean": 0.4, "leanest": 3.0}[name], band_bytes=bands)
    )


SIZES = [
    (FULL, torch.float32, 256, 256, ("whole", "stream", "lean")),
    (FULL, torch.bfloat16, 512, 512, ("whole", "stream", "lean")),
    (FULL, torch.float32, 768, 768, ("stream", "lean")),
    (FULL, torch.bfloat16, 1024, 1024, ("whole", "stream", "lean")),
    (NARROW, torch.float32, 2048, 2048, ("stream", "lean")),
    (NARROW, torch.float32, 192, 1024, ("lean", "leanest")),
]


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize(
    ("config", "dtype", "height", "width", "name"), [(*size, name) for *size, names in SIZES for name in names], ids=str
)
def test_predictions_are_within_15_percent_at_any_size(config, dtype, height, width, name, part, monkeypatch):
    with META:
        vae = AutoencoderKL(KlConfig(encoder=config, decoder=config)).eval().to(dtype)
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    shape = (1, 4, height // 8, width // 8) if part == "decoder" else (1, 3, height, width)
    plan, stats = plan_named(name, graph, shape, dtype), RunStats()
    with without_computing(monkeypatch), Peak(vae) as peak:
        cost = predict(graph, plan, shape)
        y = run_streamed(graph, torch.empty(shape, dtype=dtype, device=META), plan, stats=stats)
    assert y.shape == ((1, 3, height, width) if part == "decoder" else (1, 8, height // 8, width // 8))
    assert stats.bands == cost.bands
    assert name == "whole" or stats.bands > len(graph.steps)
    assert cost.peak_bytes == pytest.approx(peak.peak, rel=0.15)
