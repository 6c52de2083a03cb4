"""Encodes and decodes of fake web UIs by plans: whose calls they are, who else wants them, interrupt, memory."""

import threading
import types

import gradio as gr
import pytest
import torch
from fake_a1111 import Job, installed
from fake_forge import FakeForge
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures("close_event_loops")

# sums in another order; the design allows 1e-4 of a picture's range, which is 2
EXACT = {"atol": 5e-5, "rtol": 0}

ALWAYS = ("Automatic", "Automatic", "stream")
OFF = ("Automatic", "Automatic", "off")


@pytest.fixture
def fake(fake):
    fake.latent = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
    return fake


def by_itself(webui, script):
    """The picture by the program's own forward: neither in bands nor watched for overflows."""
    webui.shared.opts.data["vae_kit_precision_mode"] = "never"
    try:
        return webui.generate(script, *OFF).pictures[0]
    finally:
        del webui.shared.opts.data["vae_kit_precision_mode"]


@pytest.fixture
def own(webui, script):
    return by_itself(webui, script)


def last(host):
    return host.interceptor.runner.last.get("decoder")


# --- which calls are ours --------------------------------------------------------------------------------------------


def test_a_job_in_bands_gives_the_programs_own_picture(webui, host, script, own):
    assert last(host) is None, "off: the program's own forward"
    job = webui.generate(script, *ALWAYS)
    assert_close(job.pictures[0], own, **EXACT)
    assert last(host).bands > 1
    assert job.extra_generation_params["VAE Kit tiling"] == last(host).infotext()["VAE Kit tiling"]
    assert job.extra_generation_params["VAE tiling"] == "stream"
    whole = webui.generate(script)
    assert last(host).plan == "whole"
    assert "VAE Kit tiling" not in whole.extra_generation_params
    assert not webui.errors


def test_the_next_pictures_whole_decode_takes_the_line_away_again(webui, host, script):
    job = Job(extra_generation_params={"VAE Kit tiling": "stream in 5 bands"})
    with host.interceptor.context.job(job):
        webui.decode()
    assert job.extra_generation_params == {}


def test_a_jobs_choice_ends_with_the_job_also_when_it_fails(webui, host, script):
    from sd_vae_kit.settings.job import JobTiling

    with pytest.raises(RuntimeError, match="the host failed"):
        webui.generate(script, *ALWAYS, fail=True)
    assert host.interceptor.settings.job_tiling == JobTiling()
    webui.decode()
    assert last(host).plan == "whole"


def test_a_job_inside_a_job_gives_the_outers_choice_back(webui, host, script):
    seen = []

    def inner():
        webui.generate(script, "Automatic", "Automatic", "Off")
        seen.append(host.interceptor.settings.job_tiling.tiling)

    webui.generate(script, *ALWAYS, init=inner)
    assert seen == ["stream"]
    assert last(host).bands > 1


def test_every_loaded_model_is_ours_and_nobody_elses(webui, host, own):
    from vae_files import kl_config, randomised

    from sd_vae_kit.core.networks.autoencoder import AutoencoderKL

    first = webui.shared.sd_model
    second = webui.load_model("second", seed=7)
    stranger = randomised(AutoencoderKL(kl_config()))
    calls = host.interceptor.runner.last
    for model in (first, second):
        calls.clear()
        model.first_stage_model.decoder(torch.zeros(1, 4, 8, 8))
        assert "decoder" in calls
    calls.clear()
    stranger.decoder(torch.zeros(1, 4, 8, 8))
    assert not calls, "the class has other users, too"


def test_a_call_that_trains_is_left_to_the_program(webui, host):
    host.interceptor.runner.last.clear()
    z = torch.zeros(1, 4, 8, 8, requires_grad=True)
    assert webui.shared.sd_model.first_stage_model.decoder(z).requires_grad
    assert not host.interceptor.runner.last


def test_after_unloading_the_classes_are_as_they_were(webui, host):
    from sd_vae_kit.core.networks.autoencoder import Decoder, Encoder

    assert "__vae_kit_patch__" in vars(Decoder.forward)
    host.remove()
    assert all("__vae_kit_patch__" not in vars(kind.forward) for kind in (Decoder, Encoder))
    host.install()
    assert all("__vae_kit_patch__" in vars(kind.forward) for kind in (Decoder, Encoder))


