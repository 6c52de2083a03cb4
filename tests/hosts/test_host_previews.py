"""Previews and TAESD of A1111-style web UIs, beside fakes that do wrong what the real ones do wrong."""

import threading
import time

import numpy as np
import pytest
import torch
from fake_a1111 import FakeA1111
from fake_previews import Network, add_previews, job
from fastapi import HTTPException
from PIL import Image
from vae_files import tiny_state, write

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.core.preview import LINEAR_RGB, Previewer, linear_rgb
from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.sections import STREAM


@pytest.fixture
def program_class(tmp_path):
    """With previews, and a random TAESD pair of SD 1 in models/VAE-taesd."""
    for half in ("encoder", "decoder"):
        config = TinyConfig(4, 8, encoder=half == "encoder", decoder=half == "decoder")
        write(tmp_path / "VAE-taesd" / f"taesd_{half}.safetensors", tiny_state(config), {"family": "sd1"})
    return lambda folder: add_previews(FakeA1111(folder))


@pytest.fixture
def webui(webui):
    """In the middle of a job."""
    webui.shared.state.begin()
    yield webui
    webui.shared.state.end()


@pytest.fixture
def messages(host):
    said = []
    host.base.messages.listen(lambda message, level: said.append((level, message)))
    return said


@pytest.fixture
def without_files(webui, host):
    for path in (webui.folder / "VAE-taesd").iterdir():
        path.unlink()
    return webui


def options(webui, **values):
    webui.shared.opts.data.update(values)


def step(webui, number, latent):
    """What the sampler does at a step."""
    webui.shared.state.sampling_step = number
    webui.sd_samplers_common.store_latent(latent)


def polled(webui):
    """What a poll of the page does; the picture it finds."""
    webui.shared.state.set_current_image()
    return webui.shared.state.current_image


LATENT = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(1))


def tiny(webui, half):
    return load_vae(webui.folder / "VAE-taesd" / f"taesd_{half}.safetensors", dtype=torch.float32)


def shown_by(previewer, latent):
    return previewer(latent).numpy()


def noted_threads(host, monkeypatch):
    """Fills with the thread of every picture that is made."""
    threads, make = [], host.previews._render

    def render(*given):
        threads.append(threading.current_thread())
        return make(*given)

    monkeypatch.setattr(host.previews, "_render", render)
    return threads


# --- previews --------------------------------------------------------------------------------------------------------


def test_a_poll_gets_the_newest_latent_decoded_by_our_taesd_in_another_thread(webui, host, monkeypatch):
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100)
    threads = []
    make = host.previews._render
    monkeypatch.setattr(
        host.previews, "_render", lambda latent: threads.append(threading.current_thread()) or make(latent)
    )
    for number in range(1, 6):
        step(webui, number, LATENT * number)
    image = polled(webui)
    decode = tiny(webui, "decoder").decode
    expected = Previewer(FORMATS["sd1"], "taesd", 512, lambda latent: decode(latent) * 0.5 + 0.5)
    assert np.array_equal(np.asarray(image), shown_by(expected, LATENT * 5))
    assert [thread.name for thread in threads] == ["vae-kit-preview"]
    assert webui.decoded_by_host == []
    assert webui.shared.state.id_live_preview == 1
    assert webui.shared.state.current_image_sampling_step == 5


def test_without_polls_nothing_is_rendered(webui, host):
    options(webui, show_progress_type="TAESD")
    for number in range(1, 6):
        step(webui, number, LATENT)
    time.sleep(0.05)
    assert webui.shared.state.current_image is None
    assert host.previews._running.rendered == 0


def test_the_hosts_interval_is_kept_and_a_second_pass_begins_anew(webui):
    options(webui, show_progress_type="Approx cheap", show_progress_every_n_steps=3, vae_kit_preview_share=100)
    seen = []
    for number in (1, 2, 3, 4, 5, 6, 1, 2, 3):
        step(webui, number, LATENT)
        polled(webui)
        seen.append(webui.shared.state.id_live_preview)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("values", [{"live_previews_enable": False}, {"show_progress_every_n_steps": -1}])
def test_previews_that_are_off_are_off(webui, values):
    options(webui, show_progress_type="TAESD", **values)
    step(webui, 20, LATENT)
    assert polled(webui) is None


def test_the_linear_choice_is_our_map_of_the_models_family(webui):
    options(webui, show_progress_type="Approx cheap", vae_kit_preview_share=100)
    step(webui, 1, LATENT)
    assert np.array_equal(np.asarray(polled(webui)), shown_by(Previewer(FORMATS["sd1"], "linear"), LATENT))
    webui.load_model("xl", 3, is_sdxl=True)
    step(webui, 2, LATENT)
    assert np.array_equal(np.asarray(polled(webui)), shown_by(Previewer(FORMATS["sdxl"], "linear"), LATENT))


