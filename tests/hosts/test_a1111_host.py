"""The A1111 adapter beside a fake A1111 that makes the real one's mistakes."""

import json
import sys
import threading

import pytest
import torch
from fake_a1111 import WRONG_HASH

OTHERS = ["plain.safetensors", "other.safetensors", "one/same.safetensors", "two/same.safetensors"]


@pytest.fixture
def messages(host):
    said = []
    host.base.messages.listen(lambda message, level: said.append((level, message)))
    return said


def choose(webui, name, **how):
    return webui.shared.opts.set("sd_vae", name, **how)


def state_of(webui):
    return {name: tensor.clone() for name, tensor in webui.shared.sd_model.first_stage_model.state_dict().items()}


def near(a, b):
    """Equal but for rounding: one of them was decoded by the web UI itself."""
    return bool((a - b).abs().max() <= 1e-5)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the dropdown ----------------------------------------------------------------------------------------------------


def test_the_dropdown_changes_the_picture_and_none_restores_it(webui):
    own, pictures = webui.decode(), []
    for name in OTHERS:
        assert choose(webui, name)
        assert webui.sd_vae.get_loaded_vae_name() == name
        pictures.append(webui.decode())
    assert len({round(float(p.double().sum()), 6) for p in (*pictures, own)}) == 5
    choose(webui, "None")
    assert torch.equal(webui.decode(), own)
    assert webui.sd_vae.get_loaded_vae_name() is None


def test_the_module_stays_and_the_host_is_told(webui):
    model = webui.shared.sd_model
    module, told = model.first_stage_model, len(webui.loaded_models)
    choose(webui, "plain.safetensors")
    assert model.first_stage_model is module
    assert webui.loaded_models[told:] == [model]
    assert webui.sd_vae.loaded_vae_file.endswith("plain.safetensors")
    assert webui.sd_vae.checkpoint_info is model.sd_checkpoint_info


def test_equal_base_names_are_both_listed(webui):
    assert [name for name in webui.sd_vae.vae_dict if name in OTHERS] == sorted(OTHERS, key=str.casefold)


def test_the_hash_is_the_files_own(webui, host):
    import hashlib

    for name in (*OTHERS, OTHERS[0]):
        choose(webui, name)
        digest = hashlib.sha256((webui.folder / "VAE" / name).read_bytes()).hexdigest()
        assert webui.sd_vae.get_loaded_vae_hash() == digest[:10]
    webui.shared.cmd_opts.no_hashing = True
    assert webui.sd_vae.get_loaded_vae_hash() is None


@pytest.mark.parametrize("bad", ["wide.safetensors", "cut.safetensors", "nowhere"])
def test_a_failed_choice_changes_nothing_and_the_option_goes_back(webui, messages, bad):
    choose(webui, "plain.safetensors")
    before, told = state_of(webui), len(webui.loaded_models)
    assert choose(webui, bad) is False
    assert same(state_of(webui), before)
    assert webui.shared.opts.sd_vae == "plain.safetensors"
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    assert len(webui.loaded_models) == told
    ((level, message),) = messages
    assert level == "error"
    assert "The option stays at plain.safetensors." in message
    assert not hasattr(webui.shared.opts, "last_error"), "the host would print a traceback"


def test_over_the_api_a_failed_choice_is_no_success(webui):
    with pytest.raises(Exception, match=r"cut\.safetensors.*stays at Automatic") as caught:
        choose(webui, "cut.safetensors", is_api=True)
    assert caught.value.status_code == 422
    assert webui.shared.opts.sd_vae == "Automatic"


def test_a_choice_that_changes_nothing_tells_nobody(webui):
    told = len(webui.loaded_models)
    choose(webui, "None")
    webui.sd_vae.reload_vae_weights()
    assert len(webui.loaded_models) == told


