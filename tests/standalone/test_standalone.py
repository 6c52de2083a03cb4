"""Jobs of the stand-alone app, with its demo model and demo VAEs; and the backend behind its pages."""

import shutil
import socket
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.errors import OptionError, PictureError, VaeKitError, VaeMismatchError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.settings.sections import NONE
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone import app
from sd_vae_kit.standalone.backend import build_backend
from sd_vae_kit.standalone.demo_model import NAME, fitted
from sd_vae_kit.standalone.folders import OWN_VAE, Folders
from sd_vae_kit.standalone.job import Img2Img, Txt2Img
from sd_vae_kit.standalone.sampling import karras_sigmas

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
VIVID = "demo_vivid.safetensors"
SIDE = 128
BY_SETTINGS = {"tiling": "as_set", "tiling_memory_mb": 0, "tiling_parts": "as_set"}
JOB = Txt2Img(prompt="cat", steps=8, seed=5, width=SIDE, height=SIDE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = Folders(tmp_path_factory.mktemp("data"), demo=DEMO)
    made.make()
    return made


@pytest.fixture(scope="module")
def demo(folders, tmp_path_factory):
    """The app, with no VAE but the demo's."""
    made = build_backend(folders, tmp_path_factory.mktemp("shown"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def maker(demo):
    return demo.maker


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A picture the demo model does not know: broad stripes and a disc, with a little noise."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = np.stack([np.sin(9 * rows) * 0.5 + 0.5, columns, 1 - rows * columns], axis=-1)
    disc = (rows - 0.6) ** 2 + (columns - 0.35) ** 2 < 0.04
    picture[disc] = (0.9, 0.2, 0.1)
    picture += np.random.default_rng(0).normal(0, 0.02, picture.shape)
    path = tmp_path_factory.mktemp("pictures") / "stranger.png"
    Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(path)
    return path


def picture_of(outcome):
    return outcome.pictures[0].pixels


def likeness(one, other):
    """Correlation of two pictures of one size, colour by colour."""
    a, b = (np.asarray(p, dtype=float).reshape(-1, 3) for p in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def photographs(maker):
    return [fitted(pictures.open_picture(p.path).pixels, (SIDE, SIDE)) for p in maker.engine.model.photographs]


# --- txt2img ---------------------------------------------------------------------------------------------------------


def test_a_prompt_brings_up_the_photograph_it_describes(maker):
    made = picture_of(maker.txt2img(JOB))
    scores = [likeness(made, photograph) for photograph in photographs(maker)]
    best = maker.engine.model.photographs[int(np.argmax(scores))]
    assert best.path.stem == "cat"
    assert max(scores) > 0.5


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(maker):
    alone = [picture_of(maker.txt2img(replace(JOB, seed=seed))) for seed in (5, 6)]
    batch = maker.txt2img(replace(JOB, batch_size=2))
    assert [made.seed for made in batch.pictures] == [5, 6]
    for one, made in zip(alone, batch.pictures, strict=True):
        # the sums of a batch come in another order
        assert np.abs(one.astype(int) - made.pixels).max() <= 1
    assert np.abs(alone[0].astype(int) - alone[1]).mean() > 1


def test_a_random_seed_is_told(maker):
    made = maker.txt2img(replace(JOB, seed=-1, steps=1)).pictures[0]
    assert made.seed >= 0
    assert infotext.parse(made.infotext).fields["Seed"] == str(made.seed)


def test_an_empty_prompt_gives_different_photographs_for_different_seeds(maker):
    sigmas = karras_sigmas(8)
    prior = maker.engine.model.prior("", "")
    x = maker.engine.model.start(prior, (SIDE, SIDE), range(24), float(sigmas[0]))
    denoiser = maker.engine.model.denoiser(prior, (SIDE, SIDE), lambda done, total: None)
    likeliest = denoiser._weights(denoiser._transform(x), float(sigmas[0])).argmax(1)
    assert len(set(likeliest.tolist())) >= 3


def slowly(seen):
    """Notes progress; every step lasts long enough for a preview beside it."""

    def note(progress):
        before = len(shown := [p for p in seen if p.preview is not None])
        seen.append(progress)
        if progress.phase == "sampling" and progress.preview is None:
            end = time.monotonic() + 10.0
            while len(shown) == before and time.monotonic() < end:
                time.sleep(0.002)
                shown = [p for p in seen if p.preview is not None]

    return note


@pytest.fixture
def without_limit(demo):
    demo.settings.change({"vae_kit_preview_share": 100})
    yield demo.maker
    demo.settings.change({"vae_kit_preview_share": 20})


def test_previews_change_over_at_least_half_of_the_steps(without_limit):
    seen = []
    without_limit.txt2img(JOB, slowly(seen))
    previews = [p.preview.astype(float) for p in seen if p.preview is not None]
    assert len(previews) == JOB.steps
    smallest = min(previews, key=lambda p: p.size)  # a slow machine shrinks them
    small = [np.asarray(Image.fromarray(p.astype(np.uint8)).resize(smallest.shape[1::-1]), float) for p in previews]
    changes = [np.abs(a - b).mean() for a, b in pairwise(small)]
    assert sum(change > 0.5 for change in changes) >= JOB.steps / 2


def test_progress_counts_every_step(maker):
    seen = []
    maker.txt2img(JOB, seen.append)
    assert [p.step for p in seen if p.phase == "sampling" and p.preview is None] == list(range(1, JOB.steps + 1))
    assert {p.steps for p in seen if p.phase == "sampling"} == {JOB.steps}


def test_the_infotext_is_a1111s(maker):
    made = maker.txt2img(replace(JOB, negative_prompt="flag")).pictures[0]
    parsed = infotext.parse(made.infotext)
    assert (parsed.prompt, parsed.negative_prompt) == ("cat", "flag")
    wanted = {"Steps": "8", "Sampler": "Euler", "Schedule type": "Karras", "CFG scale": "1", "Seed": "5"}
    assert wanted.items() <= parsed.fields.items()
    assert parsed.fields["Size"] == f"{SIDE}x{SIDE}"
    assert parsed.fields["Model"] == NAME
    assert "Model hash" not in parsed.fields
    assert parsed.fields["VAE"] == OWN_VAE


@pytest.mark.parametrize("size", [(64, 64), (64, 136), (200, 72)])
def test_sizes_that_are_not_square_come_out_as_asked(maker, size):
    height, width = size
    made = picture_of(maker.txt2img(replace(JOB, height=height, width=width, steps=2)))
    assert made.shape == (height, width, 3)


def test_photographs_are_encoded_once_per_size_and_kept_on_disk(maker, folders, tmp_path):
    maker.engine.model.means((64, 64))
    again = build_backend(folders, tmp_path).maker.engine
    encoded = []
    means = again.model.means((64, 64), lambda done, total: encoded.append(done))
    assert encoded == []
    torch.testing.assert_close(means, maker.engine.model.means((64, 64)), atol=4e-3, rtol=2e-3)  # kept in fp16


def test_a_damaged_cache_is_made_again(maker, folders, tmp_path):
    maker.engine.model.means((72, 64))
    file = next((folders.data / "cache").glob("photographs_*_72x64.safetensors"))
    file.write_bytes(b"garbage")
    encoded = []
    build_backend(folders, tmp_path).maker.engine.model.means((72, 64), lambda done, total: encoded.append(done))
    assert len(encoded) == len(maker.engine.model.photographs) + 1


# --- img2img ---------------------------------------------------------------------------------------------------------


def test_img2img_resembles_its_input_more_than_any_photograph_it_knows(maker, stranger):
    job = Img2Img(picture=stranger, denoising_strength=0.4, steps=10, seed=1, width=SIDE, height=SIDE)
    made = picture_of(maker.img2img(job))
    with_input = likeness(made, np.asarray(Image.open(stranger)))
    assert with_input > 0.9
    assert with_input > max(likeness(made, photograph) for photograph in photographs(maker)) + 0.2


def test_denoising_0_is_the_plain_round_trip(maker, stranger):
    job = Img2Img(picture=stranger, denoising_strength=0, steps=10, seed=1, width=SIDE, height=SIDE, prompt="cat")
    seen = []
    made = picture_of(maker.img2img(job, seen.append))
    vae = load_vae(DEMO / OWN_VAE, family="sd1", dtype=torch.float32)
    plain = pictures.to_pixels(vae.decode(vae.encode(pictures.to_image(pictures.open_picture(stranger)))))[0]
    assert np.abs(made.astype(int) - plain).max() <= 1
    assert "sampling" not in {p.phase for p in seen}


def test_more_denoising_keeps_less(maker, stranger):
    job = Img2Img(picture=stranger, steps=10, seed=1, width=SIDE, height=SIDE)
    kept = [
        likeness(picture_of(maker.img2img(replace(job, denoising_strength=s))), np.asarray(Image.open(stranger)))
        for s in (0.1, 0.5, 1.0)
    ]
    assert kept[0] > kept[1] > kept[2]


def test_pictures_of_every_kind_are_taken(maker, tmp_path):
    size = (64, 96)
    upright = Image.new("RGB", (96, 64), "red")
    upright.paste("blue", (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "exif.jpg", exif=exif, quality=95)
    Image.new("RGB", (1, 1), "lime").save(tmp_path / "one.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.effect_noise((8192, 16), 40).convert("RGB").save(tmp_path / "wide.png")

    def made(name, mode="Just resize"):
        job = Img2Img(picture=tmp_path / name, denoising_strength=0, height=size[0], width=size[1], resize_mode=mode)
        return picture_of(maker.img2img(job)).astype(float)

    for name in ("exif.jpg", "one.png", "clear.png", "wide.png"):
        for mode in ("Just resize", "Crop and resize"):
            assert made(name, mode).shape == (*size, 3)
    turned = made("exif.jpg")
    assert turned[:, 60:, 0].mean() > turned[:, 60:, 2].mean()
    assert turned[:, :36, 2].mean() > turned[:, :36, 0].mean()
    assert made("clear.png").mean() > 180  # transparent is white


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_broken_picture_is_a_clear_line(maker, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"broken\.png"):
        maker.img2img(Img2Img(picture=path, width=64, height=64))
    assert picture_of(maker.txt2img(replace(JOB, steps=1))).shape == (SIDE, SIDE, 3)


# --- interrupt -------------------------------------------------------------------------------------------------------


def test_an_interrupted_job_has_what_it_got_to(maker):
    def stop(progress):
        if progress.phase == "sampling" and progress.step == 3:
            maker.interrupt()

    steps = []
    outcome = maker.txt2img(JOB, lambda p: (stop(p), steps.append(p.step) if p.phase == "sampling" else None))
    assert outcome.is_interrupted
    assert max(steps) == 3
    assert picture_of(outcome).shape == (SIDE, SIDE, 3)
    assert not maker.txt2img(replace(JOB, steps=1)).is_interrupted


def test_an_interrupted_batch_keeps_its_first_picture(maker):
    outcome = maker.txt2img(
        replace(JOB, batch_size=3, steps=2), lambda p: maker.interrupt() if p.phase == "sampling" else None
    )
    assert len(outcome.pictures) == 1


def test_an_interrupt_before_sampling_has_no_picture(maker, stranger):
    job = Img2Img(picture=stranger, width=SIDE, height=SIDE)
    outcome = maker.img2img(job, lambda p: maker.interrupt() if p.phase == "encoding" else None)
    assert outcome.pictures == ()
    assert outcome.is_interrupted


# --- the VAE while jobs run ------------------------------------------------------------------------------------------


def test_a_swap_waits_for_the_running_decode(demo):
    order = []
    with demo.maker.engine.vaes.live("decoder") as live:
        thread = threading.Thread(target=lambda: [demo.host.vae_writing().__enter__(), order.append("written")])
        thread.start()
        thread.join(0.2)
        order.append("decoded")
        assert live.vae.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)
    thread.join(10)
    assert order == ["decoded", "written"]


# --- the backend behind the pages ------------------------------------------------------------------------------------


@pytest.fixture
def backend(tmp_path, folders, maker):
    """A backend over a fresh data folder; photographs that `maker` has encoded are not encoded again."""
    maker.engine.model.means((SIDE, SIDE))
    known, folders = folders, Folders(tmp_path / "data", demo=DEMO)
    folders.make()
    shutil.copytree(known.data / "cache", folders.data / "cache")
    SettingsStore(folders.data / "settings.json").update({"vae_kit_preview_method": "linear"})
    save_file(TinyAutoencoder(TinyConfig(16, 8)).state_dict(), folders.own_vaes / "sixteen.safetensors")
    (folders.own_vaes / "broken.safetensors").write_bytes((DEMO / OWN_VAE).read_bytes()[:5000])
    made = build_backend(folders, tmp_path / "shown")
    yield made
    made.close()


def made_by(backend, job=JOB, tab="txt2img"):
    backend.jobs.start(tab, job)
    *_, last = backend.jobs.watch(tab)
    return last


def test_the_demo_vaes_are_always_listed_and_the_checkpoints_own_is_live(backend):
    bar = backend.vaes.top_bar()
    assert bar.vae == "Automatic"
    assert {"Automatic", "None", OWN_VAE, VIVID, "sixteen.safetensors"} <= set(bar.vaes)
    assert "broken.safetensors" not in bar.vaes
    assert bar.active == OWN_VAE
    assert len(bar.active_hash) == 10


def test_another_vae_is_live_named_in_the_infotext_and_undone_bit_for_bit(backend):
    own = pictures.open_picture(made_by(backend).pictures[0].path).pixels
    backend.vaes.choose(VIVID)
    vivid = made_by(backend).pictures[0]
    assert infotext.parse(vivid.infotext).fields["VAE"] == VIVID
    assert infotext.parse(vivid.infotext).fields["VAE hash"] == backend.vaes.top_bar().active_hash
    assert np.abs(pictures.open_picture(vivid.path).pixels.astype(int) - own).mean() > 4
    backend.vaes.choose(NONE)
    assert np.array_equal(pictures.open_picture(made_by(backend).pictures[0].path).pixels, own)


@pytest.mark.parametrize("name", ["sixteen.safetensors", "broken.safetensors", "gone.safetensors"])
def test_a_vae_that_cannot_be_used_changes_nothing(backend, name):
    before = (backend.vaes.top_bar(), backend.settings.values())
    with pytest.raises(VaeKitError):
        backend.vaes.choose(name)
    assert (backend.vaes.top_bar(), backend.settings.values()) == before
    stored = SettingsStore(backend.folders.data / "settings.json")
    assert stored.settings.vae.sd_vae == "Automatic"


def test_a_vae_with_other_channels_is_refused_by_its_numbers(backend):
    with pytest.raises(VaeMismatchError, match="16 latent channels"):
        backend.vaes.choose("sixteen.safetensors")


def test_a_choice_outlives_the_process(backend, tmp_path):
    backend.vaes.choose(VIVID)
    again = build_backend(backend.folders, tmp_path / "again")
    try:
        assert again.vaes.top_bar().active == VIVID
    finally:
        again.close()


def test_a_choice_whose_file_is_gone_is_said_and_the_app_starts(backend, tmp_path):
    SettingsStore(backend.folders.data / "settings.json").update({"sd_vae": "gone.safetensors"})
    again = build_backend(backend.folders, tmp_path / "again")
    try:
        assert again.vaes.top_bar().active == OWN_VAE
        assert "gone.safetensors" in again.take_messages()[0].text
    finally:
        again.close()


def test_pictures_are_saved_with_their_parameters(backend):
    finished = made_by(backend).pictures[0]
    saved = list((backend.folders.data / "outputs").rglob("*.png"))
    assert [path.name for path in saved] == [finished.path.name] == ["00001-5.png"]
    assert saved[0].read_bytes() == finished.path.read_bytes()
    assert pictures.read_infotext(saved[0]) == finished.infotext
    backend.settings.change({"vae_kit_saving_save_images": False, "vae_kit_saving_write_infotext": False})
    again = made_by(backend).pictures[0]
    assert len(list((backend.folders.data / "outputs").rglob("*.png"))) == 1
    assert pictures.read_infotext(again.path) is None


def test_an_output_folder_that_cannot_be_used_costs_no_picture(backend):
    (backend.folders.data / "in the way").write_text("a file")
    backend.settings.change({"vae_kit_saving_folder": "in the way"})
    last = made_by(backend)
    assert last.state == "done"
    assert last.pictures[0].path.is_file()
    assert "was not saved" in backend.take_messages()[0].text


def test_a_failed_job_says_why_and_keeps_the_pictures_before(backend, tmp_path):
    first = made_by(backend)
    failed = made_by(backend, Img2Img(picture=tmp_path / "gone.png", width=64, height=64), "img2img")
    assert (failed.state, failed.pictures) == ("failed", ())
    assert "gone.png" in failed.message
    assert backend.jobs.snapshot("txt2img") == first


def test_one_job_at_a_time(backend):
    backend.jobs.start("txt2img", replace(JOB, steps=50))
    with pytest.raises(OptionError, match="A job is running in txt2img"):
        backend.jobs.start("img2img", JOB)
    backend.jobs.interrupt()
    *_, last = backend.jobs.watch("txt2img")
    assert last.state in ("interrupted", "done")


def test_paste_restores_what_a_picture_says(backend):
    backend.vaes.choose(VIVID)
    made = made_by(backend, replace(JOB, negative_prompt="a, b: c"))
    backend.vaes.choose(NONE)
    pasted = backend.pasting.paste(backend.pasting.infotext_of(made.pictures[0].path))
    wanted = {"prompt": "cat", "negative_prompt": "a, b: c", "steps": 8, "seed": 5, "width": SIDE, "height": SIDE}
    assert pasted.values == {**wanted, "vae_decoder": "Full", "vae_encoder": "Full", **BY_SETTINGS}
    assert backend.vaes.top_bar().active == VIVID


def test_paste_finds_a_vae_by_its_hash_when_the_name_differs(backend):
    digits = backend.vaes.top_bar().active_hash
    backend.vaes.choose(VIVID)
    pasted = backend.pasting.paste(f"cat\nSteps: 4, Seed: 1, Size: 64x64, VAE hash: {digits}, VAE: other name.pt")
    assert "other name.pt was found by its hash" in pasted.notes[0]
    assert backend.vaes.top_bar().active == OWN_VAE


def test_paste_of_a_vae_that_is_not_here_says_so_and_keeps_the_one_in_use(backend):
    pasted = backend.pasting.paste("cat\nSteps: 4, Seed: 1, Size: 64x64, VAE hash: 0123456789, VAE: missing.pt")
    assert "missing.pt (hash 0123456789) of that text is not here" in pasted.notes[0]
    assert pasted.values["steps"] == 4
    assert backend.vaes.top_bar().active == OWN_VAE


def test_paste_leaves_out_what_cannot_be(backend):
    pasted = backend.pasting.paste("cat\nSteps: many, Seed: 7, Size: 9000x64, Model: another")
    types = {"vae_decoder": "Full", "vae_encoder": "Full"}
    assert pasted.values == {"prompt": "cat", "negative_prompt": "", "seed": 7, **types, **BY_SETTINGS}
    assert [note.split(" ")[0] for note in pasted.notes] == ["Steps", "Size", "That"]


def test_paste_of_nothing_is_a_clear_line(backend):
    with pytest.raises(OptionError, match="nothing to paste"):
        backend.pasting.paste("  \n ")


def test_the_vae_tab_has_all_facts_and_the_reason_of_a_broken_file(backend):
    *_, facts = backend.vaes.facts(OWN_VAE)
    rows = dict(facts.rows)
    assert {
        "Name",
        "Path",
        "Family",
        "Kind",
        "Part",
        "Layout",
        "Latent channels",
        "Weights",
        "Parameters",
    } <= rows.keys()
    assert len(rows["sha256"]) == len(rows["Fingerprint"]) == 64
    assert rows["VAE hash"] == rows["sha256"][:10]
    *_, broken = backend.vaes.facts("broken.safetensors")
    assert broken.problem
    by_name = {row.name: row for row in backend.vaes.rows()}
    assert by_name[OWN_VAE].active
    assert by_name["broken.safetensors"].problem == broken.problem


def test_refresh_finds_new_files(backend):
    state = load_file(DEMO / VIVID)
    save_file(state, backend.folders.own_vaes / "new.safetensors")
    backend.vaes.refresh()
    assert "new.safetensors" in backend.vaes.top_bar().vaes
    assert "1 cannot be used" in backend.take_messages()[-1].text


# --- the command line of the app -------------------------------------------------------------------------------------


def test_an_option_is_not_guessed_from_its_beginning(capsys):
    """`--ckpt` names a checkpoint in web UIs; here it must not pass for `--ckpt-dir`."""
    with pytest.raises(SystemExit) as stopped:
        app.main(["--ckpt", "model.safetensors"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--vae-dir", "--ckpt-dir", "--vae-path"])
def test_what_is_not_there_is_refused_in_one_line(capsys, tmp_path, option):
    assert app.main(["--data-dir", str(tmp_path), option, str(tmp_path / "missing")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "missing" in error


def test_a_taken_port_is_refused_at_once_in_one_line(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert app.main(["--data-dir", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "choose another --port" in error
    assert list(tmp_path.iterdir()) == []
