"""The stand-alone app's jobs run by plans: the same pictures, progress and interrupt inside a decode, the sentence."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from sd_vae_kit.errors import OptionError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures.picture_file import save_picture
from sd_vae_kit.settings.job import AS_SET, JobTiling
from sd_vae_kit.standalone.backend import build_backend
from sd_vae_kit.standalone.folders import Folders
from sd_vae_kit.standalone.job import Img2Img, Txt2Img, make_job
from sd_vae_kit.standalone.paste import values_of

SIDE = 256
JOB = Txt2Img(prompt="cat", steps=2, seed=5, width=SIDE, height=SIDE, tiling="Off")


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("data"), demo=ROOT / "sd_vae_kit" / "standalone" / "demo")
    folders.make()
    made = build_backend(folders, tmp_path_factory.mktemp("shown"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def maker(backend):
    return backend.maker


def fields_of(outcome):
    return infotext.parse(outcome.pictures[0].infotext).fields


def pixels_of(outcome):
    return np.stack([made.pixels for made in outcome.pictures]).astype(int)


@pytest.mark.parametrize("how", [{"tiling": "stream"}, {"tiling": "auto", "tiling_memory_mb": 1}])
def test_pictures_in_bands_are_the_same_pictures(maker, tmp_path, how):
    own = maker.txt2img(replace(JOB, batch_size=2))
    made = maker.txt2img(replace(JOB, batch_size=2, **how))
    assert maker.engine.runs.last["decoder"].bands > 1
    assert abs(pixels_of(made) - pixels_of(own)).max() <= 1
    assert fields_of(made)["VAE Kit tiling"].startswith("stream")
    assert fields_of(made)["VAE tiling"] == how["tiling"]
    assert "VAE Kit tiling" not in fields_of(own)

    save_picture(tmp_path / "a.png", own.pictures[0].pixels)
    again = Img2Img(**{**vars(JOB), "picture": tmp_path / "a.png", "denoising_strength": 0.3})
    own, made = maker.img2img(again), maker.img2img(replace(again, **how))
    assert abs(pixels_of(made) - pixels_of(own)).max() <= 1
    assert fields_of(made)["VAE Kit tiling of encode"].startswith("stream")
    assert "VAE Kit tiling of encode" not in fields_of(own)


def test_the_settings_hold_where_the_job_chooses_nothing(backend, maker):
    by_settings = replace(JOB, tiling="as_set")
    assert "VAE Kit tiling" not in fields_of(maker.txt2img(by_settings))
    try:
        backend.settings.change({"vae_kit_tiling_mode": "stream"})
        made = fields_of(maker.txt2img(by_settings))
        assert made["VAE Kit tiling"].startswith("stream in ")
        assert "VAE tiling" not in made
        backend.settings.change({"vae_kit_tiling_decoder": False})
        assert "VAE Kit tiling" not in fields_of(maker.txt2img(by_settings))
    finally:
        backend.settings.change({"vae_kit_tiling_mode": "auto", "vae_kit_tiling_decoder": True})


def test_progress_grows_inside_a_decode(maker):
    seen = []
    maker.txt2img(replace(JOB, batch_size=2, tiling="stream"), seen.append)
    decoding = [p.step for p in seen if p.phase == "decoding"]
    assert decoding == sorted(decoding)
    assert (decoding[0], decoding[-1]) == (0, 100)
    assert len({step for step in decoding if step < 50}) > 5, "of the first picture"
    assert len({step for step in decoding if step > 50}) > 5, "of the second"


def test_an_interrupt_inside_a_decode_gives_the_preview(maker):
    whole = pixels_of(maker.txt2img(JOB))[0]

    def interrupt(progress):
        if progress.phase == "decoding" and progress.step > 20:
            maker.interrupt()

    outcome = maker.txt2img(replace(JOB, batch_size=3, tiling="stream"), interrupt)
    assert outcome.is_interrupted
    (made,) = pixels_of(outcome)
    assert made.shape == (SIDE, SIDE, 3)
    assert 1 < abs(made - whole).mean() < 25, "not the picture itself, but like it"
    assert "VAE Kit tiling" not in fields_of(outcome)
    assert not maker.txt2img(replace(JOB, steps=1)).is_interrupted


def test_a_tiling_that_a_text_speaks_of_is_pasted():
    text = "cat\nSteps: 2, Seed: 7, Size: 64x64, VAE tiling: Always stream, VAE memory budget: 300"
    values, notes = values_of(infotext.parse(text))
    assert (values["tiling"], values["tiling_memory_mb"], values["tiling_parts"]) == ("stream", 300, AS_SET)
    assert not notes
    values, notes = values_of(infotext.parse(text.replace("Always stream", "Rarely").replace("300", "few")))
    assert "tiling" not in values
    assert [note.split(" (")[0] for note in notes] == ["VAE tiling", "VAE memory budget"]


def test_an_interrupt_while_sampling_still_decodes_to_the_end(maker):
    def interrupt(progress):
        if progress.phase == "sampling":
            maker.interrupt()

    outcome = maker.txt2img(replace(JOB, steps=8, tiling="stream"), interrupt)
    assert outcome.is_interrupted
    assert fields_of(outcome)["VAE Kit tiling"].startswith("stream")


def test_an_interrupt_inside_an_encode_has_no_picture(maker, tmp_path):
    save_picture(tmp_path / "a.png", maker.txt2img(JOB).pictures[0].pixels)

    def interrupt(progress):
        if progress.phase == "encoding" and progress.step > 20:
            maker.interrupt()

    job = Img2Img(prompt="cat", steps=2, width=SIDE, height=SIDE, tiling="stream", picture=tmp_path / "a.png")
    outcome = maker.img2img(job, interrupt)
    assert (outcome.is_interrupted, outcome.pictures) == (True, ())


def test_what_went_wrong_on_the_way_is_said(backend, maker, monkeypatch):
    backend.host.first_stage.decoder.mid.forward = backend.host.first_stage.decoder.mid.forward
    try:
        made = maker.txt2img(replace(JOB, tiling="stream"))
    finally:
        del backend.host.first_stage.decoder.mid.forward
    assert "VAE Kit tiling" not in fields_of(made)
    (notice,) = backend.host.take_notices()
    assert "is run whole by its own forward: decoder.mid was changed by another extension" in notice.text


def test_the_sentence_is_of_the_live_vae_and_the_jobs_choice(maker):
    assert maker.forecast((1024, 1536), JobTiling()).startswith("1536x1024 with this VAE: about ")
    assert maker.forecast((1024, 1536), JobTiling("stream")).endswith(", same picture")
    assert maker.forecast((64, 64), JobTiling("off")).endswith("tiling is off, will run whole")


@pytest.mark.parametrize("wrong", [{"tiling": "Sometimes"}, {"tiling_memory_mb": -1}, {"tiling_parts": "None of it"}])
def test_a_choice_that_does_not_exist_is_refused(wrong):
    with pytest.raises(OptionError):
        make_job(Txt2Img, wrong)
