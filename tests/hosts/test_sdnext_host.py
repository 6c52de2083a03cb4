"""The SD.Next adapter beside a fake SD.Next with a real diffusers AutoencoderKL."""

import json

import pytest
import torch
from fake_a1111 import OptionInfo
from fake_sdnext import FakeSdNext
from fastapi import HTTPException
from torch import nn


@pytest.fixture
def program_class():
    return FakeSdNext


@pytest.fixture
def webui(fake):
    from sd_vae_kit.webui import callbacks

    callbacks.register()
    fake.sd_vae.refresh_vae_list()
    return fake


def test_weights_of_the_pipeline_change_in_place_and_default_gives_them_back(webui, host):
    pipeline = webui.load_model()
    module, own = pipeline.vae, webui.decode()
    assert host.name == "SD.Next"
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = webui.decode()
    assert pipeline.vae is module
    assert not torch.equal(chosen, own)
    assert host.report.status().reason == "plain.safetensors was chosen in the VAE dropdown."
    assert webui.sd_vae.loaded_vae_file.endswith("plain.safetensors")
    webui.shared.opts.set("sd_vae", "Default")
    assert torch.equal(webui.decode(), own)
    assert webui.sd_vae.loaded_vae_file is None
    assert webui.host_loaded == []


def test_a_vae_chosen_before_the_checkpoint_was_loaded_goes_over_its_own(webui, host):
    webui.shared.opts.data["sd_vae"] = "plain.safetensors"
    webui.load_model()
    chosen = webui.decode()
    assert host.report.status().name == "plain.safetensors"
    webui.shared.opts.set("sd_vae", "Default")
    assert not torch.equal(webui.decode(), chosen)


def test_the_own_vae_is_not_lost_when_the_pipeline_is_another_object(webui, host):
    """SD.Next makes a new one around the same VAE for the first img2img after a txt2img."""
    own_pipeline = webui.load_model()
    own = webui.decode()
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = webui.decode()
    del own_pipeline
    webui.switch_pipeline()
    assert host.report.status().name == "plain.safetensors"
    assert torch.equal(webui.decode(), chosen)
    webui.shared.opts.set("sd_vae", "other.safetensors")
    webui.switch_pipeline()
    webui.shared.opts.set("sd_vae", "Default")
    assert torch.equal(webui.decode(), own)
    assert host.report.status().name == "None"
    assert host.report.status().reason == "No VAE is chosen, so the checkpoint's own is used."


def test_a_folder_is_the_programs_and_the_own_weights_come_back_after_it(webui, host):
    webui.load_model()
    own = webui.decode()
    webui.sd_vae.vae_dict["folder"] = str(webui.folder)
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    chosen = webui.decode()
    webui.shared.opts.set("sd_vae", "folder")
    folders = webui.decode()
    assert not torch.equal(folders, own)
    assert not torch.equal(folders, chosen)
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert torch.equal(webui.decode(), chosen), "a file goes over the checkpoint's VAE, not over the folder's"
    webui.shared.opts.set("sd_vae", "folder")
    webui.shared.opts.set("sd_vae", "Default")
    assert torch.equal(webui.decode(), own)


def test_the_library_is_filled_and_the_status_right_from_the_start(fake):
    """The program has listed its VAEs before it loads any extension."""
    from sd_vae_kit.webui import callbacks
    from sd_vae_kit.webui.running import running

    fake.sd_vae.refresh_vae_list()
    callbacks.register()
    assert "plain.safetensors" in [entry.name for entry in running().library.entries]
    fake.load_model()
    assert running().report.status().reason == "No VAE is chosen, so the checkpoint's own is used."


def test_the_choice_holds_for_every_checkpoint(webui, host):
    """Of families for which the program itself loads none, too."""
    webui.load_model()
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    webui.sd_vae.load_vae = lambda *args: None
    webui.load_model("other", seed=200)
    assert host.report.status().name == "plain.safetensors"


def test_the_users_rules_choose_where_the_option_is_automatic(webui, host):
    rules = [{"vae": "plain", "glob": "mod*"}]
    host.files.rules.save(json.dumps({"version": 1, "rules": rules}))
    webui.load_model()
    assert host.report.status().reason == "plain.safetensors follows from rule 1 (glob mod*)."
    webui.load_model("another")
    assert host.report.status().name == "None"
    webui.load_model()
    webui.shared.opts.set("sd_vae", "other.safetensors")
    assert host.report.status().name == "other.safetensors"
    webui.shared.opts.set("sd_vae", "Default")
    assert host.report.status().name == "None"


def test_there_is_a_tab_and_files_go_where_the_program_looks(webui, host, close_event_loops):
    from sd_vae_kit.webui.running import catalogue_service

    (page,) = [page for callback in webui.registered["ui_tabs"] for page in callback()]
    assert page[1:] == ("VAE Kit", "vae_kit")
    assert catalogue_service().files is not None
    kinds = {known.kind: host.files.folders.folder_for(known) for known in host.files.guard.finder.catalogue.entries}
    assert (kinds["kl"], kinds["tiny"]) == (webui.folder / "VAE", webui.folder / "TAESD")
    assert host.files.folders.data == webui.folder / "vae-kit"