@pytest.mark.parametrize("method", ["TAESD", "Approx cheap", "Approx NN"])
def test_sixteen_channels_do_not_crash(webui, host, messages, method, monkeypatch):
    monkeypatch.setattr(host.taesd, "family", lambda: "sd3")
    options(webui, show_progress_type=method, vae_kit_preview_share=100)
    latent = torch.randn(1, 16, 4, 4)
    step(webui, 1, latent)
    assert np.array_equal(np.asarray(polled(webui)), shown_by(Previewer(FORMATS["sd3"], "linear"), latent))
    if method == "TAESD":
        assert [level for level, _ in messages] == ["warning"]


def test_the_hosts_own_network_is_used_where_it_is_there(webui):
    (webui.folder / "VAE-approx").mkdir()
    (webui.folder / "VAE-approx" / "model.pt").touch()
    options(webui, show_progress_type="Approx NN", vae_kit_preview_share=100)
    step(webui, 1, LATENT)
    assert polled(webui).size == (8, 6), "its pictures are small"
    assert webui.downloads == []


def test_full_previews_go_through_the_vae(webui):
    options(webui, show_progress_type="Full", vae_kit_preview_share=100)
    step(webui, 1, LATENT)
    expected = webui.sd_samplers_common.single_sample_to_image(LATENT[0], 0)
    assert np.array_equal(np.asarray(polled(webui)), np.asarray(expected))


def test_a_batch_is_shown_as_the_host_says(webui):
    options(webui, show_progress_type="Approx cheap", show_progress_grid=True, vae_kit_preview_share=100)
    step(webui, 1, torch.cat([LATENT, -LATENT]))
    assert polled(webui).size == (2 * 64, 48)
    options(webui, show_progress_grid=False)
    step(webui, 2, torch.cat([LATENT, -LATENT]))
    assert polled(webui).size == (64, 48)


def test_a_large_picture_is_shrunk_for_the_preview(webui):
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100, vae_kit_preview_max_side=128)
    step(webui, 1, torch.randn(1, 4, 64, 96))
    assert max(polled(webui).size) == 128


@pytest.mark.parametrize("method", ["TAESD", "Approx cheap", "Approx NN", "Full"])
def test_where_the_host_forbids_threads_it_happens_in_the_samplers(webui, host, monkeypatch, method):
    """--medvram: at the host's interval, under the same limits."""
    webui.shared.parallel_processing_allowed = False
    options(webui, show_progress_type=method, show_progress_every_n_steps=2, vae_kit_preview_share=100)
    threads = []
    make = host.previews._render
    monkeypatch.setattr(
        host.previews, "_render", lambda latent: threads.append(threading.current_thread()) or make(latent)
    )
    for number in range(1, 7):
        step(webui, number, LATENT)
        assert polled(webui) is webui.shared.state.current_image, "a poll only looks"
    assert threads == [threading.current_thread()] * 3
    assert webui.shared.state.id_live_preview == 3
    assert webui.shared.state.current_image is not None


@pytest.mark.parametrize("beside", [True, False])
def test_a_preview_that_fails_stops_nothing(webui, host, monkeypatch, beside):
    webui.shared.parallel_processing_allowed = beside
    options(webui, show_progress_type="TAESD")

    def fail(*anything):
        raise RuntimeError("boom")

    monkeypatch.setattr(host.previews, "_render", fail)
    for number in range(1, 4):
        step(webui, number, LATENT)
        polled(webui)
    assert host.previews._running.failure == "boom"
    monkeypatch.setattr(type(host.base.options), "settings", property(fail))
    host.previews._close()
    step(webui, 4, LATENT)  # not even our own setting up


def test_the_latent_is_not_touched(webui):
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100)
    latent = LATENT.clone()
    with torch.inference_mode():
        step(webui, 1, latent)
    assert polled(webui) is not None
    assert torch.equal(latent, LATENT)
    assert webui.shared.state.current_latent is latent


def test_after_a_job_nothing_of_it_is_kept(webui, host):
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100)
    step(webui, 1, LATENT)
    polled(webui)
    thread = host.previews._running._thread
    assert host.taesd.vaes._kept
    webui.shared.state.end()
    assert host.previews._running is None
    assert not host.taesd.vaes._kept
    thread.join(5)
    assert not thread.is_alive()


def test_a_latent_stored_past_us_is_still_shown(webui):
    """An extension that sets `state.current_latent` by itself."""
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100)
    webui.shared.state.current_latent, webui.shared.state.sampling_step = LATENT, 2
    assert polled(webui) is not None