def test_a_file_named_by_the_caller(webui):
    own = webui.decode()
    webui.sd_vae.reload_vae_weights(vae_file=str(webui.folder / "VAE" / "other.safetensors"))
    assert webui.sd_vae.get_loaded_vae_name() == "other.safetensors"
    webui.sd_vae.reload_vae_weights(webui.shared.sd_model, None)
    assert torch.equal(webui.decode(), own)


def test_the_merger_gets_weights_in_ldm_names(webui):
    state = webui.sd_vae.load_vae_dict(str(webui.folder / "VAE" / "plain.safetensors"), map_location="cpu")
    assert "decoder.conv_out.weight" in state


# --- which one -------------------------------------------------------------------------------------------------------


def test_a_name_that_only_begins_like_the_checkpoints_is_not_taken(webui):
    assert "model2.vae.safetensors" in webui.sd_vae.vae_dict
    assert webui.sd_vae.get_loaded_vae_name() is None
    assert webui.sd_vae.find_vae_near_checkpoint("/x/model.safetensors") is None
    assert webui.sd_vae.find_vae_near_checkpoint("/x/model2.safetensors").endswith("model2.vae.safetensors")


def test_with_the_switch_off_the_hosts_prefix_rule_holds(webui):
    webui.shared.opts.vae_kit_repair_exact_stem = False
    webui.sd_vae.reload_vae_weights()
    assert webui.sd_vae.get_loaded_vae_name() == "model2.vae.safetensors"


def test_the_checkpoints_card(webui):
    webui.cards["model"] = {"vae": "other"}
    webui.sd_vae.reload_vae_weights()
    assert webui.sd_vae.get_loaded_vae_name() == "other.safetensors"
    choose(webui, "plain.safetensors")
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    webui.shared.opts.sd_vae_overrides_per_model_preferences = False
    webui.sd_vae.reload_vae_weights()
    assert webui.sd_vae.get_loaded_vae_name() == "other.safetensors"


def test_a_card_that_names_a_file_of_another_computer_is_passed_over(webui, messages):
    webui.cards["model"] = {"vae": "elsewhere.pt"}
    webui.sd_vae.reload_vae_weights()
    webui.sd_vae.reload_vae_weights()
    assert webui.sd_vae.get_loaded_vae_name() is None
    assert [level for level, message in messages if "elsewhere.pt" in message] == ["warning"]


def test_vae_path_beats_all_and_may_lie_anywhere(started, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((started.folder / "VAE" / "other.safetensors").read_bytes())
    started.shared.cmd_opts.vae_path = str(outside)
    started.load_model()
    assert started.sd_vae.get_loaded_vae_name() == "outside.safetensors"
    choose(started, "plain.safetensors")
    assert started.sd_vae.get_loaded_vae_name() == "outside.safetensors"


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["wide.safetensors", "cut.safetensors", "gone.safetensors"])
def test_a_bad_setting_does_not_keep_a_checkpoint_from_loading(started, bad):
    from sd_vae_kit.webui.running import running

    said = []
    running().base.messages.listen(lambda message, level: said.append(message))
    started.shared.opts.data["sd_vae"] = bad
    started.load_model()
    assert started.sd_vae.get_loaded_vae_name() is None
    assert any(bad.split(".")[0] in message for message in said)
    assert "instead" in running().report.status().reason or "own" in running().report.status().reason


def test_with_a_bad_setting_an_override_works_and_its_end_does_not_fail(started, script_of):
    started.shared.opts.data["sd_vae"] = "wide.safetensors"
    started.load_model()
    own = started.decode()
    job = started.generate(script_of(), override_settings={"sd_vae": "plain.safetensors"})
    assert job.sd_vae_name == "plain.safetensors"
    assert torch.equal(started.decode(), own)
    assert started.shared.opts.sd_vae == "wide.safetensors"


@pytest.fixture
def script_of(fake):
    def make():
        from sd_vae_kit.webui.script import VaeKitScript

        return VaeKitScript()

    return make


