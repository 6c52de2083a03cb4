"""Noise schedule, starting noise and the Euler sampler of the stand-alone app's demo model.

The same arithmetic as k-diffusion's `get_sigmas_karras` and `sample_euler` (Karras et al. 2022, arXiv 2206.00364,
equation 5 and algorithm 1 without the second-order correction and without churn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sd_vae_kit.errors import OptionError

SIGMA_MIN = 0.0291675  # first and last noise level of Stable Diffusion 1's training schedule
SIGMA_MAX = 14.614642

Denoise = Callable[[Tensor, float], Tensor]
StepCallback = Callable[[int, int, Tensor, Tensor], bool]


def karras_sigmas(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, *, rho: float = 7.0
) -> Tensor:
    """Noise levels from `sigma_max` down to `sigma_min`, then 0: (steps + 1,) float64.

    `rho` bends the schedule: the larger, the more of the steps are spent at low noise.  A single step goes from
    `sigma_max` to 0.
    """
    if steps < 1:
        raise OptionError(f"Sampling needs at least 1 step, not {steps}; choose 20 for a good picture.")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def sigmas_for_denoising(sigmas: Tensor, denoising: float) -> Tensor:
    """The end of the schedule that img2img runs: `int(denoising * steps)` steps and one more, as in A1111's samplers.

    Args:
        sigmas: (steps + 1,) from `karras_sigmas`.
        denoising: In [0, 1]; 0 keeps all but the last trace of the picture, 1 runs the whole schedule.
    """
    if not 0 <= denoising <= 1:
        raise OptionError(f"Denoising strength is {denoising}; choose a value from 0 to 1.")
    steps = len(sigmas) - 1
    # A1111 modules/sd_samplers_common.py setup_img2img_steps: t_enc = int(min(strength, 0.999) * steps), and
    # modules/sd_samplers_kdiffusion.py sample_img2img: sigmas[steps - t_enc - 1:]
    return sigmas[steps - int(min(denoising, 0.999) * steps) - 1 :]


def starting_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """White noise of unit variance, (len(seeds), C, h, w) float32 on the CPU.

    Every picture has a generator of its own, so a seed gives the same picture alone or in a batch, on any device.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: StepCallback | None = None) -> Tensor:
    """Follow the probability-flow ODE from `sigmas[0]` to 0 with Euler steps.

    Args:
        denoise: (x, sigma) -> estimate of the clean latent, of x's shape.
        x: (B, C, h, w), clean latent (nothing for txt2img) plus `sigmas[0]` times white noise; never written to.
        sigmas: (steps + 1,), falling, the last one 0.
        callback: Called in every step with (step from 0, steps, x, denoised), before x moves, as in k-diffusion; False
            stops the work.

    Returns:
        (B, C, h, w): the clean latent.  If the callback stopped the work, the latest denoised estimate: an interrupted
        job still yields a picture, as in the web UIs.  Whoever stopped it knows, so nothing is raised.
    """
    levels = sigmas.tolist()
    total = len(levels) - 1
    for step, (sigma, next_sigma) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigma)
        if callback is not None and not callback(step, total, x, denoised):
            return denoised
        x = denoised + (x - denoised) * (next_sigma / sigma)
    return x
