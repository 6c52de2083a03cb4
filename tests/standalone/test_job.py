"""Limits of a job, and the size a picture suggests."""

from dataclasses import replace
from pathlib import Path

import pytest

from sd_vae_kit.errors import OptionError
from sd_vae_kit.standalone.job import SIDE_MAX, SIDE_MIN, Img2Img, Txt2Img, fit_size, make_job


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 65}, "width is 65; it must be a multiple of 8"),
        ({"height": 32}, "height is 32; it must lie between 64 and 2048"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 99}, "batch size is 99"),
        ({"seed": 2**32}, "seed is"),
        ({"cfg_scale": float("nan")}, "CFG scale is nan"),
    ],
)
def test_a_value_outside_its_limits_is_named(change, words):
    with pytest.raises(OptionError, match=words):
        replace(Txt2Img(), **change).check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": None}, "no picture to start from"),
        ({"denoising_strength": 1.5}, "denoising strength is 1.5"),
        ({"resize_mode": "Explode"}, "resize mode is 'Explode'"),
    ],
)
def test_img2img_has_limits_of_its_own(change, words):
    with pytest.raises(OptionError, match=words):
        replace(Img2Img(picture=Path("a.png")), **change).check()


def test_numbers_come_as_floats_from_a_page():
    job = make_job(Txt2Img, {"steps": 5.0, "seed": 7.0, "width": 64.0, "prompt": None})
    assert (job.steps, job.seed, job.width, job.prompt) == (5, 7, 64, "")
    with pytest.raises(OptionError, match=r"steps is 5\.5; it must be a whole number"):
        make_job(Txt2Img, {"steps": 5.5})


@pytest.mark.parametrize("size", [(1, 1), (1, 8192), (8192, 1000), (333, 511), (64, 2048), (5000, 5000)])
def test_every_picture_has_a_size_that_can_be_made(size):
    height, width = fit_size(*size)
    assert all(SIDE_MIN <= side <= SIDE_MAX and side % 8 == 0 for side in (height, width))


def test_a_picture_of_an_allowed_size_keeps_it():
    assert fit_size(384, 512) == (384, 512)
    assert fit_size(1000, 8192) == (248, 2048)
