"""The demo's denoiser against dense linear algebra, and the words that choose among its photographs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from sd_vae_kit.errors import OptionError
from sd_vae_kit.standalone.gaussian_mixture import (
    GaussianMixtureDenoiser,
    caption_prior,
    natural_spectrum,
    weighted_words,
)
from sd_vae_kit.standalone.sampling import karras_sigmas, sample_euler, starting_noise

CAPTIONS = ["a cat with green eyes", "a cup of coffee on a table", "a rocket on its launch pad at dusk"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_covariance(spectrum: Tensor) -> Tensor:
    """(h, w) power -> (h*w, h*w) covariance of the field in the plane, from the matrix of the Fourier transform."""
    h, w = spectrum.shape
    identity = torch.eye(h * w, dtype=torch.float64).view(h * w, h, w)
    F = torch.fft.fft2(identity, norm="ortho").flatten(1).T
    return (F.conj().T @ torch.diag(spectrum.flatten()).to(F.dtype) @ F).real


def brute_force(means: Tensor, log_prior: Tensor, spectrum: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Posterior mean and weights of one latent x (C, h, w), with matrices instead of Fourier transforms."""
    N, C = means.shape[:2]
    covariance = torch.block_diag(*[dense_covariance(spectrum)] * C)
    noisy = covariance + sigma**2 * torch.eye(covariance.shape[0], dtype=torch.float64)
    flat, point = means.flatten(1), x.flatten()
    logits = torch.stack([log_prior[i] + MultivariateNormal(flat[i], noisy).log_prob(point) for i in range(N)])
    weights = logits.softmax(0)
    estimates = torch.stack([flat[i] + covariance @ torch.linalg.solve(noisy, point - flat[i]) for i in range(N)])
    return (weights @ estimates).view_as(x), weights