def test_under_autocast_the_weights_own_type_is_computed_in(webui, host, script, own):
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        made = webui.generate(script, *ALWAYS).pictures[0]
    assert last(host).dtype == "fp32"
    assert last(host).bands > 1
    assert_close(made.clone(), own, atol=0.02, rtol=0)  # what lies before the decoder is the program's, in bf16


def test_seamless_pictures_are_padded_in_a_circle(webui, host, script):
    for module in webui.shared.sd_model.modules():  # as sd_hijack.apply_circular does
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    own = by_itself(webui, script)
    assert_close(webui.generate(script, *ALWAYS).pictures[0], own, **EXACT)
    assert last(host).bands > 1


# --- others who want the same calls ----------------------------------------------------------------------------------


def test_another_tiler_on_top_is_stepped_aside_for_and_named_once(webui, host, script, messages):
    decoder = webui.shared.sd_model.first_stage_model.decoder

    class VAEHook:
        __module__ = "tilevae.py"

        def __call__(self, z):
            return decoder.original_forward(z) + 1

    decoder.original_forward = decoder.forward
    decoder.forward = VAEHook()
    host.interceptor.runner.last.clear()
    made = webui.generate(script, *ALWAYS).pictures[0]
    webui.generate(script, *ALWAYS)
    assert not host.interceptor.runner.last, "also where the other calls what it found"
    assert [m for m in messages if "tilevae.py" in m] == [
        "Another extension (tilevae.py) has taken over this model's VAE; VAE Kit's tiling steps aside."
    ]
    assert sentence(webui, host) == "This VAE runs without VAE Kit: another extension has taken it over."
    decoder.forward = decoder.original_forward  # it is switched off
    assert_close(webui.generate(script, *ALWAYS).pictures[0] + 1, made, **EXACT)
    assert last(host).bands > 1


def test_a_forward_left_behind_by_another_tiler_hides_ours_no_longer(webui, host, script, own):
    decoder = webui.shared.sd_model.first_stage_model.decoder
    host.remove()
    decoder.forward = decoder.forward  # found before ours was there
    host.install()
    assert_close(webui.generate(script, *ALWAYS).pictures[0], own, **EXACT)
    assert last(host).bands > 1
    assert "forward" not in vars(decoder)


def sentence(webui, host):
    from sd_vae_kit.settings.job import JobTiling

    return str(host.forecasts.forecast((64, 64), JobTiling()))


def test_a_vae_nobody_knows_is_left_to_the_program_and_that_is_said_once(webui, host, script, own, messages):
    mid = webui.shared.sd_model.first_stage_model.decoder.mid
    mid.forward = mid.forward
    for _ in range(2):
        assert torch.equal(webui.generate(script, *ALWAYS).pictures[0], own)
    assert last(host) is None
    said = [m for m in messages if "decoder itself, without VAE Kit" in m]
    assert len(said) == 1
    assert "mid was changed by another extension" in said[0]
    assert "This VAE runs without VAE Kit: decoder.mid was changed" in sentence(webui, host)


# --- while a job runs ------------------------------------------------------------------------------------------------


def test_progress_is_beside_the_bar_and_goes_away(webui, script):
    webui.generate(script, *ALWAYS)
    said = webui.said
    assert said[-1] is None
    numbers = [int(text.removeprefix("VAE decode ").removesuffix("%")) for text in said if text]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 100
    assert len(set(numbers)) > 5


def interrupt_at(webui, text):
    """Interrupt as soon as the page shows `text`."""
    state = webui.shared.state

    class Said(list):
        def append(self, said):
            super().append(said)
            state.interrupted = state.interrupted or bool(said and said.startswith(text))

    webui.said = Said()


