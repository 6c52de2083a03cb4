"""A1111 started with other flags and settings: every test pays for a start of its own."""

import concurrent.futures
import json
import os
import time
from pathlib import Path

import pytest
from installation import SMALL, start
from programs import A1111
from vae_variants import smallest_checkpoint, write_variants

pytestmark = pytest.mark.webui

USER = "ann:secret"


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, smallest_checkpoint(A1111.folder()))
    return folder


@pytest.fixture
def started(tmp_path, vaes):
    """Starts the web UI with saved settings and further flags; stops it at the end."""
    running = []

    def begin(*flags, settings=None, user=""):
        (tmp_path / "config.json").write_text(json.dumps(settings or {}))
        plain = [f"--vae-dir={vaes}", f"--ckpt={smallest_checkpoint(A1111.folder())}"]
        running.append(start(A1111, tmp_path, *plain, *flags, user=user))
        return running[-1]

    yield begin
    for webui in running:
        webui.stop()


def test_medvram_a_password_and_a_setting_that_cannot_be_honoured(started):
    webui = started("--medvram", f"--api-auth={USER}", settings={"sd_vae": "wrong.safetensors"}, user=USER)
    assert "wrong.safetensors" in webui.status()["reason"]
    assert webui.status()["vae"] == "None"
    assert webui.call("/sdapi/v1/options").body["sd_vae"] == "wrong.safetensors"
    own = webui.txt2img()
    size = {"width": 192, "height": 256}
    webui.set(vae_kit_precision_mode="Never")  # the program's own forward
    whole = webui.txt2img(**size, alwayson_scripts={"VAE Kit": {"args": ["Automatic", "Automatic", "Off"]}})
    webui.set(vae_kit_precision_mode="Automatic")
    bands = webui.txt2img(**size, alwayson_scripts={"VAE Kit": {"args": ["Automatic", "Automatic", "Always stream"]}})
    assert webui.status()["last_decode"]["bands"] > 1
    assert abs(bands.pixels.astype(int) - whole.pixels.astype(int)).max() <= 1

    for path in ("status", "list", "inspect?name=plain.safetensors"):
        assert webui.call(f"/vae-kit/v1/{path}").status == 200
        assert webui.call(f"/vae-kit/v1/{path}", user="ann:wrong").status == 401
    assert webui.call("/vae-kit/v1/encode", {}, user="eve:secret").status == 401

    made = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    assert made.parameter("VAE") == "plain.safetensors"
    assert webui.txt2img() == own, "the end of a request must not fail for the bad setting's sake"
    assert webui.set(sd_vae="plain.safetensors").status == 200
    assert webui.txt2img() == made
    assert webui.img2img().parameter("VAE") == "plain.safetensors"
    assert webui.set(sd_vae="cut.safetensors").status == 422
    assert webui.txt2img() == made
    previews_while_swapping(webui)
    assert "Traceback" not in webui.log


def previews_while_swapping(webui):
    """The page asks for previews from another thread while jobs run and VAEs change."""
    webui.set(show_progress_type="Full", show_progress_every_n_steps=1)
    names = ("plain.safetensors", "other.safetensors")
    expected = [webui.txt2img(override_settings={"sd_vae": name}) for name in names]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        jobs = [pool.submit(webui.txt2img, override_settings={"sd_vae": name}, steps=2) for name in names * 3]
        while not all(job.done() for job in jobs):
            assert webui.call("/sdapi/v1/progress").status == 200
            time.sleep(0.05)
    assert [job.result() for job in jobs] == expected * 3


def test_several_checkpoints_stay_loaded(started):
    webui = started(settings={"sd_checkpoints_limit": 2, "sd_vae": "plain.safetensors"})
    models = [item["title"] for item in webui.call("/sdapi/v1/sd-models").body]
    if len(models) < 2:
        pytest.skip("the installation has one checkpoint only")
    first = webui.call("/sdapi/v1/options").body["sd_model_checkpoint"]
    second = next(title for title in models if title != first)
    plain = webui.txt2img()
    assert webui.set(sd_model_checkpoint=second).status == 200
    other = webui.txt2img(width=64, height=64)
    assert webui.set(sd_model_checkpoint=first).status == 200
    assert webui.txt2img() == plain
    webui.set(sd_vae="None")
    own = webui.txt2img()
    assert own != plain
    assert webui.set(sd_model_checkpoint=second).status == 200
    second_own = webui.txt2img()
    assert second_own.parameter("VAE") is None
    assert webui.set(sd_model_checkpoint=first).status == 200
    assert webui.txt2img() == own
    if other.parameter("VAE") is None:  # the setting did not fit the second checkpoint
        assert other == second_own
    assert "Traceback" not in webui.log


def test_vae_path_beats_all_and_nowebui_serves_the_api(started, vaes):
    webui = started("--nowebui", f"--vae-path={vaes / 'other.safetensors'}")
    expected = webui.txt2img()
    assert webui.status()["vae"] == "other.safetensors"
    assert "--vae-path" in webui.status()["reason"]
    assert webui.set(sd_vae="plain.safetensors").status == 200
    assert webui.txt2img() == expected
    assert expected.parameter("VAE") == "other.safetensors"
    job = {"VAE Kit": {"args": ["plain.safetensors"]}}
    assert webui.call("/sdapi/v1/txt2img", {**SMALL, "alwayson_scripts": job}).status == 200
    assert webui.txt2img() == expected
    assert "Traceback" not in webui.log