def test_the_api_answers_a_refused_choice_with_an_error(webui, host):
    webui.load_model()
    for name, reason in (("cut.safetensors", "cut.safetensors"), ("plane.safetensors", "plain.safetensors")):
        with pytest.raises(HTTPException, match=reason) as caught:
            webui.api_options.set_options({"sd_vae": name})
        assert caught.value.status_code == 422
        assert webui.shared.opts.sd_vae == "Automatic"


def test_a_nans_reason_reaches_whoever_asked_for_the_picture(webui, host, script):
    """The program swallows what is raised while it decodes, and answers with no pictures at all."""
    pipeline = webui.load_model()
    pipeline.vae.decoder.conv_out.bias.data[:] = float("nan")
    with pytest.raises(HTTPException, match=r"contain NaN in decoder\.conv_out\.bias") as caught:
        webui.generate(script, "Automatic")
    assert caught.value.status_code == 422
    assert len(webui.swallowed) == 1


def test_the_hash_is_in_the_infotext(webui, host, script):
    webui.load_model()
    job = webui.generate(script, "plain.safetensors")
    assert job.extra_generation_params["VAE hash"] == host.library.sha256(host.library.get("plain"))[:10]
    assert webui.generate(script, "Automatic").extra_generation_params["VAE hash"] is None


def test_the_panel_is_on_the_tab_control_too(webui):
    assert webui.modules["modules.scripts_manager"].control_extensions == ["NudeNet", "VAE Kit"]


def test_the_programs_own_tiling_is_said_once(webui, host, messages):
    pipeline = webui.load_model()
    pipeline.vae.use_tiling = True
    webui.decode()
    webui.decode()
    assert len([line for line in messages if "is not exact; switch off VAE tiling" in line]) == 1


def test_nothing_is_written_into_options_that_the_program_keeps_for_old_files(webui, host):
    from sd_vae_kit.webui import options_page

    webui.shared.opts.data_labels["sd_vae_checkpoint_cache"] = legacy = OptionInfo(0)
    legacy.visible = False
    options_page.add(host)
    assert "sd_vae_checkpoint_cache" not in webui.shared.opts.data
    assert webui.shared.opts.data["quicksettings_list"] == ["sd_vae"]


def test_a_bad_choice_goes_back_with_one_line(webui, host, messages):
    webui.load_model()
    own = webui.decode()
    for name in ("wide.safetensors", "cut.safetensors", "nowhere"):
        assert webui.shared.opts.set("sd_vae", name) is False
        assert messages.pop().endswith("The option stays at Automatic.")
        assert not messages
    assert torch.equal(webui.decode(), own)


def test_a_job_has_a_vae_of_its_own_and_gives_it_back_also_when_it_fails(webui, script):
    webui.load_model()
    own = webui.decode()
    made = webui.generate(script, "plain.safetensors").pictures[0]
    assert not torch.equal(made, own)
    assert torch.equal(webui.decode(), own)
    with pytest.raises(RuntimeError, match="the host failed"):
        webui.generate(script, "other.safetensors", fail=True)
    assert torch.equal(webui.decode(), own)


def test_what_nobody_knows_is_left_to_the_program(webui, host):
    webui.load_model(vae=nn.Conv3d(3, 16, 3))
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert webui.host_loaded == ["reload"]


def test_streamed_weights_are_left_to_the_program(webui, host):
    with torch.device("meta"):
        streamed = nn.Conv2d(3, 3, 3)
    webui.load_model(vae=streamed)
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert webui.host_loaded == ["reload"]
    assert host.report.status().reason


def test_jobs_in_bands_give_the_pipelines_own_picture(webui, host, script):
    """diffusers' own decoder; its class belongs to other pipelines, too."""
    from diffusers.models.autoencoders.vae import Decoder

    webui.load_model()
    webui.latent = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
    webui.shared.opts.data["vae_kit_precision_mode"] = "Never"
    own = webui.generate(script, "Automatic", "Automatic", "Off").pictures[0]
    del webui.shared.opts.data["vae_kit_precision_mode"]
    assert host.interceptor.runner.last == {}
    job = webui.generate(script, "Automatic", "Automatic", "Always stream")
    torch.testing.assert_close(job.pictures[0], own, atol=1e-5, rtol=0)
    assert host.interceptor.runner.last["decoder"].bands > 1
    assert job.extra_generation_params["VAE Kit tiling"].startswith("stream in ")
    assert host.forecasts.forecast((64, 64), type(host.interceptor.settings.job_tiling)()).endswith(" will run whole")
    host.remove()
    assert "__vae_kit_patch__" not in vars(Decoder.forward)
