"""The demo's diffusion model: the exact denoiser of a Gaussian mixture around a few photographs.

The latents it knows are y_i plus a random field: x_0 = y_i + n, where n is Gaussian with power spectrum S.  For such
data the best denoiser needs no network; it is known in closed form (Karras et al. 2022, arXiv 2206.00364, appendix B.3,
for points without spread).  With F the orthonormal two-dimensional Fourier transform,

    D(x, sigma) = sum_i w_i [ y_i + F^-1( S / (S + sigma^2) F(x - y_i) ) ],
    w_i ~ prior_i exp( -1/2 sum_k |F(x - y_i)_k|^2 / (S_k + sigma^2) ).

Because F is linear this is F^-1( G F(x) + (1 - G) sum_i w_i F(y_i) ) with the Wiener filter G = S / (S + sigma^2): what
has more power than the noise is taken from x, the rest from the photographs.

S follows the power of natural images, which falls with about the square of the frequency: D. J. Field, "Relations
between the statistics of natural images and the response properties of cortical cells", J. Opt. Soc. Am. A 4, 1987.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sd_vae_kit.errors import OptionError

FIELD_STD = 0.35  # latents of photographs have a standard deviation of about 1
FIELD_EXPONENT = 2.0
PREFERENCE_NATS = 200.0  # per matching word; pure noise prefers one photograph to another by some tens of nats
EMPHASIS = re.compile(r":\s*([0-9]*\.?[0-9]+)\s*[)\]]")
STOP_WORDS = frozenset("a an and at by for from in into its it of on or the to with".split())  # noqa: SIM905


def natural_spectrum(height: int, width: int, *, std: float = FIELD_STD, exponent: float = FIELD_EXPONENT) -> Tensor:
    """Power of each orthonormal Fourier coefficient, (height, width) float64, in the order of `torch.fft.fft2`.

    Args:
        height, width: Size of the latent in cells.
        std: Standard deviation of one latent value of the field; the mean of the spectrum is its square.
        exponent: Power falls as 1 / frequency^exponent; 2 for natural images, 0 is white noise.

    Returns:
        Positive everywhere; flat below one cycle per picture, where a power law would diverge.
    """
    vertical = torch.fft.fftfreq(height, dtype=torch.float64)
    horizontal = torch.fft.fftfreq(width, dtype=torch.float64)
    corner = 1.0 / max(height, width)
    squared = vertical[:, None].square() + horizontal.square() + corner**2  # (height, width), (cycles per cell)^2
    power = squared ** (-exponent / 2)
    spectrum: Tensor = power * (std**2 / power.mean())
    return spectrum


class GaussianMixtureDenoiser:
    """Posterior mean of a latent under a mixture of photographs, each with a random field of spectrum S around it.

    Everything is computed on the CPU in float64: the likelihood sums tens of thousands of squares, MPS has no float64,
    and for a few photographs it takes milliseconds.
    """

    def __init__(self, means: Tensor, *, log_prior: Tensor | None = None, spectrum: Tensor | None = None) -> None:
        """
        Args:
            means: (N, C, h, w) latents of the photographs as the sampler sees them.
            log_prior: (N,) in nats, up to a constant; uniform if `None`.
            spectrum: (h, w) or (C, h, w), positive; `natural_spectrum(h, w)` if `None`.
        """
        count, _, h, w = means.shape
        self.shape = tuple(means.shape[1:])
        self.spectrum = _double(natural_spectrum(h, w) if spectrum is None else spectrum)
        self.log_prior = torch.log_softmax(_double(torch.zeros(count) if log_prior is None else log_prior), dim=0)
        self._means_hat = torch.fft.fft2(_double(means), norm="ortho")

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Best estimate of the clean latent.

        Args:
            x: (B, C, h, w), clean latent plus `sigma` times white noise; never written to.
            sigma: 0 gives x back; infinity gives the prior's mean.

        Returns:
            (B, C, h, w) in x's dtype, on x's device.
        """
        x_hat = self._transform(x)
        gain = self.spectrum / (self.spectrum + sigma**2)
        weights = self._weights(x_hat, sigma).to(x_hat.dtype)
        expected = torch.einsum("bn,nchw->bchw", weights, self._means_hat)
        denoised = torch.fft.ifft2(gain * x_hat + (1 - gain) * expected, norm="ortho").real
        estimate: Tensor = denoised.to(x.device, x.dtype)
        return estimate

    def _transform(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise OptionError(
                f"The demo model was prepared for latents of shape {self.shape}, not {tuple(x.shape[1:])}; "
                "prepare one for this size."
            )
        x_hat: Tensor = torch.fft.fft2(_double(x), norm="ortho")
        return x_hat

    def _weights(self, x_hat: Tensor, sigma: float) -> Tensor:
        """(B, N) float64: how probable it is that x came from each photograph; each row sums to one."""
        variance = self.spectrum + sigma**2
        # One photograph at a time: (B, N, C, h, w) would be large for large pictures.
        energies = [((x_hat - mean).abs().square() / variance).sum(dim=(1, 2, 3)) for mean in self._means_hat]
        return torch.softmax(self.log_prior - 0.5 * torch.stack(energies, dim=1), dim=1)  # softmax is log-sum-exp safe


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def caption_prior(prompt: str, negative_prompt: str, captions: Sequence[str]) -> Tensor:
    """Log prior (N,) over the photographs from plain word matching.

    A caption scores the weights of the prompt's words that it contains, minus those of the negative prompt's; words are
    compared without case and plural "s", and each counts once.  "(cat:1.3)" counts 1.3, any other brackets are ignored.
    The photographs with the best score share the probability; every point less makes one e^200 times less likely, so
    that only a start picture that looks like it can bring it back.  An empty prompt, or one with no known word, is
    uniform.

    Args:
        prompt, negative_prompt: What the user typed, with the emphasis syntax of the web UIs.
        captions: One text per photograph: its caption and keywords.
    """
    wanted, unwanted = weighted_words(prompt), weighted_words(negative_prompt)
    scores = []
    for caption in captions:
        known = weighted_words(caption).keys()
        scores.append(_total(wanted, known) - _total(unwanted, known))
    return torch.log_softmax(PREFERENCE_NATS * torch.tensor(scores, dtype=torch.float64), dim=0)


def _total(weights: dict[str, float], known: Collection[str]) -> float:
    return sum(weight for word, weight in weights.items() if word in known)


def weighted_words(text: str) -> dict[str, float]:
    """The words of a prompt and their weights: "a (red cat:1.3), dogs" -> {"red": 1.3, "cat": 1.3, "dog": 1.0}."""
    words: dict[str, float] = {}
    for chunk, weight in _emphasised_chunks(text):
        for word in re.findall(r"[^\W\d_]+", chunk.lower()):
            if word not in STOP_WORDS:
                stem = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
                words[stem] = max(weight, words.get(stem, weight))
    return words


def _emphasised_chunks(text: str) -> list[tuple[str, float]]:
    """Pieces of the prompt with their weight; brackets may nest and the innermost weight counts."""
    chunks = []
    for piece in re.split(r"[(\[]", text):
        emphasis = EMPHASIS.search(piece)
        if emphasis is None:
            chunks.append((piece, 1.0))
        else:
            chunks += [(piece[: emphasis.start()], float(emphasis.group(1))), (piece[emphasis.end() :], 1.0)]
    return chunks