def test_the_end_of_a_batch_is_shown_without_raising(webui, host, monkeypatch):
    options(webui, show_progress_type="TAESD")
    webui.shared.state.current_latent = LATENT
    webui.shared.state.do_set_current_image()
    assert webui.shared.state.current_image.size == (64, 48)


def test_switched_off_the_host_does_as_before(webui):
    options(webui, vae_kit_repair_previews=False, vae_kit_repair_taesd=False, show_progress_type="Full")
    step(webui, 1, LATENT)
    polled(webui)
    assert len(webui.decoded_by_host) == 1
    with pytest.raises(Network):
        webui.sd_vae_taesd.decoder_model()


def test_reload_ui_takes_the_patches_away_and_puts_them_back(webui, host):
    from sd_vae_kit.webui import callbacks

    before = webui.sd_samplers_common.store_latent
    webui.reload_ui(lambda: None)
    assert webui.sd_samplers_common.store_latent is not before
    assert webui.sd_samplers_common.store_latent.__name__ == "store_latent"
    callbacks.register()
    assert host.base.patches.is_applied(webui.sd_samplers_common, "store_latent")


# --- missing files ---------------------------------------------------------------------------------------------------


def test_without_files_the_linear_preview_is_shown_and_one_line_says_what_to_install(without_files, messages):
    webui = without_files
    options(webui, show_progress_type="TAESD", vae_kit_preview_share=100)
    for number in range(1, 4):
        step(webui, number, LATENT * number)
        image = polled(webui)
        assert np.array_equal(np.asarray(image), shown_by(Previewer(FORMATS["sd1"], "linear"), LATENT * number))
    assert len(messages) == 1
    assert messages[0][0] == "warning"
    assert 'python -m sd_vae_kit download "TAESD decoder"' in messages[0][1]
    assert messages[0][1].endswith("The linear preview is shown.")
    assert webui.downloads == []


def test_without_files_the_vae_itself_decodes_and_encodes_and_the_infotext_does_not_lie(without_files, host, messages):
    webui = without_files
    options(webui, sd_vae_decode_method="TAESD", sd_vae_encode_method="TAESD")
    p = job()
    host.taesd.begin_job(p)
    assert p.extra_generation_params == {}
    rgb = torch.rand(1, 3, 16, 16)
    latent = webui.sd_samplers_common.images_tensor_to_samples(rgb)
    image = webui.sd_samplers_common.decode_first_stage(webui.shared.sd_model, LATENT)
    torch.testing.assert_close(latent, webui.sd_samplers_common.images_tensor_to_samples(rgb, 0))
    torch.testing.assert_close(image, webui.shared.sd_model.decode_first_stage(LATENT))
    p.extra_generation_params.update({"VAE Encoder": "TAESD", "VAE Decoder": "TAESD"})  # as the host writes them
    host.taesd.correct_infotext(p)
    assert p.extra_generation_params == {}
    assert len(messages) == 2
    assert all(text.endswith("The VAE itself is used.") for _, text in messages)
    assert webui.downloads == []


def test_a_job_does_not_fail_for_the_sake_of_approx_nns_missing_file(webui, host, messages):
    """Web UIs ask for the network before a job that shows it (processing.py:929), and decode with it at Interrupt."""
    network = webui.sd_vae_approx.model()
    rgb = network(LATENT)
    assert rgb.shape == (1, 3, 12, 16)
    small = torch.nn.functional.avg_pool2d(rgb * 0.5 + 0.5, 2)
    linear = torch.from_numpy(shown_by(Previewer(FORMATS["sd1"], "linear"), LATENT)).permute(2, 0, 1) / 255
    linear = torch.nn.functional.interpolate(linear[None], small.shape[2:], mode="area")
    assert abs(small - linear).mean() < 0.1, "the same colours, but for edges"
    assert webui.downloads == []
    for _ in range(2):
        webui.sd_vae_approx.model()
    assert [text for _, text in messages] == [
        "model.pt for the preview Approx NN is not there; choose TAESD. The linear preview is shown."
    ]


def test_previews_of_a_family_nobody_here_knows_are_the_hosts(webui, host, monkeypatch):
    """Neo has its own TAESD for video models, and names of its own for ways to show a latent."""
    asked = []
    monkeypatch.setattr(host.taesd, "family", lambda: "unknown")
    image = Image.new("RGB", (4, 4), "red")
    monkeypatch.setattr(webui.sd_samplers_common, "single_sample_to_image", lambda *given: asked.append(given) or image)
    for number, method in enumerate(("TAESD", "Approx cheap", "Approx NN"), 1):
        options(webui, show_progress_type=method, vae_kit_preview_share=100)
        step(webui, number, torch.randn(1, 16, 1, 4, 4))
        assert polled(webui) is image
        webui.shared.state.current_image = None
    assert len(asked) == 3


