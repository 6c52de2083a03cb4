"""The Forge adapter beside a fake Forge that loads and restores as the real one does."""

import gc
import threading
import weakref

import pytest
import torch
from fake_a1111 import Runner, installed
from fake_forge import FakeForge, HiresJob, VideoVae
from fake_neo import FakeNeo
from fastapi import HTTPException


@pytest.fixture
def program_class():
    return FakeForge


@pytest.fixture
def webui(started):
    """No model yet, as after a start."""
    return started


@pytest.fixture
def own(webui, script):
    """The picture by the checkpoint's own VAE; the model is loaded now."""
    return made(webui, script)


def made(webui, script, *args, **job):
    return webui.generate(script, *args, **job).pictures[-1]


def override(name):
    return {"override_settings": {"sd_vae": name}}


# -- the option -------------------------------------------------------------------------------------------------------


def test_the_placeholder_becomes_a_dropdown_and_comes_back_with_the_extension_gone(webui, host):
    labels = webui.shared.opts.data_labels
    ours = labels["sd_vae"]
    assert ours.label == "SD VAE"
    assert ours.component.__name__ == "Dropdown"
    assert ours.component_args()["choices"][:3] == ["Automatic", "None", "cut.safetensors"]
    assert webui.shared.opts.data["quick_setting_list"] == ["sd_vae"]
    host.remove()
    assert labels["sd_vae"].label == "(Managed by Forge)"


def test_reload_ui_twice_changes_nothing_and_respects_a_removed_dropdown(webui, script, own):
    from sd_vae_kit.webui import callbacks

    webui.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = made(webui, script)
    webui.shared.opts.data["quick_setting_list"] = []
    for _ in range(2):
        webui.reload_ui(callbacks.register)
        webui.start()
        assert torch.equal(made(webui, script), chosen)
    assert webui.shared.opts.data["quick_setting_list"] == []
    assert webui.shared.opts.data_labels["sd_vae"].label == "SD VAE"
    assert not torch.equal(chosen, own)


def test_the_settings_page_saves_the_choice_that_the_program_passes_over(webui, own):
    page = webui.ui_settings.UiSettings()
    keys = list(webui.shared.opts.data_labels)
    page.components = ["dropdown" if key == "sd_vae" else "dummy" for key in keys]
    assert page.run_settings(*("other.safetensors" if key == "sd_vae" else None for key in keys)) == "saved"
    assert webui.shared.opts.sd_vae == "other.safetensors"


def test_a1111_s_list_of_vaes_is_served(host):
    (endpoint,) = host.page.own_routes().values()
    assert {"model_name", "filename"} == set(endpoint()[0])


# -- the swap ---------------------------------------------------------------------------------------------------------


def test_a_choice_made_before_the_first_job_is_live_in_it(webui, script):
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    first = made(webui, script)
    webui.shared.opts.set("sd_vae", "None")
    assert not torch.equal(made(webui, script), first)
    assert webui.sd_vae.loaded_vae_file is None


def test_weights_change_in_place_and_none_gives_them_back_bit_for_bit(webui, script, own):
    module = webui.shared.sd_model.forge_objects.vae.first_stage_model
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert webui.shared.sd_model.forge_objects.vae.first_stage_model is module
    assert all(tensor.is_inference() for tensor in module.parameters())
    assert not torch.equal(made(webui, script), own)
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    webui.shared.opts.set("sd_vae", "None")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


def test_a_name_that_cannot_be_used_is_refused_and_changes_nothing(webui, script, messages, own):
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    before = made(webui, script)
    for name in ("wide.safetensors", "cut.safetensors", "nowhere"):
        assert webui.shared.opts.set("sd_vae", name) is False
        assert messages.pop().endswith("The option stays at plain.safetensors.")
        assert not messages
        assert torch.equal(made(webui, script), before)


def test_the_api_answers_a_refused_option_with_an_error(webui, host, own):
    with pytest.raises(HTTPException, match="stays at") as caught:
        webui.sysinfo.set_config({"sd_vae": "wide.safetensors"})
    assert caught.value.status_code == 422
    assert webui.shared.opts.sd_vae == "Automatic"


def test_a_vae_nobody_knows_is_left_to_the_program_and_said_once(webui, script, host, messages):
    webui.select("video")
    webui.decode = lambda: torch.zeros(1)
    for _ in range(2):
        made(webui, script)
    assert sum("leaves the VAE of this model to the web UI" in message for message in messages) == 1
    assert "looks after" in host.report.status().reason