def test_another_checkpoint_in_the_same_model_has_its_own_vae(webui):
    choose(webui, "plain.safetensors")
    webui.reuse_model("second", seed=200)
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    plain = webui.decode()
    choose(webui, "None")
    expected = own_picture(webui, 200)
    assert near(webui.decode(), expected)
    choose(webui, "plain.safetensors")
    assert torch.equal(webui.decode(), plain)


def own_picture(webui, seed):
    from fake_a1111 import Model

    with torch.no_grad():
        return Model(webui.folder / "x.safetensors", seed).decode_first_stage(webui.latent)


def test_several_checkpoints_stay_loaded_each_with_its_own(webui):
    first = webui.shared.sd_model
    own_first = webui.decode()
    choose(webui, "plain.safetensors")
    second = webui.load_model("second", seed=200)
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    choose(webui, "None")
    assert near(webui.decode(), own_picture(webui, 200))
    webui.back_to(first)
    assert torch.equal(webui.decode(), own_first)
    choose(webui, "other.safetensors")
    webui.back_to(second)
    assert webui.sd_vae.get_loaded_vae_name() == "other.safetensors"
    assert second.loaded_vae_file == webui.sd_vae.loaded_vae_file


def test_a_dropped_model_is_let_go(webui, host):
    import gc
    import weakref

    gone = weakref.ref(webui.shared.sd_model)
    choose(webui, "plain.safetensors")
    webui.sd_models.model_data.loaded_sd_models.clear()
    webui.load_model("second", seed=200)
    webui.loaded_models.clear()
    gc.collect()
    assert gone() is None


def test_a_vae_nobody_knows_is_left_to_the_host(started):
    from torch import nn

    from sd_vae_kit.webui.running import running

    said = []
    running().base.messages.listen(lambda message, level: said.append(message))
    model = started.load_model()
    model.first_stage_model = nn.Sequential(nn.Conv3d(3, 4, 1))
    calls = []
    started.sd_vae.load_vae = lambda *args: calls.append(args)
    started.sd_vae.reload_vae_weights(model, str(started.folder / "VAE" / "plain.safetensors"))
    started.sd_vae.reload_vae_weights(model, str(started.folder / "VAE" / "other.safetensors"))
    assert len(calls) == 2
    assert len([message for message in said if "leaves the VAE" in message]) == 1


# --- taking the patches away -----------------------------------------------------------------------------------------


def test_after_unloading_the_host_is_as_it_was_and_knows_what_is_live(webui, host):
    own = webui.decode()
    choose(webui, "plain.safetensors")
    plain = webui.decode()
    host.remove()
    assert near(webui.decode(), plain)
    assert webui.sd_vae.get_loaded_vae_hash() == WRONG_HASH
    assert "decode_first_stage" not in vars(webui.shared.sd_model)
    choose(webui, "None")  # the host's own way, with the base_vae that we kept for it
    assert near(webui.decode(), own)


def test_reload_ui_keeps_what_is_live(webui):
    from sd_vae_kit.webui import callbacks

    own = webui.decode()
    choose(webui, "plain.safetensors")
    plain = webui.decode()
    for _ in range(2):
        webui.reload_ui(callbacks.register)
        assert near(webui.decode(), plain)
    choose(webui, "None")
    assert near(webui.decode(), own)


def test_loading_can_be_left_to_the_host_and_taken_back(webui):
    own = webui.decode()
    choose(webui, "plain.safetensors")
    plain = webui.decode()
    webui.shared.opts.set("vae_kit_repair_loading", False)
    assert near(webui.decode(), plain)
    choose(webui, "other.safetensors")
    webui.shared.opts.set("vae_kit_repair_loading", True)
    choose(webui, "plain.safetensors")
    assert near(webui.decode(), plain)
    choose(webui, "None")
    assert near(webui.decode(), own)


def test_names_can_be_left_to_the_host(webui):
    webui.shared.opts.set("vae_kit_repair_names", False)
    assert "same.safetensors" in webui.sd_vae.vae_dict
    assert "one/same.safetensors" not in webui.sd_vae.vae_dict


