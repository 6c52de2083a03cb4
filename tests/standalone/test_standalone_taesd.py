"""TAESD in the stand-alone app: in the VAE's place for a direction, chosen as the VAE, and in previews."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from vae_files import tiny_state, write

from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.errors import VaeMismatchError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.settings.sections import TAESD
from sd_vae_kit.standalone.backend import build_backend
from sd_vae_kit.standalone.folders import OWN_VAE, TINY_DECODER, Folders
from sd_vae_kit.standalone.job import Img2Img, Txt2Img

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
SIDE = 64
JOB = Txt2Img(prompt="cat", steps=6, seed=5, width=SIDE, height=SIDE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder whose cache knows the photographs, so that no test has to encode them."""
    folders = Folders(tmp_path_factory.mktemp("prepared"), demo=DEMO)
    folders.make()
    made = build_backend(folders, tmp_path_factory.mktemp("shown"))
    made_by(made, replace(JOB, steps=1))
    made.close()
    return folders.data / "cache"


@pytest.fixture
def backend(tmp_path, prepared):
    """A backend with a random TAESD pair of SD 1 and one of SD 3."""
    folders = Folders(tmp_path / "data", demo=DEMO)
    folders.make()
    shutil.copytree(prepared, folders.data / "cache", dirs_exist_ok=True)
    for name, channels, family in (("taesd", 4, "sd1"), ("taesd3", 16, "sd3")):
        for half in ("encoder", "decoder"):
            config = TinyConfig(channels, 8, encoder=half == "encoder", decoder=half == "decoder")
            path = folders.own_tiny_vaes / f"{name}_{half}.safetensors"
            write(path, tiny_state(config, seed=channels), {"family": family})
    made = build_backend(folders, tmp_path / "shown")
    yield made
    made.close()