def test_a_dropped_model_is_let_go(webui, script, own):
    dropped = weakref.ref(webui.shared.sd_model)
    webui.select("another")
    made(webui, script)
    webui.loaded_models.clear()
    gc.collect()
    assert dropped() is None


def test_families_are_told_by_the_numbers_the_program_scales_with(webui, script, host):
    webui.factors = (0.13025, 0.0)
    made(webui, script)
    assert host.report.status().family == "SDXL"
    webui.factors = (7.0, 0.0)
    webui.select("another")
    made(webui, script)
    assert host.report.status().family == "an unknown family"


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_an_override_holds_for_one_request(webui, script, own):
    with_plain = made(webui, script, **override("plain.safetensors"))
    assert not torch.equal(with_plain, own)
    assert torch.equal(made(webui, script), own)
    assert webui.shared.opts.sd_vae == "Automatic"


def test_a_bad_override_is_refused_and_a_bad_setting_only_said(webui, script, host, messages, own):
    with pytest.raises(Exception, match="nowhere"):
        made(webui, script, **override("nowhere"))
    assert webui.shared.opts.sd_vae == "Automatic"
    assert not messages
    webui.shared.opts.data["sd_vae"] = "nowhere"
    assert torch.equal(made(webui, script), own)
    assert all("The VAE stays as it is." in message for message in messages)


def test_an_override_over_a_setting_that_became_bad_gives_the_setting_back(webui, script, messages, own):
    webui.shared.opts.data["sd_vae"] = "nowhere"
    made(webui, script, **override("plain.safetensors"))
    assert webui.shared.opts.sd_vae == "nowhere"
    assert len(messages) == 1


def test_a_job_has_a_vae_of_its_own_and_says_so(webui, script, own):
    job = webui.generate(script, "plain.safetensors")
    assert job.infotext["VAE"] == "plain.safetensors"
    assert len(job.infotext["VAE hash"]) == 10
    assert job.infotext["Job VAE"] == "plain.safetensors"
    assert torch.equal(job.pictures[0], made(webui, script, **override("plain.safetensors")))
    assert webui.generate(script).infotext["VAE"] is None
    assert torch.equal(made(webui, script), own)


def test_a_job_that_fails_leaves_nothing_behind(webui, script, own):
    with pytest.raises(RuntimeError, match="the host failed"):
        webui.generate(script, "other.safetensors", fail=True, **override("plain.safetensors"))
    assert webui.shared.opts.sd_vae == "Automatic"
    assert torch.equal(made(webui, script), own)


def test_a_refused_job_of_the_page_prints_no_traceback_but_a_defect_does(webui, script, own):
    main_thread = webui.modules["modules_forge.main_thread"]
    main_thread.Task(1, lambda: webui.generate(script, "wide.safetensors"), (), {}).work()
    assert "wide.safetensors" in str(main_thread.last_exception)
    assert not webui.printed
    main_thread.Task(1, lambda: webui.generate(script, fail=True), (), {}).work()
    assert [str(error) for error in webui.printed] == ["the host failed"]


def test_a_model_made_between_the_passes_gets_the_job_s_vae_before_its_first_picture(webui, script, own):
    p = HiresJob(script_args=("plain.safetensors",), scripts=Runner([script], webui.errors))
    webui.processing.process_images(p)
    first, between, second = p.pictures
    assert torch.equal(between, first)
    assert torch.equal(second, first)
    assert torch.equal(made(webui, script), own)
    assert not webui.errors


def test_a_change_during_a_job_waits_for_its_end(webui, script, own):
    expected = made(webui, script, **override("plain.safetensors"))
    seen = []

    class Nosy:
        def process_before_every_sampling(self, p, *args):
            changing = threading.Thread(target=webui.shared.opts.set, args=("sd_vae", "other.safetensors"))
            changing.start()
            changing.join()
            seen.append(webui.shared.opts.sd_vae)

        def __getattr__(self, hook):
            return lambda *args, **kwargs: None

    webui.shared.opts.set("sd_vae", "plain.safetensors")
    p = HiresJob(scripts=Runner([Nosy(), script], webui.errors))
    p.sample = lambda host: (p.scripts.process_before_every_sampling(p), p.pictures.append(host.decode()))
    webui.processing.process_images(p)
    assert seen == ["other.safetensors"]
    assert torch.equal(p.pictures[0], expected)
    assert webui.sd_vae.get_loaded_vae_name() == "other.safetensors"


