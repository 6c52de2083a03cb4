"""VAEs that overflow half precision, at every place: finite, as exact as a sound VAE in half precision."""

import copy
from collections import Counter

import pytest
import torch
from overflow_zoo import (
    CASES,
    CPU,
    FULL,
    HALF,
    HALF_MAX,
    WHERE,
    Case,
    base_vae,
    case,
    check,
    levels,
    narrow_plan,
    rescued,
    rms,
    room,
    rows_above,
    spiked,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vae_files import amplify_stream, attention_sums_in_half, needs_half, needs_half_reflection, scale
from vae_zoo import CastingConv, picture, recast, set_padding_mode

from sd_vae_kit.core.engine.overflow import RangeGuard
from sd_vae_kit.core.engine.ranges import PrecisionFixes, Ranges
from sd_vae_kit.core.engine.stream import Plan, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.plan.schedule import make_schedule, must_be_stored
from sd_vae_kit.core.run.precision import run_guarded
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile

SEEDS = range(4)  # errors are pooled: of one small picture a few pixels decide
PARTS = ("decoder", "encoder")
pytestmark = needs_half


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", CASES)
def test_an_overflow_costs_no_accuracy_and_little_work(place, part, where):
    errors, plain = [], []
    for seed in SEEDS:
        found = case(place, part, where, seed)
        reference = found.forward("twin", FULL)
        torch.testing.assert_close(found.forward("overflowing", FULL), reference, rtol=0, atol=1e-3 * rms(reference))
        assert not bool(torch.isfinite(found.forward("overflowing", HALF)).all()), "it must overflow without us"
        done, _ = rescued(found)
        assert bool(torch.isfinite(done.tensor).all())
        errors.append(rms(done.tensor.float() - reference) / rms(reference))
        plain.append(rms(found.forward("twin", HALF).float() - reference) / rms(reference))
        assert {name for name, _ in done.report.rescued} == {found.step}
        assert 0 < done.report.steps_recomputed < 0.5
        if place in ("stream", "inner", "query"):
            assert (done.report.steps_fp32, done.report.steps_shifted > 0) == (0, True)
        else:
            assert (done.report.steps_fp32, done.report.steps_shifted) == (1, 0)
    # 1.105 was seen with the half-precision kernels of torch 2.3
    limit = 1.15 if attention_sums_in_half() else 1.1
    assert rms(torch.tensor(errors)) <= limit * rms(torch.tensor(plain))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("part", PARTS)
def test_a_block_that_is_written_over_its_input_recovers_wherever_it_fails(part, where):
    found, four_rows = case("stream", part, where), narrow_plan(band_bytes=10_500)
    graph = found.graph()
    schedule = make_schedule(graph, four_rows, (found.x.shape[2], found.x.shape[3]))
    sweep = next(sweep for sweep in schedule if graph.steps[sweep.node - 1].name == found.step)
    assert sweep.over is not None, "this step is not in place"
    tops = [top for top, _ in sweep.bands]
    assert len(tops) >= 5
    done, bands = rescued(found, plan=four_rows)
    assert len(done.report.rescued) == 1
    step, first_row = done.report.rescued[0]
    failed = tops.index(first_row)
    assert (step, min(failed, 1) + (failed == len(tops) - 1)) == (found.step, WHERE.index(where))
    assert done.fixes.shifts == {found.step: 4}
    assert done.report.steps_recomputed == pytest.approx(1 / len(tops))
    assert bands > 3 * len(graph.steps)
    check(found, done)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", CASES)
def test_the_next_picture_pays_nothing(place, part, tmp_path):
    found = case(place, part, "middle")
    first, _ = rescued(found)
    PrecisionFixesFile(tmp_path / "needs.json").put("abc", part, first.fixes)
    second, _ = rescued(found, PrecisionFixesFile(tmp_path / "needs.json").get("abc", part))
    assert (second.report.steps_recomputed, second.report.rescued) == (0, ())
    assert second.fixes == first.fixes
    assert (second.report.steps_shifted, second.report.steps_fp32) == (
        first.report.steps_shifted, first.report.steps_fp32,
    )  # fmt: skip
    reference = found.forward("twin", FULL)
    plain = rms(found.forward("twin", HALF).float() - reference)
    assert rms(second.tensor.float() - reference) <= 1.3 * plain  # one picture: see SEEDS


@pytest.mark.parametrize("part", PARTS)
def test_a_value_that_no_norm_reads_is_seen_before_it_is_used(part):
    """What an up- or down-sampling convolution reads: the end of a level."""
    twin, x = base_vae(), spiked(part, "middle")
    level = getattr(twin, part).up[1].block[1] if part == "decoder" else getattr(twin, part).down[0].block[0]
    name = f"{part}.{'up.1.block.1' if part == 'decoder' else 'down.0.block.0'}.conv2"
    scale(level.conv2, 6)
    found = stream_from(twin, part, x, name)
    done, _ = rescued(found)
    assert {step for step, _ in done.report.rescued} == {name}
    assert done.report.steps_fp32 == 0
    check(found, done)


def stream_from(twin: nn.Module, part: str, x: torch.Tensor, name: str) -> Case:
    """The stream leaves the range at this step first."""
    found = levels(twin, part, x)
    order = list(found)
    before = max(float(found[step].max()) for step in order[: order.index(name)])
    exponent = room(max(before, float(found[name].max()) / 4))
    overflowing = copy.deepcopy(twin)
    amplify_stream(overflowing, part, exponent)
    return Case(part, overflowing, twin, x, name, rows_above(found[name], exponent))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", CASES)
def test_the_whole_picture_at_once_is_guarded_too(place, part):
    found = case(place, part, "middle")
    done, bands = rescued(found, plan=Plan("whole", CPU, HALF))
    assert bands == len(found.graph().steps)
    assert done.report.rescued
    check(found, done)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", ["stream", "inner"])
def test_values_that_are_computed_again_instead_of_stored_are_repaired_where_they_are_read(place, part):
    found = case(place, part, "middle")
    stored = must_be_stored(found.graph())
    done, _ = rescued(found, plan=narrow_plan(stored=stored))
    assert done.report.rescued
    assert done.report.steps_fp32 == 0
    check(found, done)


@pytest.mark.parametrize("kind", ["casting", "circular", pytest.param("reflect", marks=needs_half_reflection)])
@pytest.mark.parametrize("place", CASES)
def test_layers_that_have_to_be_called_are_rescued_too(place, kind):
    """Hosts' casting layers and seamless padding: what enters is scaled, and the bias corrected."""
    found = copy.deepcopy(case(place, "decoder", "middle"))
    for vae in (found.overflowing, found.twin):
        if kind == "casting":
            recast(vae, CastingConv)
        else:
            set_padding_mode(vae, kind)
    CastingConv.calls = 0
    done, _ = rescued(found)
    assert kind != "casting" or CastingConv.calls > 100
    assert done.report.rescued
    check(found, done, 1.4)


def test_a_backend_that_clamps_instead_of_overflowing_is_seen():
    class ClampingConv(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).nan_to_num(posinf=HALF_MAX, neginf=-HALF_MAX).clamp(-HALF_MAX, HALF_MAX)

    found = copy.deepcopy(case("inner", "decoder", "middle"))
    recast(found.overflowing, ClampingConv)
    unguarded = run_streamed(found.graph(), found.x.half(), narrow_plan())
    reference = found.forward("twin", FULL)
    assert bool(torch.isfinite(unguarded).all()), "clamped: finite, but wrong"
    assert rms(unguarded.float() - reference) > 5 * rms(found.forward("twin", HALF).float() - reference)
    done, _ = rescued(found)
    assert done.report.steps_shifted == 1
    check(found, done)


class Reads(TorchDispatchMode):
    """Counts, for each operation, the numbers it reads from its tensor arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        sizes = [a.numel() for a in args if isinstance(a, torch.Tensor)]
        if sizes and "view" not in name and name not in ("slice", "detach", "empty_like", "select"):
            self.read[name] += sum(sizes)
        return func(*args, **(kwargs or {}))


def test_the_guard_reads_no_activation_once_more_than_the_run_does():
    """Only values without a norm's statistics are looked at, band by band: the result, the ends of levels, tokens."""
    vae = base_vae()
    graph = decoder_graph(copy.deepcopy(vae).half())
    x = picture(4, 24, 16).half()
    with Reads() as without:
        run_streamed(graph, x, narrow_plan())
    guard = RangeGuard(graph, x, HALF, Ranges(graph))
    with Reads() as guarded:
        run_streamed(graph, x, narrow_plan(), guard=guard)
    more = guarded.read - without.read
    shapes = graph.shapes((24, 16))
    normed = {step.source for step in graph.steps if step.norm is not None}
    unnormed = [c * h * w for i, (c, h, w) in enumerate(shapes) if i > 0 and i not in normed]
    attention = next(step.source for step in graph.steps if step.name == "decoder.mid.attn_1")
    tokens = 3 * shapes[attention][0] * shapes[attention][1] * shapes[attention][2]
    assert more["aminmax"] == sum(unnormed) + tokens
    assert set(more) - {"aminmax"} <= {
        "stack",
        "_to_copy",
        "abs",
        "add",
        "mul",
        "sqrt",
        "lt",
        "all",
        "unbind",
        "_local_scalar_dense",
    }
    channels_only = sum(count for name, count in more.items() if name != "aminmax")
    everything = sum(c * h * w for c, h, w in shapes)
    assert channels_only < everything / 2, "numbers per channel and band, not per pixel"
    assert len(unnormed) == 3  # post_quant_conv, the end of the level before the upsampling, the picture


def test_known_needs_that_are_not_needed_do_no_harm():
    vae = base_vae()
    graph, x = decoder_graph(copy.deepcopy(vae).half()), picture(4, 16, 12)
    fixes = PrecisionFixes(
        {"decoder.conv_in": 4, "decoder.mid.attn_1.query": 4, "decoder.mid.attn_1.value": 4, "gone": 8}, {"x"}
    )
    done = run_guarded(graph, x.half(), narrow_plan(), fixes=fixes)
    with torch.no_grad():
        reference = vae.decode(x)
        plain = copy.deepcopy(vae).half().decode(x.half())
    assert rms(done.tensor.float() - reference) <= 1.2 * rms(plain.float() - reference)
    assert done.report.steps_recomputed == 0
    assert done.report.steps_shifted > 5


def test_values_of_attention_may_overflow_too():
    found_twin, x = base_vae(), spiked("decoder", "middle")
    attention = found_twin.decoder.mid.attn_1
    overflowing = copy.deepcopy(found_twin)
    scale(overflowing.decoder.mid.attn_1.v, 15)
    with torch.no_grad():
        overflowing.decoder.mid.attn_1.proj_out.weight.copy_((attention.proj_out.weight * 2.0**-9).half().float())
        attention.proj_out.weight.copy_(overflowing.decoder.mid.attn_1.proj_out.weight)
    scale(attention.v, 15)
    scale(attention.v, -6)
    with torch.no_grad():
        attention.proj_out.weight.mul_(2.0**6)
    found = Case("decoder", overflowing, found_twin, x, "decoder.mid.attn_1", (0, 0))
    assert not bool(torch.isfinite(found.forward("overflowing", HALF)).all())
    done, _ = rescued(found)
    assert done.fixes.shifts["decoder.mid.attn_1.value"] > 0
    # where the kernel itself leaves the range, fp32 is right
    assert done.report.steps_fp32 == int(attention_sums_in_half())
    check(found, done)


def test_a_network_without_norms_carries_exponents_through_its_relus():
    torch.manual_seed(0)
    twin = TinyAutoencoder(TinyConfig(4)).eval().half().float()
    overflowing = copy.deepcopy(twin)
    convs = [module for module in overflowing.decoder.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for i, conv in enumerate(convs[:-1]):
            conv.weight.mul_(2.0**17 if i == 0 else 1.0)
            if conv.bias is not None:
                conv.bias.mul_(2.0**17)
        convs[-1].weight.copy_((convs[-1].weight * 2.0**-12).half().float())
        last = [module for module in twin.decoder.modules() if isinstance(module, nn.Conv2d)][-1]
        last.weight.copy_(convs[-1].weight * 2.0**17)
    x = picture(4, 12, 10) * 2
    graph = decoder_graph(copy.deepcopy(overflowing).half())
    with torch.no_grad():
        reference = twin.decode(x.half().float())
        plain = copy.deepcopy(twin).half().decode(x.half())
        assert not bool(torch.isfinite(copy.deepcopy(overflowing).half().decode(x.half())).all())
    done = run_guarded(graph, x.half(), narrow_plan())
    assert done.report.steps_fp32 == 0
    assert done.report.steps_shifted > 5
    assert rms(done.tensor.float() - reference) <= 1.2 * rms(plain.float() - reference)
