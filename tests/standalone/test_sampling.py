"""Schedule, noise and the Euler sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sd_vae_kit.errors import OptionError
from sd_vae_kit.standalone.gaussian_mixture import GaussianMixtureDenoiser
from sd_vae_kit.standalone.sampling import (
    karras_sigmas,
    sample_euler,
    sigmas_for_denoising,
    starting_noise,
)

SHAPE = (4, 8, 8)


@pytest.fixture
def denoiser() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(starting_noise([11, 12, 13], SHAPE))


def sample(denoiser: GaussianMixtureDenoiser, seeds: list[int], steps: int = 12) -> Tensor:
    sigmas = karras_sigmas(steps)
    return sample_euler(denoiser.denoise, starting_noise(seeds, SHAPE) * sigmas[0].item(), sigmas)


def test_schedule_falls_from_the_largest_noise_to_zero() -> None:
    sigmas = karras_sigmas(10, 0.03, 14.6)
    assert len(sigmas) == 11
    assert_close(sigmas[[0, 9, 10]], torch.tensor([14.6, 0.03, 0.0], dtype=torch.float64))
    assert (sigmas.diff() < 0).all()
    middle = (14.6 ** (1 / 7) + 4 / 9 * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7  # Karras et al., equation 5
    assert sigmas[4].item() == pytest.approx(middle)


def test_one_step_is_enough_and_none_is_refused() -> None:
    assert_close(karras_sigmas(1, 0.03, 14.6), torch.tensor([14.6, 0.0], dtype=torch.float64))
    with pytest.raises(OptionError, match="at least 1 step, not 0"):
        karras_sigmas(0)


@pytest.mark.parametrize(("denoising", "steps"), [(0.0, 1), (0.4, 9), (0.5, 11), (1.0, 20)])
def test_img2img_runs_the_end_of_the_schedule(denoising: float, steps: int) -> None:
    sigmas = karras_sigmas(20)
    assert_close(sigmas_for_denoising(sigmas, denoising), sigmas[20 - steps :])


def test_a_denoising_strength_outside_its_range_is_refused() -> None:
    with pytest.raises(OptionError, match=r"1\.5; choose a value from 0 to 1"):
        sigmas_for_denoising(karras_sigmas(20), 1.5)


def test_euler_follows_the_exact_path_of_a_gaussian() -> None:
    """For one Gaussian of variance s^2 the ODE's solution is known: x scales with sqrt(s^2 + sigma^2)."""
    s, start = 0.5, 10.0
    x = starting_noise([0], SHAPE).double() * start
    sigmas = torch.cat([torch.linspace(start**0.2, 0, 2001, dtype=torch.float64) ** 5])
    result = sample_euler(lambda x, sigma: x * s**2 / (s**2 + sigma**2), x, sigmas)
    assert_close(result, x * s / (s**2 + start**2) ** 0.5, rtol=5e-3, atol=0)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(denoiser: GaussianMixtureDenoiser) -> None:
    first, again, other = sample(denoiser, [5]), sample(denoiser, [5]), sample(denoiser, [6])
    assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().mean() > 0.1


def test_a_picture_does_not_depend_on_its_batch(denoiser: GaussianMixtureDenoiser) -> None:
    batch = sample(denoiser, [5, 6, 7])
    for index, seed in enumerate((5, 6, 7)):
        assert_close(batch[index : index + 1], sample(denoiser, [seed]), rtol=0, atol=1e-6)


def test_noise_has_unit_variance_and_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    noise = starting_noise([1, 2], (4, 64, 64))
    assert_close(torch.rand(3), expected)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise[0] - noise[1]).abs().mean() > 0.5


def test_the_callback_sees_every_step_before_the_latent_moves(denoiser: GaussianMixtureDenoiser) -> None:
    seen: list[tuple[int, int, Tensor, Tensor]] = []

    def record(step: int, total: int, x: Tensor, denoised: Tensor) -> bool:
        seen.append((step, total, x, denoised))
        return True

    sigmas = karras_sigmas(6)
    start = starting_noise([1], SHAPE) * sigmas[0].item()
    result = sample_euler(denoiser.denoise, start, sigmas, record)
    assert [(step, total) for step, total, _, _ in seen] == [(step, 6) for step in range(6)]
    assert_close(seen[0][2], start, rtol=0, atol=0)
    assert_close(seen[0][3], denoiser.denoise(start, sigmas[0].item()))
    assert_close(result, seen[-1][3])  # the last step goes to sigma 0, where x is the denoised estimate


def test_an_interrupted_job_returns_the_latest_estimate(denoiser: GaussianMixtureDenoiser) -> None:
    estimates: list[Tensor] = []

    def stop_at_third(step: int, total: int, x: Tensor, denoised: Tensor) -> bool:
        estimates.append(denoised)
        return step < 2

    sigmas = karras_sigmas(10)
    result = sample_euler(denoiser.denoise, starting_noise([1], SHAPE) * sigmas[0].item(), sigmas, stop_at_third)
    assert len(estimates) == 3
    assert_close(result, estimates[-1], rtol=0, atol=0)


def test_sampling_leaves_the_starting_latent_alone(denoiser: GaussianMixtureDenoiser) -> None:
    x = starting_noise([1], SHAPE)
    before = x.clone()
    sample_euler(denoiser.denoise, x, karras_sigmas(4, 0.03, 1.0))
    assert_close(x, before, rtol=0, atol=0)