def test_a_swap_waits_for_running_decodes_of_any_clone(webui, host, own):
    vae = webui.shared.sd_model.forge_objects.vae.clone()
    inside, leave, done = threading.Event(), threading.Event(), []

    def slow(z):
        inside.set()
        leave.wait(10)
        return z

    vae.first_stage_model = type("Slow", (), {"decode": staticmethod(slow)})
    decoding = threading.Thread(target=vae.decode, args=(torch.zeros(1, 4, 2, 2),))
    decoding.start()
    inside.wait(10)
    choosing = threading.Thread(target=lambda: done.append(webui.shared.opts.set("sd_vae", "plain.safetensors")))
    choosing.start()
    choosing.join(0.2)
    assert not done
    leave.set()
    choosing.join(10)
    decoding.join(10)
    assert done == [True]


def test_patches_lie_on_classes_and_modules_and_go_with_the_extension(webui, host, own):
    assert "decode" not in vars(webui.shared.sd_model.forge_objects.vae)
    vae = webui.modules["backend.patcher.vae"].VAE
    patched = vae.decode
    host.remove()
    assert vae.decode is not patched
    assert not hasattr(webui.processing.process_images_inner, "__vae_kit_patch__")


# -- beside the program's own way -------------------------------------------------------------------------------------


def test_a_module_is_the_model_s_own_vae(webui, script, host, own):
    expected = made(webui, script, **override("plain.safetensors"))
    webui.select(modules=("plain.safetensors",))
    assert torch.equal(made(webui, script), expected)
    assert host.report.status().reason.startswith("Automatic: plain.safetensors is chosen under VAE / Text Encoder")
    assert not torch.equal(made(webui, script, **override("other.safetensors")), expected)
    assert torch.equal(made(webui, script, **override("None")), expected)


def test_a_module_goes_before_a_file_beside_the_checkpoint(webui, script, host):
    webui.select("model2", modules=("plain.safetensors",))
    made(webui, script)
    assert host.report.status().reason.startswith("Automatic: plain.safetensors is chosen")
    webui.select("model2")
    made(webui, script)
    assert host.report.status().name == "model2.vae.safetensors"


def test_a_card_s_list_of_modules_names_its_vae(webui, script, host):
    webui.cards["model"] = {"vae_te": ["clip_l.safetensors", "other.safetensors"]}
    made(webui, script)
    assert host.report.status().name == "other.safetensors"
    webui.cards["model"] = {"vae_te": ["clip_l.safetensors", "t5.safetensors"]}
    made(webui, script)
    assert host.report.status().name == "None"


# -- infotext ---------------------------------------------------------------------------------------------------------

TEXT = "a cat\nSteps: 20, Sampler: Euler, Seed: 1, VAE hash: 0123456789, VAE: plain.safetensors, Version: f2"


def test_a_known_vae_in_an_infotext_is_sd_vae_s_not_a_module(webui, host):
    parsed = webui.infotext_utils.parse_generation_parameters(TEXT)
    assert parsed["VAE"] == "plain.safetensors"
    assert parsed["VAE hash"] == "0123456789"
    assert "VAE/TE" not in parsed
    assert parsed["Version"] == "f2"


@pytest.mark.parametrize("where", ["VAE: plain.safetensors, ", ', VAE: "plain.safetensors"'])
def test_the_name_is_found_at_either_end_and_quoted(webui, host, where):
    line = "Steps: 20, Sampler: Euler, Seed: 1"
    text = where + line if where.endswith(" ") else line + where
    parsed = webui.infotext_utils.parse_generation_parameters(text)
    assert parsed["VAE"] == "plain.safetensors"
    assert parsed["Steps"] == "20"
    assert parsed["Seed"] == "1"


def test_an_unknown_vae_is_left_to_the_program(webui, host):
    parsed = webui.infotext_utils.parse_generation_parameters(TEXT.replace("plain", "elsewhere"))
    assert parsed["VAE/TE"] == ["elsewhere.safetensors"]


def test_a_skipped_field_stays_skipped(webui, host):
    parsed = webui.infotext_utils.parse_generation_parameters(TEXT, ["VAE"])
    assert "VAE" not in parsed
    assert "VAE/TE" not in parsed


def test_the_program_s_own_key_is_kept_where_it_does_not_declare_ours(webui, script, host):
    host.remove()
    webui.shared.opts.data_labels["sd_vae"].infotext = None  # as Forge Neo declares it
    host.install()
    webui.start()
    assert webui.generate(script, "plain.safetensors").infotext["SD VAE"] == "plain.safetensors"
    text = TEXT.replace("VAE: plain", "SD VAE: other")
    assert webui.infotext_utils.parse_generation_parameters(text)["SD VAE"] == "other.safetensors"