# --- a job -----------------------------------------------------------------------------------------------------------


def test_a_jobs_vae_is_used_written_down_and_given_back(webui, script):
    own = webui.decode()
    choose(webui, "other.safetensors")
    other = webui.decode()
    job = webui.generate(script, "plain")
    assert job.sd_vae_name == "plain.safetensors"
    assert job.extra_generation_params == {"Job VAE": "plain.safetensors"}
    assert not torch.equal(job.pictures[0], other)
    assert torch.equal(webui.decode(), other)
    assert torch.equal(webui.generate(script, "none").pictures[0], own)
    assert webui.shared.opts.sd_vae == "other.safetensors"
    assert not webui.errors


def test_a_job_without_a_choice_is_as_without_us(webui, script):
    job = webui.generate(script)
    assert job.extra_generation_params == {}
    assert job.sd_vae_name is None


def test_the_hires_pass_and_every_batch_have_theirs(webui, script, host):
    used = []
    webui.shared.sd_model.decode_first_stage = lambda latent: used.append(host.jobs.vae)
    webui.generate(script, "plain", "other", hires=True, n_iter=2)
    assert used == ["other.safetensors", "other.safetensors"]
    assert host.jobs.vae is None


@pytest.mark.parametrize("bad", ["wide.safetensors", "cut.safetensors", "nowhere", {"vea": "plain"}])
def test_a_job_whose_vae_cannot_be_used_is_stopped(webui, script, bad):
    before = state_of(webui)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is made afresh for every test
        webui.generate(script, bad)
    assert caught.value.status_code == 422
    assert same(state_of(webui), before)
    assert not webui.errors, "nothing is left for the host to print"


def test_a_job_that_fails_gives_the_setting_back(webui, script):
    choose(webui, "other.safetensors")
    before = state_of(webui)
    with pytest.raises(RuntimeError, match="the host failed"):
        webui.generate(script, "plain", fail=True)
    assert same(state_of(webui), before)
    job = webui.generate(script)
    assert job.sd_vae_name == "other.safetensors"


def test_a_job_inside_a_job_gives_the_outers_choice_back(webui, script, host):
    host.jobs.use("plain.safetensors")
    with host.jobs.job():
        host.jobs.use("other.safetensors")
    assert host.jobs.vae == "plain.safetensors"
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    host.jobs.end()
    assert webui.sd_vae.get_loaded_vae_name() is None


def test_the_refiner_gets_the_jobs_vae_too(webui, host):
    host.jobs.use("plain.safetensors")
    webui.load_model("refiner", seed=300)
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"


def test_overrides_of_options_never_saved_are_restored(webui, script):
    webui.generate(script, override_settings={"CLIP_stop_at_last_layers": 2})
    assert webui.shared.opts.CLIP_stop_at_last_layers == 1
    webui.shared.opts.vae_kit_repair_override_leak = False
    webui.shared.opts.data.pop("CLIP_stop_at_last_layers")
    webui.generate(script, override_settings={"CLIP_stop_at_last_layers": 2})
    assert webui.shared.opts.CLIP_stop_at_last_layers == 2, "the host's own behaviour"


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_a_swap_waits_for_a_running_decode(webui):
    model = webui.shared.sd_model
    inside, go_on, events = threading.Event(), threading.Event(), []
    decode = model.first_stage_model.decode

    def slow(latent):
        inside.set()
        assert go_on.wait(30)
        events.append("decoded")
        return decode(latent)

    model.first_stage_model.decode = slow
    preview = threading.Thread(target=webui.decode)
    preview.start()
    assert inside.wait(30)
    swap = threading.Thread(target=lambda: (choose(webui, "plain.safetensors"), events.append("swapped")))
    swap.start()
    swap.join(0.3)
    assert swap.is_alive()
    go_on.set()
    for thread in (preview, swap):
        thread.join(30)
    assert events == ["decoded", "swapped"]