@pytest.fixture
def start(tmp_path):
    """A picture to start from."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = (np.stack([rows, columns, 1 - rows], -1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return tmp_path / "start.png"


def made_by(backend, job, tab="txt2img"):
    backend.jobs.start(tab, job)
    *_, last = backend.jobs.watch(tab)
    return last


def tiny(backend, half):
    return load_vae(backend.folders.own_tiny_vaes / f"taesd_{half}.safetensors", dtype=torch.float32)


def full(backend):
    return load_vae(DEMO / OWN_VAE, family="sd1", dtype=torch.float32)


@pytest.mark.parametrize("by", ["settings", "job"])
@pytest.mark.parametrize("encoder", ["Full", "TAESD"])
@pytest.mark.parametrize("decoder", ["Full", "TAESD"])
def test_each_direction_goes_through_the_network_that_was_chosen(backend, start, by, encoder, decoder):
    """Denoising 0 sends the picture through the VAE and back, so the result is known."""
    job = Img2Img(picture=start, denoising_strength=0, width=SIDE, height=SIDE, steps=2, seed=1)
    if by == "settings":
        backend.settings.change({"sd_vae_encode_method": encoder, "sd_vae_decode_method": decoder})
    else:
        job = replace(job, vae_encoder=encoder, vae_decoder=decoder)
        other = {"Full": "TAESD", "TAESD": "Full"}
        backend.settings.change({"sd_vae_encode_method": other[encoder], "sd_vae_decode_method": other[decoder]})
    last = made_by(backend, job, "img2img")
    assert last.state == "done", last.message
    encode_with = tiny(backend, "encoder") if encoder == TAESD else full(backend)
    decode_with = tiny(backend, "decoder") if decoder == TAESD else full(backend)
    expected = decode_with.decode(encode_with.encode(pictures.to_image(pictures.open_picture(start))))
    result = pictures.open_picture(last.pictures[0].path).pixels
    assert np.abs(result.astype(int) - pictures.to_pixels(expected)[0]).max() <= 1
    fields = infotext.parse(last.pictures[0].infotext).fields
    assert fields.get("VAE Encoder", "Full") == encoder
    assert fields.get("VAE Decoder", "Full") == decoder
    assert fields["VAE"] == OWN_VAE
    pasted = backend.pasting.paste(last.pictures[0].infotext).values
    assert (pasted["vae_encoder"], pasted["vae_decoder"]) == (encoder, decoder)


@pytest.mark.parametrize("chosen", ["encoder", "decoder"])
def test_one_file_of_a_pair_chosen_as_the_vae_works_both_ways(backend, start, chosen):
    backend.vaes.choose(f"taesd_{chosen}.safetensors")
    job = Img2Img(picture=start, denoising_strength=0, width=SIDE, height=SIDE, seed=1)
    last = made_by(backend, job, "img2img")
    assert last.state == "done", last.message
    latent = tiny(backend, "encoder").encode(pictures.to_image(pictures.open_picture(start)))
    expected = pictures.to_pixels(tiny(backend, "decoder").decode(latent))[0]
    result = pictures.open_picture(last.pictures[0].path).pixels
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert infotext.parse(last.pictures[0].infotext).fields["VAE"] == f"taesd_{chosen}.safetensors"


def test_a_half_without_its_other_half_says_so_before_or_instead_of_a_wrong_picture(backend, start):
    (backend.folders.own_tiny_vaes / "taesd_encoder.safetensors").unlink()
    backend.vaes.refresh()
    backend.vaes.choose("taesd_decoder.safetensors")
    assert made_by(backend, JOB).state == "done"
    last = made_by(backend, Img2Img(picture=start, width=SIDE, height=SIDE, steps=2), "img2img")
    assert last.state == "failed"
    assert last.message.startswith("taesd_decoder.safetensors holds only a decoder and cannot encode")
    last = made_by(backend, Img2Img(picture=start, width=SIDE, height=SIDE, steps=2, vae_encoder=TAESD), "img2img")
    assert last.message.startswith("There is no TAESD encoder for SD 1.x / 2.x here; install it in the VAE tab or with")
    assert 'download "TAESD encoder"' in last.message


def test_the_list_says_what_a_taesd_is(backend):
    bar = backend.vaes.top_bar()
    shown = {name: label for label, name in bar.vae_choices}
    assert shown["taesd_decoder.safetensors"] == "taesd_decoder.safetensors (TAESD decoder, SD 1.x / 2.x)"
    assert shown["taesd3_encoder.safetensors"] == "taesd3_encoder.safetensors (TAESD encoder, SD 3 / 3.5)"
    assert shown[OWN_VAE] == OWN_VAE
    rows = {row.name: row for row in backend.vaes.rows()}
    assert (rows["taesd_decoder.safetensors"].kind, rows["taesd_decoder.safetensors"].family) == (
        "tiny, decoder", "SD 1.x / 2.x",
    )  # fmt: skip


def test_a_taesd_of_another_model_is_refused_in_one_line(backend):
    with pytest.raises(VaeMismatchError, match=r"taesd3_decoder\.safetensors has 16 latent channels, the loaded model"):
        backend.vaes.choose("taesd3_decoder.safetensors")
    assert backend.vaes.top_bar().active == OWN_VAE


def test_without_an_installed_taesd_the_demos_decodes(backend):
    for path in backend.folders.own_tiny_vaes.iterdir():
        path.unlink()
    backend.vaes.refresh()
    last = made_by(backend, replace(JOB, vae_decoder=TAESD))
    assert last.state == "done", last.message
    assert infotext.parse(last.pictures[0].infotext).fields["VAE Decoder"] == TAESD
    assert TINY_DECODER in {row.name for row in backend.vaes.rows()}


@pytest.mark.parametrize("preview", ["taesd", "linear", "off"])
def test_a_job_shows_the_preview_it_asked_for_and_its_picture_does_not_depend_on_it(backend, preview):
    backend.settings.change({"vae_kit_preview_share": 100})
    previews = []

    def note(progress):
        """Every step lasts until its preview is there."""
        if progress.preview is not None:
            previews.append((progress.step, progress.preview))
        elif progress.phase == "sampling" and preview != "off":
            end = time.monotonic() + 10
            while not (previews and previews[-1][0] == progress.step) and time.monotonic() < end:
                time.sleep(0.002)

    one = backend.maker.txt2img(replace(JOB, preview=preview), note).pictures[0]
    assert [step for step, _ in previews] == ([] if preview == "off" else list(range(1, JOB.steps + 1)))
    assert {pixels.shape for _, pixels in previews} <= {(SIDE, SIDE, 3)}
    assert preview == "off" or not np.array_equal(previews[0][1], previews[-1][1])
    other = backend.maker.txt2img(replace(JOB, preview="off")).pictures[0]
    assert np.array_equal(one.pixels, other.pixels)


def test_after_a_job_no_preview_thread_and_no_network_is_left(backend):
    made_by(backend, replace(JOB, vae_decoder=TAESD))
    assert not [thread for thread in threading.enumerate() if thread.name == "vae-kit-preview"]
    assert not backend.maker.engine.vaes._tiny._kept
