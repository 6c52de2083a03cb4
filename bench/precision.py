"""What it costs that no picture is black: `python -m bench.precision`.

A full-size VAE with random weights and its copy whose residual stream overflows fp16, which is the same function.  On a
GPU: the time and peak memory of plain fp16 (the sound one), of the guard where nothing overflows, of the first rescued
picture and of the next ones, and of A1111's way (the whole VAE converted to fp32 and decoded once more), in turns.
Without a GPU nothing is timed, since fp16 on a CPU says nothing about one: steps that were computed again are counted.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.swap import full_vae
from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.graph.from_module import decoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig, ResnetBlock
from sd_vae_kit.core.plan.candidates import stream_plan, whole_plan
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.run.precision import run_guarded
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.core.run.report import RunResult
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.units import MIB

FIRST_LIMIT, NEXT_LIMIT, PEAK_LIMIT = 1.3, 1.05, 1.1  # times plain half precision
SMALL = NetConfig(ch=64, ch_mult=(1, 2, 4, 4), num_res_blocks=1)


def overflowing(vae: AutoencoderKL, exponent: int) -> AutoencoderKL:
    """The same function with its decoder's residual stream 2**exponent times larger; norms cancel that."""
    large = copy.deepcopy(vae)
    decoder = large.decoder

    def scale(layer: nn.Module, *names: str) -> None:
        for name in names:
            getattr(layer, name).mul_(2.0**exponent)

    with torch.no_grad():
        scale(decoder.conv_in, "weight", "bias")
        scale(decoder.mid.attn_1.proj_out, "weight", "bias")
        for name, module in decoder.named_modules():
            if isinstance(module, ResnetBlock):
                scale(module.conv2, "weight", "bias")
                if hasattr(module, "nin_shortcut"):
                    scale(module.nin_shortcut, "bias")
            elif name.endswith("upsample.conv"):
                scale(module, "bias")
            elif isinstance(module, nn.GroupNorm) and not name.endswith("norm2"):
                module.eps *= 4.0**exponent
    return large


def guarded(
    vae: nn.Module, z: Tensor, plan: Plan, fixes: PrecisionFixes | None = None, policy: PrecisionPolicy | None = None
) -> RunResult:
    return run_guarded(decoder_graph(vae), z, plan, RunRequest(policy=policy or PrecisionPolicy()), fixes)


def a1111(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """modules/processing.py:625: decode, look, convert all, decode again; then back, so that it can be repeated."""
    with torch.no_grad():
        image = vae.decode(z)
        if bool(torch.isnan(image).any()):
            image = vae.float().decode(z.float())
            vae.half()
    return image


def seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(work: Callable[[], object]) -> float:
    """MiB above what was there before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def counted(pixels: int) -> None:
    """On the CPU: what is done again, by a small VAE."""
    torch.manual_seed(0)
    vae = AutoencoderKL(KlConfig(encoder=None, decoder=SMALL)).eval().requires_grad_(False)
    large = overflowing(vae, 17).half()
    z = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(0)).half()
    for plan in (whole_plan(z.device, z.dtype), stream_plan(z.device, z.dtype, 1 * MIB)):
        first = guarded(large, z, plan)
        following = guarded(large, z, plan, first.fixes)
        steps = first.report.steps
        print(f"{plan.kind}: {steps} steps; {first.report.precision}")
        print(f"  first picture: {first.report.steps_recomputed:.2f} steps computed again")
        print(f"  next pictures: {following.report.steps_recomputed:.2f}")
        print(f"  A1111's way: {steps} steps computed again, in fp32, for each picture until it is started again")
    print("not timed on CPU: fp16 there says nothing about a graphics card")


def timed(pixels: int, repeats: int) -> None:
    vae = full_vae(0)
    sound, large = copy.deepcopy(vae).half().cuda(), overflowing(vae, 17).half().cuda()
    z = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(0)).half().cuda()
    plan = whole_plan(z.device, z.dtype)
    known = guarded(large, z, plan).fixes
    works: dict[str, Callable[[], object]] = {
        "plain fp16 (sound VAE)": lambda: guarded(sound, z, plan, policy=PrecisionPolicy("never")),
        "guarded, nothing overflows": lambda: guarded(sound, z, plan),
        "first rescued picture": lambda: guarded(large, z, plan),
        "next rescued pictures": lambda: guarded(large, z, plan, known),
        "A1111's way": lambda: a1111(large, z),
    }
    for work in works.values():
        work()  # kernels are chosen the first time
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    base = statistics.median(times["plain fp16 (sound VAE)"])
    peaks = {name: peak(work) for name, work in works.items()}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, decode to {pixels} px, {repeats} repeats")
    for name, took in times.items():
        median, share = statistics.median(took), peaks[name] / peaks["plain fp16 (sound VAE)"]
        print(f"  {name}: {median * 1000:.1f} ms ({median / base:.2f}), peak {peaks[name]:.0f} MiB ({share:.2f})")
    print(f"  wanted: first <= {FIRST_LIMIT}, next <= {NEXT_LIMIT}, peak <= {PEAK_LIMIT}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, help="side of the picture; default 1024 on a GPU, 256 without")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    if torch.cuda.is_available():
        timed(options.pixels or 1024, options.repeats)
    else:
        counted(options.pixels or 256)


if __name__ == "__main__":
    main(sys.argv[1:])
