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
from sd_vae_kit.standalone import app
from sd_vae_kit.standalone.host import OWN_VAE, TINY_DECODER, Folders
from sd_vae_kit.standalone.job import Img2Img, Txt2Img

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
SIDE = 64
JOB = Txt2Img(prompt="cat", steps=6, seed=5, width=SIDE, height=SIDE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder whose cache knows the photographs, so that no test has to encode them."""
    folders = Folders(tmp_path_factory.mktemp("prepared"), demo=DEMO)
    folders.make()
    made = app.build_program(folders, tmp_path_factory.mktemp("shown"))
    made_by(made, replace(JOB, steps=1))
    made.close()
    return folders.data / "cache"


@pytest.fixture
def program(tmp_path, prepared):
    """A program with a random TAESD pair of SD 1 and one of SD 3."""
    folders = Folders(tmp_path / "data", demo=DEMO)
    folders.make()
    shutil.copytree(prepared, folders.data / "cache", dirs_exist_ok=True)
    for name, channels, family in (("taesd", 4, "sd1"), ("taesd3", 16, "sd3")):
        for half in ("encoder", "decoder"):
            config = TinyConfig(channels, 8, encoder=half == "encoder", decoder=half == "decoder")
            path = folders.own_tiny_vaes / f"{name}_{half}.safetensors"
            write(path, tiny_state(config, seed=channels), {"family": family})
    made = app.build_program(folders, tmp_path / "shown")
    yield made
    made.close()


@pytest.fixture
def start(tmp_path):
    """A picture to start from."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = (np.stack([rows, columns, 1 - rows], -1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return tmp_path / "start.png"


def made_by(program, job, tab="txt2img"):
    program.start(tab, job)
    *_, last = program.watch(tab)
    return last


def tiny(program, half):
    return load_vae(program.folders.own_tiny_vaes / f"taesd_{half}.safetensors", dtype=torch.float32)


def full(program):
    return load_vae(DEMO / OWN_VAE, family="sd1", dtype=torch.float32)


@pytest.mark.parametrize("by", ["settings", "job"])
@pytest.mark.parametrize("encoder", ["Full", "TAESD"])
@pytest.mark.parametrize("decoder", ["Full", "TAESD"])
def test_each_direction_goes_through_the_network_that_was_chosen(program, start, by, encoder, decoder):
    """Denoising 0 sends the picture through the VAE and back, so the result is known."""
    job = Img2Img(picture=start, denoising_strength=0, width=SIDE, height=SIDE, steps=2, seed=1)
    if by == "settings":
        program.change({"sd_vae_encode_method": encoder, "sd_vae_decode_method": decoder})
    else:
        job = replace(job, vae_encoder=encoder, vae_decoder=decoder)
        other = {"Full": "TAESD", "TAESD": "Full"}
        program.change({"sd_vae_encode_method": other[encoder], "sd_vae_decode_method": other[decoder]})
    last = made_by(program, job, "img2img")
    assert last.state == "done", last.message
    encode_with = tiny(program, "encoder") if encoder == TAESD else full(program)
    decode_with = tiny(program, "decoder") if decoder == TAESD else full(program)
    expected = decode_with.decode(encode_with.encode(pictures.to_image(pictures.open_picture(start))))
    result = pictures.open_picture(last.pictures[0].path).pixels
    assert np.abs(result.astype(int) - pictures.to_pixels(expected)[0]).max() <= 1
    fields = infotext.parse(last.pictures[0].infotext).fields
    assert fields.get("VAE Encoder", "Full") == encoder
    assert fields.get("VAE Decoder", "Full") == decoder
    assert fields["VAE"] == OWN_VAE
    pasted = program.paste(last.pictures[0].infotext).values
    assert (pasted["vae_encoder"], pasted["vae_decoder"]) == (encoder, decoder)


@pytest.mark.parametrize("chosen", ["encoder", "decoder"])
def test_one_file_of_a_pair_chosen_as_the_vae_works_both_ways(program, start, chosen):
    program.choose_vae(f"taesd_{chosen}.safetensors")
    job = Img2Img(picture=start, denoising_strength=0, width=SIDE, height=SIDE, seed=1)
    last = made_by(program, job, "img2img")
    assert last.state == "done", last.message
    latent = tiny(program, "encoder").encode(pictures.to_image(pictures.open_picture(start)))
    expected = pictures.to_pixels(tiny(program, "decoder").decode(latent))[0]
    result = pictures.open_picture(last.pictures[0].path).pixels
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert infotext.parse(last.pictures[0].infotext).fields["VAE"] == f"taesd_{chosen}.safetensors"


def test_a_half_without_its_other_half_says_so_before_or_instead_of_a_wrong_picture(program, start):
    (program.folders.own_tiny_vaes / "taesd_encoder.safetensors").unlink()
    program.refresh()
    program.choose_vae("taesd_decoder.safetensors")
    assert made_by(program, JOB).state == "done"
    last = made_by(program, Img2Img(picture=start, width=SIDE, height=SIDE, steps=2), "img2img")
    assert last.state == "failed"
    assert last.message.startswith("taesd_decoder.safetensors holds only a decoder and cannot encode")
    last = made_by(program, Img2Img(picture=start, width=SIDE, height=SIDE, steps=2, vae_encoder=TAESD), "img2img")
    assert last.message.startswith("There is no TAESD encoder for SD 1.x / 2.x here; install it in the VAE tab or with")
    assert 'download "TAESD encoder"' in last.message


def test_the_list_says_what_a_taesd_is(program):
    bar = program.top_bar()
    shown = {name: label for label, name in bar.vae_choices}
    assert shown["taesd_decoder.safetensors"] == "taesd_decoder.safetensors (TAESD decoder, SD 1.x / 2.x)"
    assert shown["taesd3_encoder.safetensors"] == "taesd3_encoder.safetensors (TAESD encoder, SD 3 / 3.5)"
    assert shown[OWN_VAE] == OWN_VAE
    rows = {row.name: row for row in program.vae_rows()}
    assert (rows["taesd_decoder.safetensors"].kind, rows["taesd_decoder.safetensors"].family) == (
        "tiny, decoder", "SD 1.x / 2.x",
    )  # fmt: skip


def test_a_taesd_of_another_model_is_refused_in_one_line(program):
    with pytest.raises(VaeMismatchError, match=r"taesd3_decoder\.safetensors has 16 latent channels, the loaded model"):
        program.choose_vae("taesd3_decoder.safetensors")
    assert program.top_bar().active == OWN_VAE


def test_without_an_installed_taesd_the_demos_decodes(program):
    for path in program.folders.own_tiny_vaes.iterdir():
        path.unlink()
    program.refresh()
    last = made_by(program, replace(JOB, vae_decoder=TAESD))
    assert last.state == "done", last.message
    assert infotext.parse(last.pictures[0].infotext).fields["VAE Decoder"] == TAESD
    assert TINY_DECODER in {row.name for row in program.vae_rows()}


@pytest.mark.parametrize("preview", ["TAESD", "linear", "off"])
def test_a_job_shows_the_preview_it_asked_for_and_its_picture_does_not_depend_on_it(program, preview):
    program.change({"vae_kit_preview_share": 100})
    previews = []

    def note(progress):
        """Every step lasts until its preview is there."""
        if progress.preview is not None:
            previews.append((progress.step, progress.preview))
        elif progress.phase == "sampling" and preview != "off":
            end = time.monotonic() + 10
            while not (previews and previews[-1][0] == progress.step) and time.monotonic() < end:
                time.sleep(0.002)

    one = program._host.txt2img(replace(JOB, preview=preview), note).pictures[0]
    assert [step for step, _ in previews] == ([] if preview == "off" else list(range(1, JOB.steps + 1)))
    assert {pixels.shape for _, pixels in previews} <= {(SIDE, SIDE, 3)}
    assert preview == "off" or not np.array_equal(previews[0][1], previews[-1][1])
    other = program._host.txt2img(replace(JOB, preview="off")).pictures[0]
    assert np.array_equal(one.pixels, other.pixels)


def test_after_a_job_no_preview_thread_and_no_network_is_left(program):
    made_by(program, replace(JOB, vae_decoder=TAESD))
    assert not [thread for thread in threading.enumerate() if thread.name == "vae-kit-preview"]
    assert not program._host.tiny._kept