def weights_of(denoiser: GaussianMixtureDenoiser, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """How probable the denoiser takes it to be that x came from each photograph."""
    return denoiser._weights(denoiser._transform(x), sigma)


@pytest.mark.parametrize("sigma", [0.05, 0.6, 3.0, 40.0])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_denoiser_is_the_posterior_mean_of_a_dense_gaussian_mixture(size: tuple[int, int], sigma: float) -> None:
    means, log_prior = 0.3 * draw(3, 2, *size), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    spectrum = natural_spectrum(*size)
    denoiser = GaussianMixtureDenoiser(means, log_prior=log_prior, spectrum=spectrum)
    x = means[:2] + sigma * draw(2, 2, *size, seed=1)
    denoised, weights = denoiser.denoise(x, sigma), weights_of(denoiser, x, sigma)
    for b in range(2):
        expected, expected_weights = brute_force(means, log_prior, spectrum, x[b], sigma)
        assert_close(denoised[b], expected, rtol=1e-9, atol=1e-9)
        assert_close(weights[b], expected_weights, rtol=1e-9, atol=1e-9)
    if sigma == 3.0:
        assert (weights > 0.01).all(), "the comparison needs a noise level at which every photograph counts"


def test_without_noise_the_latent_comes_back() -> None:
    denoiser = GaussianMixtureDenoiser(draw(3, 4, 8, 8))
    x = draw(2, 4, 8, 8, seed=1)
    assert_close(denoiser.denoise(x, 0.0), x)
    assert_close(denoiser.denoise(x, 1e-6), x, atol=1e-6, rtol=0)


def test_under_endless_noise_the_estimate_is_the_prior_mean() -> None:
    means, prior = draw(3, 4, 8, 8), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(means, log_prior=prior.log())
    expected = torch.einsum("n,nchw->chw", prior, means)
    for sigma in (1e8, float("inf")):
        assert_close(denoiser.denoise(1e3 * draw(1, 4, 8, 8, seed=1), sigma)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [1e-6, 0.03, 1.0, 14.6, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_weights_sum_to_one_and_nothing_overflows(sigma: float, scale: float) -> None:
    denoiser = GaussianMixtureDenoiser(draw(4, 4, 16, 16).float())
    x = (scale * draw(3, 4, 16, 16, seed=2)).float()
    weights = weights_of(denoiser, x, sigma)
    assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert denoiser.denoise(x, sigma).isfinite().all()


def test_the_estimate_has_the_dtype_of_the_latent_and_the_latent_is_not_written_to() -> None:
    denoiser = GaussianMixtureDenoiser(draw(2, 4, 8, 8))
    with torch.inference_mode():
        x = draw(1, 4, 8, 8, seed=1).half()
        before = x.clone()
        assert denoiser.denoise(x, 1.0).dtype == torch.float16
        assert_close(x, before)


def test_a_latent_of_another_size_is_refused_with_both_sizes() -> None:
    denoiser = GaussianMixtureDenoiser(draw(2, 4, 8, 8))
    with pytest.raises(OptionError, match=r"\(4, 8, 8\), not \(4, 8, 16\)"):
        denoiser.denoise(draw(1, 4, 8, 16), 1.0)


def test_spectrum_falls_with_the_square_of_frequency_and_has_the_asked_deviation() -> None:
    spectrum = natural_spectrum(64, 64, std=0.5)
    assert_close(spectrum.mean().sqrt().item(), 0.5)
    assert (spectrum > 0).all()
    assert spectrum.argmax() == 0
    assert spectrum[0, 8] / spectrum[0, 16] == pytest.approx(4, rel=0.02)
    assert_close(natural_spectrum(8, 8, exponent=0.0, std=0.2), torch.full((8, 8), 0.04, dtype=torch.float64))


# -- words ------------------------------------------------------------------------------------------------------------


def chosen(prompt: str, negative: str = "") -> list[float]:
    return [round(p, 3) for p in caption_prior(prompt, negative, CAPTIONS).exp().tolist()]


@pytest.mark.parametrize("prompt", ["", "   ", "masterpiece, 8k, best quality", "on a the of"])
def test_a_prompt_without_a_known_word_leaves_every_photograph_as_likely(prompt: str) -> None:
    assert chosen(prompt) == [0.333, 0.333, 0.333]


@pytest.mark.parametrize(
    ("prompt", "index"),
    [("a photo of a CAT", 0), ("cats", 0), ("Coffee!", 1), ("(rocket:1.2), cat", 2), ("((cup))", 1), ("[eye]", 0)],
)
def test_the_prompt_picks_the_photograph_whose_caption_has_its_words(prompt: str, index: int) -> None:
    assert chosen(prompt)[index] == 1.0


def test_two_photographs_that_match_as_well_share_the_probability() -> None:
    assert chosen("cat and coffee") == [0.5, 0.5, 0.0]


def test_the_negative_prompt_takes_photographs_away() -> None:
    assert chosen("", "cat") == [0.0, 0.5, 0.5]
    assert chosen("cat, coffee", "green") == [0.0, 1.0, 0.0]


def test_emphasis_is_read_and_unbalanced_brackets_are_tolerated() -> None:
    assert weighted_words("a (red cat:1.3), dogs") == {"red": 1.3, "cat": 1.3, "dog": 1.0}
    assert weighted_words("((nested:0.5) outer:2), glass") == {"nested": 0.5, "outer": 1.0, "glass": 1.0}
    assert weighted_words("(cat:1.3") == {"cat": 1.0}


def test_the_prompt_decides_what_is_sampled() -> None:
    means = draw(3, 4, 16, 16).float()
    for index, prompt in enumerate(("cat", "coffee", "rocket")):
        denoiser = GaussianMixtureDenoiser(means, log_prior=caption_prior(prompt, "", CAPTIONS))
        sigmas = karras_sigmas(8)
        x = starting_noise([3], (4, 16, 16)) * sigmas[0].item()
        result = sample_euler(denoiser.denoise, x, sigmas)[0]
        distances = (means - result).square().flatten(1).mean(1)
        assert distances.argmin() == index