def test_taesd_of_a_family_nobody_here_knows_is_the_hosts(webui, host, monkeypatch):
    monkeypatch.setattr(host.taesd, "family", lambda: "unknown")
    options(webui, sd_vae_decode_method="TAESD")
    p = job()
    host.taesd.begin_job(p)
    with pytest.raises(Network):
        webui.sd_vae_taesd.decoder_model()
    p.extra_generation_params["VAE Decoder"] = "TAESD"  # as the host writes it
    host.taesd.correct_infotext(p)
    assert p.extra_generation_params == {"VAE Decoder": "TAESD"}


def test_a_file_that_was_put_there_meanwhile_is_found(without_files, host):
    path = without_files.folder / "VAE-taesd" / "taesd_decoder.safetensors"
    assert not host.taesd.has("sd1", "decoder")
    write(path, tiny_state(TinyConfig(4, 8, encoder=False)), {"family": "sd1"})
    assert host.taesd.has("sd1", "decoder")


def test_offline_the_hosts_own_downloads_contact_nobody(webui, tmp_path):
    options(webui, vae_kit_download_offline=True, show_progress_type="Approx NN")
    webui.sd_vae_taesd.download_model(str(tmp_path / "x.pth"), "https://example.invalid/x.pth")
    step(webui, 1, LATENT)
    polled(webui)
    assert webui.downloads == []


# --- decode and encode -----------------------------------------------------------------------------------------------


def test_the_hosts_methods_use_our_networks(webui, host):
    options(webui, sd_vae_decode_method="TAESD", sd_vae_encode_method="TAESD")
    p = job()
    host.taesd.begin_job(p)
    assert p.extra_generation_params == {"VAE Decoder": "TAESD"}, "before the first picture is saved, hires or not"
    rgb = torch.rand(1, 3, 48, 64)
    latent = webui.sd_samplers_common.images_tensor_to_samples(rgb)
    torch.testing.assert_close(latent, tiny(webui, "encoder").encode(rgb * 2 - 1))
    image = webui.sd_samplers_common.decode_first_stage(webui.shared.sd_model, LATENT)
    torch.testing.assert_close(image, tiny(webui, "decoder").decode(LATENT))
    p.extra_generation_params.clear()
    host.taesd.correct_infotext(p)
    assert p.extra_generation_params == {"VAE Decoder": "TAESD"}


def test_full_writes_nothing(webui, host):
    p = job()
    host.taesd.begin_job(p)
    host.taesd.correct_infotext(p)
    assert p.extra_generation_params == {}


def test_a_large_picture_is_streamed_exactly(webui):
    options(webui, vae_kit_tiling_mode=STREAM)
    coder = webui.sd_vae_taesd.decoder_model()
    latent = torch.randn(1, 4, 320, 96)
    rgb = coder(latent)
    assert (coder.report.plan, coder.report.bands > 2) == ("stream", True)
    torch.testing.assert_close(rgb * 2 - 1, tiny(webui, "decoder").decode(latent), atol=1e-5, rtol=0)


def test_an_interrupted_decode_without_files_is_a_sketch(without_files, messages):
    """It must not begin the decode that was just interrupted anew."""
    without_files.shared.state.interrupted = True
    rgb = without_files.sd_vae_taesd.decoder_model()(LATENT)
    assert rgb.shape == (1, 3, 48, 64)
    torch.testing.assert_close(rgb[:, :, 4::8, 4::8].mean(), linear_rgb(LATENT, torch.tensor(LINEAR_RGB["sd1"])).mean(),
                               atol=0.05, rtol=0)  # fmt: skip
    assert messages == []


def test_half_precision_comes_back_in_half_precision(webui):
    coder = webui.sd_vae_taesd.decoder_model()
    assert coder(LATENT.bfloat16()).dtype == torch.bfloat16
    assert coder(LATENT).dtype == torch.float32


@pytest.mark.parametrize("option", ["sd_vae_decode_method", "sd_vae_encode_method"])
def test_a_method_that_does_not_exist_is_refused(webui, host, option):
    """The host decodes Approx NN to a quarter of the size, and writes any other word into the infotext."""
    options(webui, **{option: "Approx NN"})
    with pytest.raises(SettingError, match=f"{option} cannot be 'Approx NN'; choose Full or TAESD"):
        host.taesd.begin_job(job())


def test_a_refused_method_stops_the_job(webui, host):
    from sd_vae_kit.webui.script import VaeKitScript

    options(webui, sd_vae_decode_method="bogus")
    with pytest.raises(HTTPException, match="bogus"):
        webui.generate(VaeKitScript())
