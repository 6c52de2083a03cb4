"""The tab "VAE Kit" beside a fake A1111: what it is made of, who may write, and when rules take effect."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from sd_vae_kit.errors import OptionError
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.rules import Rule, dump

pytestmark = pytest.mark.usefixtures("close_event_loops")


@pytest.fixture
def service(host):
    from sd_vae_kit.webui.running import catalogue_service

    return catalogue_service()


def test_the_tab_is_made_anew_on_reload_by_one_service(webui, service):
    from sd_vae_kit.webui.running import catalogue_service

    (add_tab,) = webui.registered["ui_tabs"]
    ((page, title, name),) = add_tab()
    ((again, _, _),) = add_tab()
    assert (title, name) == ("VAE Kit", "vae_kit")
    assert again is not page
    assert service is catalogue_service()
    assert all(block.do_not_save_to_config for block in page.blocks.values())


def test_a_web_ui_that_looks_after_its_files_gets_no_tab(host):
    from sd_vae_kit.webui.catalogue import make_service

    assert make_service(dataclasses.replace(host, files=None)) is None


@pytest.mark.parametrize("flag", ["disable_extension_access", "freeze_settings"])
def test_open_to_others_or_frozen_nothing_is_written(webui, host, service, flag):
    service.rules.save(dump([Rule("plain")]))
    before = host.files.rules.path.read_bytes()
    setattr(webui.shared.cmd_opts, flag, True)
    assert service.notice()
    for action in (lambda: service.rules.save(dump([])), lambda: service.downloads.install("SDXL VAE 1.0", True)):
        with pytest.raises(OptionError, match=r"--enable-insecure-extension-access|--freeze-settings"):
            action()
    assert host.files.rules.path.read_bytes() == before
    assert service.rules.explain(dump([Rule("plain")]), "picture")[0].decides


def test_files_go_where_the_web_ui_and_the_user_keep_them(webui, host, tmp_path):
    folder_for = host.files.folders.folder_for
    tiny = next(entry for entry in catalogue().entries if entry.kind == "tiny")
    assert folder_for(tiny) == tmp_path / "VAE-taesd"
    assert folder_for(catalogue().find("SDXL VAE 1.0")) == tmp_path / "VAE"
    named = tmp_path / "elsewhere"
    webui.shared.cmd_opts.vae_dir = str(named)
    assert folder_for(catalogue().find("SDXL VAE 1.0")) == tmp_path / "VAE", "a folder that is not there"
    named.mkdir()
    assert folder_for(catalogue().find("SDXL VAE 1.0")) == named


def test_saved_rules_count_at_once_or_from_the_next_job_on(webui, host, service, script):
    service.rules.save(dump([Rule("plain")]))
    assert host.report.status().name == "plain.safetensors"
    with webui.call_queue.queue_lock:  # a job runs
        service.rules.save(dump([Rule("other")]))
        assert host.report.status().name == "plain.safetensors"
    p = webui.generate(script)
    assert p.sd_vae_name == "other.safetensors"
    host.files.rules.path.write_text(
        dump([Rule("one/same.safetensors"), Rule("plain", runs=("hires",))]), "utf-8"
    )  # in an editor
    assert webui.generate(script, hires=True).sd_vae_name == "one/same.safetensors"
    assert host.report.status().name == "one/same.safetensors"


def test_a_rule_for_one_pass_holds_for_that_pass(webui, host, script):
    host.files.rules.path.write_text(dump([Rule("plain", runs=("hires",))]), "utf-8")
    own = webui.decode()
    p = webui.generate(script, hires=True)
    assert not p.pictures[0].equal(own)
    assert webui.decode().equal(own), "after the job the checkpoint's own is live"
    assert webui.generate(script).pictures[0].equal(own)


def test_used_with_is_remembered_by_the_swap(webui, host, service):
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    swapper = host.registry.swapper(host.registry.loaded.current)
    swapper._pool.submit(lambda: None).result()  # it is written in the background
    row = next(row for row in service.gallery.rows() if row.key == "plain.safetensors")
    assert row.used_by == ("model",)
    assert json.loads((host.files.folders.data / "history.json").read_text("utf-8"))["version"] == 1


def bare_checkpoint(webui, name):
    """A checkpoint's file without a VAE; the model it is put into keeps the VAE of the one before."""
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, checkpoint_file(webui, name))


def checkpoint_file(webui, name):
    return webui.folder / "Stable-diffusion" / f"{name}.safetensors"


def test_a_checkpoint_file_without_a_vae_is_told_by_its_names(webui, host):
    from sd_vae_kit.hosts.model_facts import holds_no_vae

    bare_checkpoint(webui, "bare")
    assert holds_no_vae(checkpoint_file(webui, "bare"))
    for name in ("first_stage_model.decoder.conv_out.bias", "vae.decoder.conv_out.bias"):
        save_file({name: torch.zeros(3)}, checkpoint_file(webui, "full"))
        assert not holds_no_vae(checkpoint_file(webui, "full"))
    assert not holds_no_vae(checkpoint_file(webui, "not there")), "what cannot be read is not accused"
    webui.load_model("bare")
    assert "bare holds no VAE of its own" in host.report.status().warnings[0]


def test_the_familys_standard_vae_takes_its_place(webui, host, monkeypatch):
    entry = host.library.get("other.safetensors")
    known = dataclasses.replace(
        catalogue().entries[0], name="Standard", sha256=host.library.sha256(entry), size=entry.size
    )
    monkeypatch.setattr(host.files.guard, "_catalogue", Catalogue([known], {"sd1": "Standard"}))
    bare_checkpoint(webui, "bare")
    webui.load_model("bare")
    assert host.report.status().name == "other.safetensors"
    assert host.report.status().reason.endswith("so other.safetensors is used, the standard VAE of SD 1.x / 2.x.")
    webui.shared.opts.set("sd_vae", "plain.safetensors")
    assert host.report.status().name == "plain.safetensors"
    webui.shared.opts.set("sd_vae", "Automatic")
    assert host.report.status().name == "other.safetensors"
    webui.shared.opts.set("sd_vae", "None")
    assert host.report.status().name == "None"
    assert "holds no VAE" in host.report.status().warnings[0]