def test_an_interrupt_inside_a_decode_gives_the_preview_in_full_size(webui, host, script, own, messages):
    interrupt_at(webui, "VAE decode 3")
    job = webui.generate(script, *ALWAYS, n_iter=3)
    # Approx NN is not there, so Approx cheap: here three of the latent's channels
    expected = torch.nn.functional.interpolate(
        webui.latent[:, :3].clamp(-1, 1), size=own.shape[2:], mode="bilinear", align_corners=False
    )
    for picture in job.pictures:  # those that follow come at once
        assert_close(picture, expected)
    assert "VAE Kit tiling" not in job.extra_generation_params
    assert any("Approx NN" in m for m in messages)
    assert webui.said[-1] is None
    webui.shared.state.interrupted, webui.said = False, []  # the next job
    assert_close(webui.generate(script, *ALWAYS).pictures[0], own, **EXACT)


def test_a_job_interrupted_while_sampling_is_decoded_to_its_end(webui, host, script, own):
    def interrupt():
        webui.shared.state.interrupted = True

    job = webui.generate(script, *ALWAYS, init=interrupt)
    assert_close(job.pictures[0], own, **EXACT)


def test_an_encode_is_always_finished(webui, host, script):
    interrupt_at(webui, "VAE encode 3")
    model, image = webui.shared.sd_model, torch.rand(1, 3, 96, 64) * 2 - 1
    expected = model.first_stage_model.encode(image)
    made = []
    webui.generate(script, *ALWAYS, init=lambda: made.append(model.encode_first_stage(image)))
    assert webui.shared.state.interrupted
    assert_close(made[0], expected, **EXACT)
    assert host.interceptor.runner.last["encoder"].bands > 1


@pytest.mark.parametrize("how", ["the page's thread", "--medvram"])
def test_previews_show_no_progress_and_are_not_interrupted(webui, host, script, own, how):
    state = webui.shared.state
    state.current_latent, state.interrupted = webui.latent, True

    def preview():
        if how == "--medvram":
            webui.sd_samplers_common.store_latent(webui.latent)
        else:
            thread = threading.Thread(target=state.do_set_current_image)
            thread.start()
            thread.join()
        assert not webui.said
        state.interrupted = False

    job = webui.generate(script, *ALWAYS, init=preview)
    assert_close(webui.previews[0], own, **EXACT)
    assert_close(job.pictures[0], own, **EXACT)