def test_the_gate_lets_a_thread_in_again_and_keeps_others_out():
    from sd_vae_kit.vaes.call_gate import CallGate

    gate, entered = CallGate(), threading.Event()
    with gate.writing(), gate.writing(), gate.calling():
        other = threading.Thread(target=lambda: gate.calling().__enter__() or entered.set())
        other.start()
        assert not entered.wait(0.2)
    assert entered.wait(30)
    other.join()


def test_the_host_is_recognised_by_what_it_has(fake, monkeypatch):
    from sd_vae_kit.hosts import detect_host
    from sd_vae_kit.webui.messages import outlet

    assert detect_host(outlet()).name == "A1111"
    monkeypatch.delitem(sys.modules, "modules.lowvram")  # Forge Classic has none
    assert detect_host(outlet()).name == "A1111"
    monkeypatch.delitem(sys.modules, "modules.sd_hijack")
    assert detect_host(outlet()) is None


# --- the user's rules and the guard ----------------------------------------------------------------------------------


def test_the_users_rules_choose_per_pass(webui, host, script):
    rules = [{"vae": "plain", "pass": "img2img encode"}, {"vae": "other", "pass": "hires"}]
    host.files.rules.save(json.dumps({"version": 1, "rules": rules}))
    used = []
    model = webui.shared.sd_model
    model.decode_first_stage = lambda latent: used.append(webui.sd_vae.get_loaded_vae_name())
    webui.generate(script, hires=True)
    assert used == ["other.safetensors"]
    assert webui.sd_vae.get_loaded_vae_name() is None
    script.is_img2img = True
    job = webui.generate(script, init=lambda: used.append(webui.sd_vae.get_loaded_vae_name()))
    assert used[1:] == ["plain.safetensors", None]
    assert job.sd_vae_name is None
    webui.generate(script, "two/same.safetensors", hires=True)
    assert used[3:] == ["two/same.safetensors"], "the job's own choice comes first"
    assert not webui.errors


def test_a_vae_of_another_family_is_refused_where_the_user_wants_it_so(webui, host, messages):
    from vae_files import kl_config, kl_state, write

    write(webui.folder / "VAE" / "sixteen.safetensors", kl_state(kl_config(16), seed=9))
    write(webui.folder / "VAE" / "xl.safetensors", kl_state(seed=9), {"family": "sdxl"})
    webui.sd_vae.refresh_vae_list()
    assert choose(webui, "sixteen.safetensors") is False
    webui.shared.opts.data["vae_kit_guard_wrong_family"] = "refuse"
    assert choose(webui, "xl.safetensors") is False
    assert "SDXL" in messages[-1][1]
    webui.shared.opts.data["vae_kit_guard_wrong_family"] = "warn"
    assert choose(webui, "xl.safetensors")
    assert "SDXL" in " ".join(host.report.status().warnings)


def test_a_checkpoint_without_vae_weights_says_so_and_offers_some(started):
    from sd_vae_kit.webui.running import running

    host, said = running(), []
    host.base.messages.listen(lambda message, level: said.append((level, message)))
    model = started.load_model()
    for parameter in model.first_stage_model.parameters():
        parameter.data.zero_()
    assert "holds no VAE" in host.report.status().warnings[0]
    assert "choose cut.safetensors" not in host.report.status().warnings[0], "only files that can be used are offered"
    choose(started, "plain.safetensors")
    assert not any("holds no VAE" in warning for warning in host.report.status().warnings)
    choose(started, "None")
    assert "holds no VAE" in host.report.status().warnings[0]


def test_while_the_host_loads_a_checkpoint_it_may_have_taken_load_state_dict(started, monkeypatch):
    """As A1111's LoadStateDictOnMeta does, for all modules there are."""
    from torch import nn

    original = nn.Module.load_state_dict
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state, strict=True: original(self, state, strict))
    started.shared.opts.data["sd_vae"] = "plain.safetensors"
    started.load_model()
    assert started.sd_vae.get_loaded_vae_name() == "plain.safetensors"