def test_switched_off_it_leaves_the_host_alone(started, vaes):
    webui = started("--vae-kit-disable")
    assert webui.call("/vae-kit/v1/status").status == 404
    names = [item["model_name"] for item in webui.call("/sdapi/v1/sd-vae").body]
    assert "same.safetensors" in names
    assert webui.set(sd_vae="plain.safetensors").status == 200
    assert webui.txt2img().parameter("VAE") == "plain.safetensors"
    assert "sd_vae" not in webui.call("/sdapi/v1/options").body.get("quicksettings_list", [])


def test_beside_other_extensions(started, tmp_path):
    """Folders named by VAE_KIT_A1111_EXTENSIONS (separated as in PATH) are linked in beside ours."""
    named = [Path(folder) for folder in os.environ.get("VAE_KIT_A1111_EXTENSIONS", "").split(os.pathsep) if folder]
    if not named:
        pytest.skip("set VAE_KIT_A1111_EXTENSIONS to folders of other extensions")
    for folder in named:
        (tmp_path / "extensions").mkdir(exist_ok=True)
        (tmp_path / "extensions" / folder.name).symlink_to(folder)
    webui = started()
    own = webui.txt2img()
    made = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    assert webui.txt2img(alwayson_scripts={"VAE Kit": {"args": ["plain.safetensors"]}}) == made
    assert webui.txt2img() == own
    assert webui.set(sd_vae="cut.safetensors").status == 422
    assert webui.txt2img() == own
    if any("multidiffusion" in folder.name for folder in named):
        with_tiled_vae(webui, own)


def with_tiled_vae(webui, own):
    """The old Tiled VAE replaces encoder.forward and decoder.forward of the module whose weights we exchange.

    Ours steps aside for it and says so once, and does not take its place in the API.
    """
    info = webui.call("/sdapi/v1/script-info").body
    assert sum(item["name"] == "tiled vae" for item in info) == 2, "of txt2img and img2img, and only its own"
    tiled = {"Tiled VAE": {"args": [True, 256, 48, False, True, True, False]}}
    size = {"width": 512, "height": 512}
    job = {"VAE Kit": {"args": ["plain.safetensors"]}}
    whole = webui.txt2img(**size, alwayson_scripts=job)
    ours = {"VAE Kit": {"args": ["plain.safetensors", "Automatic", "Always stream"]}}
    before = webui.status()["last_decode"]
    bands = webui.txt2img(**size, alwayson_scripts={**ours, **tiled})
    again = webui.txt2img(**size, alwayson_scripts={**ours, **tiled})
    assert again == bands
    assert webui.log.count("Another extension (tilevae.py) has taken over this model's VAE") == 1
    assert bands.parameter("VAE Kit tiling") is None
    assert webui.status()["last_decode"] == before
    streamed = webui.txt2img(**size, alwayson_scripts=ours)
    assert streamed.parameter("VAE Kit tiling").startswith("stream in ")
    assert abs(streamed.pixels.astype(int) - whole.pixels.astype(int)).max() <= 1
    difference = abs(bands.pixels.astype(int) - whole.pixels.astype(int)).mean()
    other = abs(webui.txt2img(**size).pixels.astype(int) - whole.pixels.astype(int)).mean()
    assert difference < other / 2, "tiles are decoded with the job's VAE, too"
    assert webui.txt2img() == own


def test_what_version_0_1_saved_is_still_chosen(started, tmp_path):
    """Labels in config.json, ui-config.json and a request; what is kept from now on is the identifier."""
    defaults = {
        f"customscript/vae_kit.py/{tab}/Tiled VAE for this job/value": label
        for tab, label in (("txt2img", "Always stream"), ("img2img", "As in Settings"))
    }
    (tmp_path / "ui-config.json").write_text(json.dumps(defaults))
    webui = started(settings={"vae_kit_tiling_mode": "Always stream", "vae_kit_precision_mode": "Always fp32"})
    options = webui.call("/sdapi/v1/options").body
    assert (options["vae_kit_tiling_mode"], options["vae_kit_precision_mode"]) == ("stream", "fp32")
    webui.txt2img(width=192, height=256)
    assert webui.status()["last_decode"]["bands"] > 1

    props = [component["props"] for component in webui.call("/config").body["components"]]
    radios = {item["elem_id"]: item for item in props if item.get("elem_id") and item.get("choices")}
    saved = radios["setting_vae_kit_tiling_mode"]
    assert saved["value"] == "stream"
    assert [tuple(choice) for choice in saved["choices"]] == [("Auto", "auto"), ("Always stream", "stream")]
    assert radios["vae_kit_txt2img_tiling"]["value"] == "Always stream", "the user's default of the panel"
    assert radios["vae_kit_img2img_tiling"]["value"] == "As in Settings"

    assert webui.set(vae_kit_tiling_mode="Auto", vae_kit_precision_mode="Automatic").status == 200
    options = webui.call("/sdapi/v1/options").body
    assert (options["vae_kit_tiling_mode"], options["vae_kit_precision_mode"]) == ("auto", "auto")
    webui.txt2img(width=192, height=256)
    assert webui.status()["last_decode"]["bands"] == 1
    assert json.loads((tmp_path / "config.json").read_text())["vae_kit_tiling_mode"] == "auto"
    made = webui.txt2img(alwayson_scripts={"VAE Kit": {"args": ["Automatic", "Automatic", "Always stream"]}})
    assert made.parameter("VAE tiling") == "stream"