def test_two_threads_decode_at_once(webui, host, own):
    made = []
    threads = [threading.Thread(target=lambda: made.append(webui.decode())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert all(torch.equal(picture, made[0]) for picture in made)
    assert_close(made[0], own, **EXACT)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_is_one_line_and_the_picture_comes(webui, host, script, own, messages, monkeypatch):
    calls = iter([True])
    real = torch.nn.functional.silu

    def silu(*args, **kwargs):
        if next(calls, False):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return real(*args, **kwargs)

    webui.latent = torch.randn(1, 4, 96, 96)
    expected = by_itself(webui, script)
    monkeypatch.setattr(torch.nn.functional, "silu", silu)
    made = webui.generate(script, "Automatic", "Automatic", "auto").pictures[0]
    assert_close(made, expected, **EXACT)
    (line,) = [m for m in messages if "ran out of memory" in m]
    assert line.endswith("was used instead, the result is the same.")


def test_no_model_leaves_the_card_for_a_preview(webui, host, script, monkeypatch):
    """They are at work: the sampler would find them gone."""
    asked = []
    webui.latent = torch.randn(1, 4, 96, 96)
    expected = by_itself(webui, script)
    monkeypatch.setattr(host.interceptor._environment, "make_room", lambda needed: asked.append(needed))
    real, calls = torch.nn.functional.silu, iter([True])

    def silu(*args, **kwargs):
        if next(calls, False):
            raise RuntimeError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "silu", silu)
    with host.interceptor.context.preview():
        made = webui.decode()
    assert_close(made, expected, **EXACT)
    assert next(calls, None) is None, "memory ran out on the way"
    assert not asked
    calls = iter([True])
    webui.decode()
    assert len(asked) == 1, "outside of a preview there is somebody to ask"


def test_other_models_leave_the_card_for_one_call_only(webui, host):
    moves = []

    class Recorded(torch.nn.Linear):
        def to(self, where):
            moves.append((self.name, str(where)))
            return self

    model = webui.shared.sd_model
    for name in ("model", "cond_stage_model"):
        module = Recorded(1, 1)
        module.name = name
        setattr(model, name, module)
    make_room, answers = host.interceptor._environment.make_room, []
    host.remove()
    model.encode_first_stage = lambda count: answers.extend(make_room(1) for _ in range(count))
    host.install()
    model.encode_first_stage(1)
    assert answers == [False], "nothing is moved on a CPU"
    webui.devices.device = torch.device("meta")  # any but the CPU
    assert make_room(1) is False, "nor outside of a call"
    model.encode_first_stage(2)
    assert answers[1:] == [True, False]
    assert moves == [("model", "cpu"), ("cond_stage_model", "cpu"), ("model", "meta"), ("cond_stage_model", "meta")]
    model.lowvram = True
    model.encode_first_stage(1)
    assert answers[-1] is False, "with --medvram they are not there"


# --- requests to the old extension -----------------------------------------------------------------------------------


@pytest.fixture
def old(webui):
    from sd_vae_kit.webui.tiled_vae_script import TiledVaeScript

    return TiledVaeScript()


def test_the_old_arguments_become_a_budget_for_the_job(webui, host, old, own):
    webui.latent = torch.randn(1, 4, 112, 96)
    made = webui.generate(old, True, 256, 48, True, True, True, False)
    assert last(host).bands > 1
    assert host.interceptor.settings.tile_sizes is None
    webui.generate(old, False, 256, 48, True, True, True, False)
    assert last(host).plan == "whole"
    assert_close(made.pictures[0], webui.decode(), **EXACT)


def test_where_the_old_extension_is_installed_ours_does_not_take_its_name(webui, old):
    assert old.title() == "Tiled VAE"
    assert old.show(False) is webui.scripts.AlwaysVisible
    webui.scripts.scripts_data.append(types.SimpleNamespace(path="/extensions/x/scripts/tilevae.py"))
    assert old.show(False) is False


def test_its_arguments_are_counted_and_hidden(webui, old):
    with gr.Blocks():
        controls = old.ui(False)
    assert [control.value for control in controls] == [False, 960, 64, True, True, True, False]
    assert not any(control.visible for control in controls)


def test_a_tile_size_that_is_no_number_is_said_and_ignored(webui, host, old, messages):
    webui.generate(old, True, "large", 48)
    assert host.interceptor.settings.tile_sizes is None
    assert any("tile size is 'large'" in m for m in messages)


# --- the panel's sentence --------------------------------------------------------------------------------------------


def test_the_sentence_follows_the_pages_own_widgets(webui, host, script):
    with gr.Blocks() as page:
        widgets = {
            name: gr.Number(value, elem_id=f"txt2img_{name}")
            for name, value in (("width", 64), ("height", 32), ("hr_scale", 2), ("hr_resize_x", 0), ("hr_resize_y", 0))
        }
        widgets["hr-checkbox"] = gr.Checkbox(elem_id="txt2img_hr-checkbox")
        script.is_img2img = False
        for name, widget in widgets.items():
            script.after_component(widget, elem_id=f"txt2img_{name}")
        script.ui(False)
        assert not script.tiling_panel.sizes, "a widget that is being built cannot be listened to"
        script.after_component(object(), elem_id="txt2img_seed")
        script.after_component(object())
    panel = script.tiling_panel
    assert set(panel.sizes) == set(widgets)
    inputs = len(panel.sizes) + len(panel.controls)
    listening = list(page.fns.values()) if hasattr(page, "fns") else page.dependencies
    assert len(listening) == 1 + inputs + 1, "the dropdowns' refresh, every input, and the sentence's refresh"

    def said(**changed):
        values = {"width": 64, "height": 32, "hr_scale": 2, "hr_resize_x": 0, "hr_resize_y": 0, "hr-checkbox": False}
        values |= {"tiling": "Auto", "tiling_memory_mb": 0, "tiling_parts": "As in Settings", **changed}
        return panel.said(*(values[name] for name in [*panel.sizes, "tiling", "tiling_memory_mb", "tiling_parts"]))

    assert "<b>64x32</b> <span>with this VAE: about</span> <b>" in said()
    assert said().endswith("<span>will run whole</span></p>")
    assert "<b>128x64</b>" in said(**{"hr-checkbox": True})
    assert "<b>96x48</b>" in said(**{"hr-checkbox": True}, hr_resize_x=96)
    assert "<b>80x96</b>" in said(**{"hr-checkbox": True}, hr_resize_x=80, hr_resize_y=96)
    assert "<span>, same picture</span>" in said(tiling="Always stream")
    assert "<b>1 MB</b> <span>budget:</span>" in said(tiling_memory_mb=1, width=512, height=512)
    assert said(width=None) == ""
    webui.sd_models.model_data.sd_model = None
    assert "No checkpoint is loaded yet." in said()


# --- Forge -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def forge(monkeypatch, tmp_path):
    with installed(FakeForge(tmp_path), monkeypatch) as fake:
        from sd_vae_kit.webui import callbacks

        fake.latent = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
        callbacks.register()
        fake.start()
        yield fake


def forge_script():
    from sd_vae_kit.webui.script import VaeKitScript

    return VaeKitScript()


def memory_of(forge):
    return forge.modules["backend.memory_management"]


def test_forge_asks_for_the_room_that_we_predict(forge):
    from sd_vae_kit.webui.running import running

    script = forge_script()
    own = by_itself(forge, script)
    made = forge.generate(script, *ALWAYS).pictures[0]
    assert_close(made.clone(), own.clone(), **EXACT)
    host = running()
    report = host.interceptor.runner.last["decoder"]
    assert report.bands > 1
    by_the_program, by_us = forge.asked
    assert by_the_program == 2178 * 32 * 24 * 64 * 4
    assert by_us == report.predicted_mb * 2**20
    vae = forge.shared.sd_model.forge_objects.vae
    assert vae.memory_used_decode((1, 4, 1, 1), torch.float32) == 2178 * 64 * 4, "its own again"


def test_forges_never_oom_is_stepped_aside_for_and_named_once(forge):
    from sd_vae_kit.webui.running import running

    script, said = forge_script(), []
    running().base.messages.listen(lambda message, level: said.append(message))
    memory_of(forge).VAE_ALWAYS_TILED = True
    for _ in range(2):
        assert "VAE Kit tiling" not in forge.generate(script, *ALWAYS).extra_generation_params
    assert len(forge.tiled) == 2
    assert not running().interceptor.runner.last
    assert sum("Never OOM" in message for message in said) == 1
    memory_of(forge).VAE_ALWAYS_TILED = False
    assert "VAE Kit tiling" in forge.generate(script, *ALWAYS).extra_generation_params


def test_where_no_plan_works_forge_tiles_in_its_own_way(forge, monkeypatch):
    from sd_vae_kit.core.run.runner import Runner
    from sd_vae_kit.errors import NoMemoryError
    from sd_vae_kit.webui.running import running

    real, said = Runner.run, []

    def run(self, network, part, x, *more):
        if x.shape[2] > 2:
            raise NoMemoryError("Not enough memory for a decoder input of 32x24 with any plan.")
        return real(self, network, part, x, *more)

    running().base.messages.listen(lambda message, level: said.append(message))
    monkeypatch.setattr(Runner, "run", run)
    job = forge.generate(forge_script(), *ALWAYS)
    assert forge.tiled == [(1, 4, 32, 24)]
    assert job.pictures[0].shape[1] == 3
    assert "Not enough memory for a decoder input of 32x24 with any plan." in said


def test_an_interrupt_inside_forges_decode_gives_the_preview(forge):
    script = forge_script()
    own = by_itself(forge, script)
    interrupt_at(forge, "VAE decode 3")
    job = forge.generate(script, *ALWAYS)
    expected = torch.nn.functional.interpolate(
        forge.latent[:, :3].clamp(-1, 1), size=own.shape[2:], mode="bilinear", align_corners=False
    )
    assert_close(job.pictures[0].clone(), expected, atol=1e-5, rtol=1e-5)
    assert not forge.tiled
