"""Rules for the passes of the stand-alone app's jobs: encoding, the picture itself, previews; and the history."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.standalone.backend import build_backend
from sd_vae_kit.standalone.folders import OWN_VAE, Folders
from sd_vae_kit.standalone.job import Img2Img, Txt2Img
from sd_vae_kit.vaes.catalogue import catalogue
from sd_vae_kit.vaes.rules import Rule, dump

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
VIVID, TINTED = "demo_vivid.safetensors", "tinted.safetensors"
SIDE = 64
JOB = Txt2Img(prompt="cat", steps=4, seed=5, width=SIDE, height=SIDE, preview="taesd")


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("data"), demo=DEMO)
    folders.make()
    state = load_file(DEMO / OWN_VAE)  # both demo VAEs have the same encoder
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"] + 0.5
    save_file(state, folders.own_vaes / TINTED, metadata={"family": "sd1"})
    backend = build_backend(folders, folders.data / "shown")
    yield backend
    backend.close()


@pytest.fixture
def maker(backend):
    rules(backend)
    yield backend.maker
    rules(backend)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = np.stack([np.sin(9 * rows) * 0.5 + 0.5, columns, 1 - rows * columns], axis=-1)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path


def rules(backend, *listed):
    (backend.folders.data / "vae_rules.json").write_text(dump(listed), "utf-8")


def vae(backend, name):
    folder = backend.folders.own_vaes if name == TINTED else DEMO
    return load_vae(folder / name, family="sd1", dtype=torch.float32)


def through(backend, picture, encoder, decoder):
    """A picture encoded by one file and decoded by another, without any job."""
    with torch.inference_mode():
        latent = vae(backend, encoder).encode(pictures.to_image(pictures.open_picture(picture).pixels))
        return pictures.to_pixels(vae(backend, decoder).decode(latent))[0]


def same(one, other):
    """Equal but for rounding: jobs add up in another order than the module's own forward."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


def test_each_pass_of_img2img_has_the_vae_its_rule_names(backend, maker, picture):
    job = Img2Img(picture=picture, width=SIDE, height=SIDE, steps=4, seed=1, denoising_strength=0)
    assert same(maker.img2img(job).pictures[0].pixels, through(backend, picture, OWN_VAE, OWN_VAE))
    rules(backend, Rule(TINTED, runs=("img2img encode",)))
    made = maker.img2img(job).pictures[0]
    expected = through(backend, picture, TINTED, OWN_VAE)
    assert same(made.pixels, expected)
    assert not same(expected, through(backend, picture, OWN_VAE, OWN_VAE))
    assert f"VAE: {OWN_VAE}" in made.infotext
    assert backend.vaes.top_bar().active == OWN_VAE, "the job is over"
    rules(backend, Rule(VIVID, runs=("picture",)))
    made = maker.img2img(job).pictures[0]
    assert same(made.pixels, through(backend, picture, OWN_VAE, VIVID))
    assert f"VAE: {VIVID}" in made.infotext


def test_an_interrupted_job_leaves_the_pictures_vae_live(backend, maker, picture):
    rules(backend, Rule(TINTED, runs=("img2img encode",)))
    live = []

    def interrupt(progress):
        if progress.phase == "sampling":
            live.append(backend.vaes.top_bar().active)
            maker.interrupt()

    job = Img2Img(picture=picture, width=SIDE, height=SIDE, steps=4, seed=1, denoising_strength=0.9, batch_size=1)
    assert maker.img2img(job, interrupt).is_interrupted
    assert live[0] == TINTED
    assert backend.vaes.top_bar().active == OWN_VAE


def previews_of(maker):
    """A latent as previews show it, and the latent."""
    previewer = maker.engine.previews.previewer("taesd")
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return previewer(latent).numpy(), latent


@pytest.mark.parametrize("name", [VIVID, "None"])
def test_previews_are_decoded_by_the_vae_their_rule_names(backend, maker, name):
    plain, latent = previews_of(maker)
    rules(backend, Rule(name, runs=("preview",)))
    shown, _ = previews_of(maker)
    with torch.inference_mode():
        whole = pictures.to_pixels(vae(backend, OWN_VAE if name == "None" else name).decode(latent))[0]
    assert shown.shape == plain.shape == whole.shape
    assert np.abs(shown.astype(int) - whole.astype(int)).max() <= 1
    assert np.abs(plain.astype(int) - whole.astype(int)).max() > 1
    made = maker.txt2img(JOB).pictures[0]
    assert f"VAE: {OWN_VAE}" in made.infotext, "previews choose for themselves only"


def test_a_preview_rule_that_cannot_be_honoured_fails_the_job_with_one_line(backend, maker):
    rules(backend, Rule("gone.safetensors", runs=("preview",)))
    with pytest.raises(VaeNotFoundError, match=r"Rule 1 of vae_rules\.json \(pass preview\)"):
        maker.txt2img(JOB)
    rules(backend, Rule("gone.safetensors", runs=("img2img encode",)))
    assert len(maker.txt2img(JOB).pictures) == 1, "a rule for another pass does not matter"


def test_the_catalogue_says_which_checkpoint_used_a_file(backend, maker):
    rules(backend, Rule(VIVID))
    maker.txt2img(JOB)
    backend.selection._swapper._pool.submit(lambda: None).result()  # it is written in the background
    row = next(row for row in backend.catalogue.gallery.rows() if row.key == VIVID)
    assert backend.host.checkpoint.name in row.used_by
    assert any("rule 1" in use for use in row.used_by)


def test_a_pasted_text_names_what_can_be_installed(backend):
    known = catalogue().find("SD VAE ft-MSE 840k")
    pasted = backend.pasting.paste(f"a cat\nSteps: 4, Seed: 1, VAE hash: {known.sha256[:10]}, VAE: theirs.safetensors")
    assert pasted.missing == known.name
    assert any(f'it is "{known.name}"' in note for note in pasted.notes)
    assert backend.catalogue.gallery.is_missing(known.name)
    assert (
        backend.pasting.paste("a cat\nSteps: 4, Seed: 1, VAE hash: 0123456789, VAE: theirs.safetensors").missing == ""
    )
    assert backend.pasting.paste("a cat\nSteps: 4, Seed: 1").missing == ""