# -- Forge Neo --------------------------------------------------------------------------------------------------------


@pytest.fixture
def neo(monkeypatch, tmp_path):
    with installed(FakeNeo(tmp_path), monkeypatch) as fake:
        from sd_vae_kit.webui import callbacks

        callbacks.register()
        fake.start()
        yield fake


@pytest.fixture
def neo_script(neo):
    from sd_vae_kit.webui.script import VaeKitScript

    return VaeKitScript()


def test_neo_is_told_by_what_it_can(neo):
    from sd_vae_kit.webui.running import running

    assert running().name == "Forge Neo"
    assert neo.shared.opts.data["quicksettings_list"] == ["sd_vae"]


def test_neo_takes_names_paths_none_and_automatic_in_a_request(neo, neo_script):
    own = made(neo, neo_script)
    by_name = neo.generate(neo_script, **override("plain.safetensors"))
    assert by_name.infotext["SD VAE"] == "plain.safetensors"
    assert not torch.equal(by_name.pictures[0], own)
    by_path = made(neo, neo_script, **override(neo.sd_vae.vae_dict["plain.safetensors"]))
    assert torch.equal(by_path, by_name.pictures[0])
    for name in ("None", "Automatic"):
        assert torch.equal(made(neo, neo_script, **override(name)), own)
    assert torch.equal(made(neo, neo_script), own)


def test_neo_s_setting_works_and_gives_way_to_a_request(neo, neo_script):
    own = made(neo, neo_script)
    neo.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = made(neo, neo_script)
    assert not torch.equal(chosen, own)
    assert torch.equal(made(neo, neo_script, **override("None")), own)
    assert torch.equal(made(neo, neo_script), chosen)


def test_neo_refuses_a_bad_request_and_forgets_it(neo, neo_script):
    own = made(neo, neo_script)
    with pytest.raises(Exception, match="nowhere"):
        made(neo, neo_script, **override("nowhere"))
    assert torch.equal(made(neo, neo_script), own)


# -- models whose VAE nobody here knows -------------------------------------------------------------------------------


@pytest.fixture
def video(neo, monkeypatch):
    """Neo with such a model; `loaded` is what Neo itself loads into its VAE and takes out again."""
    neo.select("video")
    neo.decode = lambda: torch.zeros(1)
    neo.loaded = []
    monkeypatch.setattr(VideoVae, "load_state_dict", lambda self, state: neo.loaded.append(len(state)), raising=False)
    return neo


def test_a_request_for_such_a_vae_is_neos_own(video, neo_script):
    file = video.sd_vae.vae_dict["plain.safetensors"]
    for name in (file, "plain.safetensors"):
        video.generate(neo_script, **override(name))
    assert len(video.loaded) == 2
    for name in ("None", "Automatic"):
        video.generate(neo_script, **override(name))
    assert len(video.loaded) == 2
    with pytest.raises(HTTPException, match="nowhere") as caught:
        video.generate(neo_script, **override("nowhere"))
    assert caught.value.status_code == 422


def test_a_choice_that_cannot_be_honoured_is_refused(video, neo_script):
    video.generate(neo_script)
    with pytest.raises(HTTPException, match="is of a kind that VAE Kit does not know") as caught:
        video.sysinfo.set_config({"sd_vae": "plain.safetensors"})
    assert caught.value.status_code == 422
    assert video.shared.opts.sd_vae == "Automatic"
    with pytest.raises(HTTPException, match=r"plain\.safetensors cannot take the place of this model's VAE"):
        video.generate(neo_script, "plain.safetensors")
    assert video.loaded == []


def test_nothing_false_is_written_into_its_pictures(video, neo_script):
    made = video.generate(neo_script, "Automatic", "Automatic", "stream", 900)
    assert [key for key, value in made.infotext.items() if value is not None] == []


def test_a_setting_from_another_model_is_said_and_the_job_goes_on(neo, neo_script, monkeypatch):
    made(neo, neo_script)
    neo.shared.opts.set("sd_vae", "plain.safetensors")
    neo.select("video")
    neo.decode = lambda: torch.zeros(1)
    assert len(neo.generate(neo_script).pictures) == 1
    assert neo.shared.opts.sd_vae == "plain.safetensors"
