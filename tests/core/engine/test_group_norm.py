"""Statistics gathered band by band: as good as float64 on the whole, where naive formulas are not."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sd_vae_kit.core.engine.group_norm import BandMoments, Moments, affine, band_moments, scale_and_shift

CPU = torch.device("cpu")


def is_finite(moments: BandMoments) -> bool:
    return bool(torch.isfinite(moments.host).all())


def gathered(x: Tensor, cuts: list[int]) -> Moments:
    moments = Moments()
    edges = [0, *sorted(cuts), x.shape[2]]
    for top, bottom in itertools.pairwise(edges):
        if bottom > top:
            moments.add(band_moments(x[:, :, top:bottom]))
    return moments


def test_mean_a_hundred_times_the_deviation_keeps_four_digits_of_variance():
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(1, 32, 256, 256, generator=generator) + 100).to(memory_format=torch.channels_last)
    mean, variance = gathered(x, [64, 128]).per_group(8)
    wide = x.double().reshape(8, -1)
    torch.testing.assert_close(variance, wide.var(1, unbiased=False), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, wide.mean(1), rtol=1e-7, atol=0)
    # what the design forbids: sums of squares in fp32
    flat = x.reshape(8, -1)
    naive = flat.square().mean(1) - flat.mean(1).square()
    assert float((naive.double() - wide.var(1, unbiased=False)).abs().max()) > 1e-4


def test_variance_between_bands_is_not_lost():
    x = torch.zeros(1, 4, 30, 5)
    x[:, :, 10:20], x[:, :, 20:] = 5.0, -3.0
    moments = gathered(x, [10, 20])
    assert len(moments.parts) == 3
    assert all(float(part.variance.abs().max()) == 0.0 for part in moments.parts)
    _, variance = moments.per_group(2)
    torch.testing.assert_close(variance, x.double().reshape(2, -1).var(1, unbiased=False))


def test_variance_between_the_channels_of_a_group_is_not_lost():
    x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 6, 6).contiguous()
    _, variance = gathered(x, [2]).per_group(1)
    torch.testing.assert_close(variance, torch.tensor([1.25], dtype=torch.float64))


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 8), max_size=4), st.booleans(), st.integers(0, 99))
def test_bands_of_any_height_give_torchs_group_norm(height, width, cuts, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 8, height, width, generator=generator) * 3 + 1
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
        actual = scale_and_shift(norm, gathered(x, [c for c in cuts if c < height]), CPU, torch.float32)(x)
        expected = norm.double()(x.double())
    groups = x.double().reshape(4, -1)
    # a group of nearly equal values: what fp32 can tell of x is magnified as much as their difference is
    condition = float((groups.abs().amax(1) / groups.std(1, unbiased=False).clamp_min(1e-9)).max())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6 * max(condition, 10.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_stream_dtype_is_normalised_in_its_own_type(dtype):
    x = torch.randn(1, 8, 12, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = nn.GroupNorm(4, 8).to(dtype)
    y = scale_and_shift(norm, gathered(x, [5]), CPU, dtype)(x)
    assert y.dtype == dtype
    expected = nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_stream_stored_divided_by_a_power_of_two_is_normalised_alike():
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)) * 1e-3  # epsilon matters here
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    plain = scale_and_shift(norm, gathered(x, [4]), CPU, torch.float32)(x)
    shifted = scale_and_shift(norm, gathered(x / 8, [4]), CPU, torch.float32, exponent=3)(x / 8)
    torch.testing.assert_close(shifted, plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_value_makes_the_moments_of_its_band_non_finite(bad):
    x = torch.randn(1, 8, 16, 16)
    assert is_finite(band_moments(x))
    x[0, 3, 7, 9] = bad
    assert not is_finite(band_moments(x))


def test_saturated_half_precision_is_finite_but_infinity_is_seen():
    x = torch.full((1, 4, 8, 8), 65504.0, dtype=torch.float16)
    assert is_finite(band_moments(x))
    x[0, 0, 0, 0] = float("inf")
    assert not is_finite(band_moments(x))


def test_a_norm_without_affine_parameters_is_plain_normalisation():
    norm = nn.GroupNorm(2, 4, affine=False)
    weight, bias = affine(norm, CPU, torch.float32)
    assert weight.tolist() == [1.0] * 4
    assert bias.tolist() == [0.0] * 4


class CastingNorm(nn.GroupNorm):
    """Keeps its weights in a narrower type and casts them when it is called, as Forge's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, self.num_groups, self.weight.to(x), self.bias.to(x), self.eps)


def test_a_casting_subclass_is_read_exactly():
    norm = CastingNorm(4, 8).to(torch.bfloat16)
    nn.init.normal_(norm.weight)
    weight, bias = affine(norm, CPU, torch.float32)
    torch.testing.assert_close(weight, norm.weight.detach().double(), rtol=0, atol=0)
    torch.testing.assert_close(bias, norm.bias.detach().double(), rtol=0, atol=0)


class PatchedNorm(nn.GroupNorm):
    """What it applies is not what its attributes say, as with a LoRA applied on the fly."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, self.num_groups, self.weight * 2, self.bias + 1, self.eps)


def test_a_norm_that_applies_other_weights_than_it_shows_is_believed():
    norm = PatchedNorm(4, 8)
    weight, bias = affine(norm, CPU, torch.float32)
    torch.testing.assert_close(weight, torch.full((8,), 2.0, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, torch.ones(8, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_moments_merge_in_any_order():
    x = torch.randn(1, 4, 20, 4) + 50
    parts = [band_moments(x[:, :, a:b]) for a, b in ((0, 3), (3, 11), (11, 20))]
    forward, backward = Moments(list(parts)), Moments(parts[::-1])
    torch.testing.assert_close(forward.per_group(2), backward.per_group(2), rtol=1e-12, atol=0)
    assert isinstance(parts[0], BandMoments)
    assert forward.per_channel()[0] == 80


def test_a_patched_norm_whose_weights_have_another_type_is_asked_all_the_same():
    """A1111's Lora extension patches every GroupNorm's forward; the VAE may be bf16 and computed in fp32."""

    class Patched(nn.GroupNorm):
        def forward(self, x):
            return super().forward(x)

    norm = Patched(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.to(torch.bfloat16)
    weight, bias = affine(norm, CPU, torch.float32)
    torch.testing.assert_close(weight, norm.weight.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(bias, norm.bias.double(), rtol=0, atol=1e-5)
    assert norm.weight.dtype == torch.bfloat16
