"""A1111 with this extension, over HTTP.  Needs VAE_KIT_A1111_DIR; see installation.py."""

import base64
import hashlib
import json
import threading

import pytest
from installation import SMALL, WebUi, made_from, picture, running_with, wait_until, without_traceback
from programs import A1111
from vae_variants import smallest_checkpoint, write_variants

pytestmark = pytest.mark.webui

BROKEN = ["wrong", "incomplete", "poisoned", "lora", "cut", "empty"]
SAME_AS_PLAIN = ["prefixed.safetensors", "diffusers.safetensors", "wrapped.ckpt"]
HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, "hr_upscaler": "Latent"}


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, smallest_checkpoint(A1111.folder()))
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory, vaes):
    with running_with(A1111, tmp_path_factory.mktemp("a1111"), f"--vae-dir={vaes}") as webui:
        yield webui


@pytest.fixture
def webui(running: WebUi):
    """The web UI with the setting on Automatic."""
    assert running.set(sd_vae="Automatic").status == 200
    with without_traceback(running):
        yield running


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def job(vae, hires="Automatic"):
    return {"VAE Kit": {"args": [vae, hires]}}


# --- the list --------------------------------------------------------------------------------------------------------


def test_files_of_one_name_are_listed_apart(webui, vaes):
    listed = {item["model_name"]: item["filename"] for item in webui.call("/sdapi/v1/sd-vae").body}
    assert listed["one/same.safetensors"] == str(vaes / "one" / "same.safetensors")
    assert listed["two/same.safetensors"] == str(vaes / "two" / "same.safetensors")


def test_a_new_file_is_found_by_refresh(webui, vaes):
    (vaes / "new.safetensors").write_bytes((vaes / "other.safetensors").read_bytes())
    try:
        assert webui.call("/sdapi/v1/refresh-vae", {}).status == 200
        assert "new.safetensors" in {item["model_name"] for item in webui.call("/sdapi/v1/sd-vae").body}
    finally:
        (vaes / "new.safetensors").unlink()
        webui.call("/sdapi/v1/refresh-vae", {})


# --- the dropdown ----------------------------------------------------------------------------------------------------


def test_the_dropdown_changes_the_picture_and_none_brings_the_old_one_back(webui, vaes):
    own = webui.txt2img()
    pictures = [own]
    for name in ("plain.safetensors", "other.safetensors", "one/same.safetensors", "two/same.safetensors"):
        assert webui.set(sd_vae=name).status == 200
        made = webui.txt2img()
        assert made.parameter("VAE") == name
        assert made.parameter("VAE hash") == sha256_of(vaes / name)[:10]
        assert all(made != earlier for earlier in pictures)
        pictures.append(made)
    assert webui.set(sd_vae="None").status == 200
    back = webui.txt2img()
    assert back == own
    assert back.parameter("VAE") is None


@pytest.mark.parametrize("name", SAME_AS_PLAIN)
def test_every_layout_gives_the_same_picture(webui, name):
    webui.set(sd_vae="plain.safetensors")
    expected = webui.txt2img()
    webui.set(sd_vae="other.safetensors")
    assert webui.set(sd_vae=name).status == 200
    assert webui.txt2img() == expected


def test_the_hash_is_right_whichever_was_used_before(webui, vaes):
    for name in ("other.safetensors", "plain.safetensors", "other.safetensors"):
        webui.set(sd_vae=name)
        assert webui.txt2img().parameter("VAE hash") == sha256_of(vaes / name)[:10]


def test_automatic_takes_no_vae_whose_name_only_begins_like_the_checkpoints(webui):
    assert webui.status()["vae"] == "None"
    assert "Automatic" in webui.status()["reason"]


@pytest.mark.parametrize("stem", BROKEN)
@pytest.mark.parametrize("before", ["None", "plain.safetensors"])
def test_a_failed_load_is_refused_and_the_next_picture_is_bit_equal(webui, stem, before):
    webui.set(sd_vae=before)
    expected = webui.txt2img()
    answer = webui.set(sd_vae=f"{stem}.safetensors")
    assert answer.status == 422
    assert stem in answer.detail
    assert "\n" not in answer.detail
    assert webui.call("/sdapi/v1/options").body["sd_vae"] == before
    after = webui.txt2img()
    assert after == expected
    assert after.infotext == expected.infotext


def test_a_name_that_is_not_there_is_refused(webui):
    expected = webui.txt2img()
    answer = webui.set(sd_vae="plane.safetensors")
    assert answer.status == 422
    assert "plain.safetensors" in answer.detail, "a near name is offered"
    assert webui.txt2img() == expected


# --- override_settings, img2img, hires -------------------------------------------------------------------------------


def test_override_settings_hold_for_one_request(webui):
    own = webui.txt2img()
    made = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    assert made != own
    assert made.parameter("VAE") == "plain.safetensors"
    assert webui.txt2img() == own
    assert webui.call("/sdapi/v1/options").body["sd_vae"] == "Automatic"


def test_a_bad_override_is_refused_and_changes_nothing(webui):
    webui.set(sd_vae="other.safetensors")
    expected = webui.txt2img()
    answer = webui.try_txt2img(override_settings={"sd_vae": "cut.safetensors"})
    assert answer.status == 422
    assert webui.txt2img() == expected


def test_an_override_of_an_option_that_was_never_saved_does_not_leak(webui):
    own = webui.txt2img()
    tiny = webui.txt2img(override_settings={"sd_vae_decode_method": "TAESD"})
    assert tiny != own
    assert webui.txt2img() == own
    eta = webui.call("/sdapi/v1/options").body.get("CLIP_stop_at_last_layers", 1)
    webui.txt2img(override_settings={"CLIP_stop_at_last_layers": eta + 1})
    assert webui.call("/sdapi/v1/options").body["CLIP_stop_at_last_layers"] == eta


def test_img2img_encodes_and_decodes_with_the_chosen_vae(webui):
    own = webui.img2img(denoising_strength=0.1)
    webui.set(sd_vae="plain.safetensors")
    made = webui.img2img(denoising_strength=0.1)
    assert made != own
    assert made.parameter("VAE") == "plain.safetensors"


def test_hires_and_batches(webui):
    own = webui.txt2img(**HIRES)
    made = webui.txt2img(**HIRES, override_settings={"sd_vae": "plain.safetensors"})
    assert own.pixels.shape == (128, 128, 3)
    assert made != own
    batches = webui.call("/sdapi/v1/txt2img", {**SMALL, "n_iter": 2, "batch_size": 2})
    assert len(batches.body["images"]) == 4


def test_taesd_and_seamless_tiling_still_work(webui):
    webui.set(sd_vae="plain.safetensors")
    assert webui.txt2img(override_settings={"sd_vae_decode_method": "TAESD"}).parameter("VAE Decoder") == "TAESD"
    plain = webui.txt2img()
    tiled = webui.txt2img(tiling=True)
    assert tiled != plain
    assert webui.txt2img() == plain


# --- one job ---------------------------------------------------------------------------------------------------------


def test_a_vae_for_one_job_leaves_the_setting_alone(webui, vaes):
    own = webui.txt2img()
    expected = webui.txt2img(override_settings={"sd_vae": "plain.safetensors"})
    made = webui.txt2img(alwayson_scripts=job("plain.safetensors"))
    assert made == expected
    assert made.parameter("VAE") == "plain.safetensors"
    assert made.parameter("VAE hash") == sha256_of(vaes / "plain.safetensors")[:10]
    assert made.parameter("Job VAE") == "plain.safetensors"
    assert webui.call("/sdapi/v1/options").body["sd_vae"] == "Automatic"
    assert webui.txt2img() == own


def test_the_jobs_vae_beats_setting_and_override(webui):
    webui.set(sd_vae="other.safetensors")
    made = webui.txt2img(
        alwayson_scripts=job("plain.safetensors"), override_settings={"sd_vae": "one/same.safetensors"}
    )
    assert made.parameter("VAE") == "plain.safetensors"
    assert webui.txt2img().parameter("VAE") == "other.safetensors"


def test_arguments_by_name(webui):
    made = webui.txt2img(alwayson_scripts={"VAE Kit": {"args": [{"vae": "plain"}]}})
    assert made.parameter("VAE") == "plain.safetensors"
    answer = webui.try_txt2img(alwayson_scripts={"VAE Kit": {"args": [{"vea": "plain"}]}})
    assert answer.status == 422
    assert "vea" in answer.detail


def test_the_hires_pass_can_have_its_own(webui):
    by_setting = webui.txt2img(**HIRES, override_settings={"sd_vae": "plain.safetensors"})
    made = webui.txt2img(**HIRES, alwayson_scripts=job("other.safetensors", "plain.safetensors"))
    assert made == by_setting, "a latent upscaler leaves only the last decode, which is the hires pass's"
    assert made.parameter("Hires VAE") == "plain.safetensors"
    many = webui.call(
        "/sdapi/v1/txt2img",
        {
            **SMALL,
            "n_iter": 2,
            **HIRES,
            "hr_upscaler": "Lanczos",
            "alwayson_scripts": job("other.safetensors", "plain.safetensors"),
        },
    )
    assert many.status == 200
    assert len(many.body["images"]) == 2


@pytest.mark.parametrize("name", ["nowhere", "cut.safetensors", "wrong.safetensors"])
def test_a_job_whose_vae_cannot_be_used_is_refused(webui, name):
    webui.set(sd_vae="other.safetensors")
    expected = webui.txt2img()
    answer = webui.try_txt2img(alwayson_scripts=job(name))
    assert answer.status == 422
    assert webui.txt2img() == expected
    assert webui.status()["vae"] == "other.safetensors"


def test_a_job_that_fails_gives_the_setting_back(webui):
    webui.set(sd_vae="other.safetensors")
    expected = webui.txt2img()
    before = len(webui.log)
    answer = webui.try_txt2img(enable_hr=True, alwayson_scripts=job("plain.safetensors"))  # no denoising strength
    assert answer.status == 500
    assert "Traceback" in webui.log[before:]
    webui.checked = len(webui.log)  # the host's own traceback, wanted here
    assert webui.status()["vae"] == "other.safetensors"
    assert webui.txt2img() == expected


def test_an_interrupted_job_gives_its_vae_back(webui):
    webui.set(sd_vae="other.safetensors")
    expected = webui.txt2img()
    answers = []
    slow = {"steps": 150, "width": 256, "height": 256, "alwayson_scripts": job("plain.safetensors")}
    running = threading.Thread(target=lambda: answers.append(webui.try_txt2img(**slow)))
    running.start()
    wait_until(lambda: webui.status()["vae"] == "plain.safetensors", 60, webui)
    webui.call("/sdapi/v1/interrupt", {})
    running.join()
    assert answers[0].status == 200
    assert webui.status()["vae"] == "other.safetensors"
    assert webui.txt2img() == expected


# --- X/Y/Z plot ------------------------------------------------------------------------------------------------------


def grid(webui, label, values):
    """Pictures of a one-row grid over `values`."""
    info = webui.call("/sdapi/v1/script-info").body
    script = next(i for i in info if i["name"] == "x/y/z plot" and not i["is_img2img"])
    types = script["args"][0]["choices"]
    args = [0, "", [], 0, "", [], 0, "", [], True, True, False, False, False, False, False, 0, False]
    args[0], args[1], args[2] = types.index(label), ",".join(values), list(values)
    assert len(args) == len(script["args"])
    answer = webui.call("/sdapi/v1/txt2img", {**SMALL, "script_name": "x/y/z plot", "script_args": args})
    assert answer.status == 200, answer.body
    texts = json.loads(answer.body["info"])["infotexts"]
    return [
        made_from({"images": [image], "info": json.dumps({"infotexts": [text]})})
        for image, text in zip(answer.body["images"][1:], texts[1:], strict=True)
    ]


@pytest.mark.parametrize("label", ["VAE", "[VAE Kit] VAE for this job"])
def test_the_xyz_plot_has_a_vae_per_cell(webui, label):
    names = ["plain.safetensors", "other.safetensors", "None"]
    cells = grid(webui, label, names)
    for name, cell in zip(names, cells, strict=True):
        override = {"override_settings": {"sd_vae": name}}
        assert cell == webui.txt2img(**override)
        assert cell.parameter("VAE") == (None if name == "None" else name)
    assert webui.status()["vae"] == "None"


# --- the panel's script, settings, API -------------------------------------------------------------------------------


def test_the_scripts_arguments_are_described(webui):
    info = webui.call("/sdapi/v1/script-info").body
    ours = [item for item in info if item["name"] == "vae kit"]
    assert len(ours) == 2
    assert ours[0]["args"][0]["label"] == "VAE for this job"
    assert ours[0]["args"][0]["value"] == "Automatic"


def test_the_top_bar_has_the_dropdown_from_the_first_start(webui):
    options = webui.call("/sdapi/v1/options").body
    assert options["quicksettings_list"] == ["sd_model_checkpoint", "sd_vae"]


def test_switches_bring_the_hosts_own_behaviour_back(webui):
    def listed():
        return [item["model_name"] for item in webui.call("/sdapi/v1/sd-vae").body]

    assert webui.set(vae_kit_repair_names=False).status == 200
    assert "same.safetensors" in listed()
    assert webui.set(vae_kit_repair_names=True).status == 200
    assert "same.safetensors" not in listed()
    webui.set(sd_vae="plain.safetensors")
    expected = webui.txt2img()
    assert webui.set(vae_kit_repair_loading=False).status == 200
    webui.set(sd_vae="other.safetensors")
    webui.set(sd_vae="plain.safetensors")
    assert webui.txt2img() == expected
    webui.set(sd_vae="None")
    own = webui.txt2img()
    webui.set(sd_vae="other.safetensors")
    assert webui.set(vae_kit_repair_loading=True).status == 200
    webui.set(sd_vae="plain.safetensors")
    assert webui.txt2img() == expected
    webui.set(sd_vae="None")
    assert webui.txt2img() == own


def test_api_lists_and_inspects(webui, vaes):
    listed = {item["name"]: item for item in webui.call("/vae-kit/v1/list").body["vaes"]}
    assert listed["cut.safetensors"]["problem"]
    assert listed["plain.safetensors"]["problem"] == ""
    facts = webui.call("/vae-kit/v1/inspect?name=diffusers.safetensors").body
    assert (facts["layout"], facts["z_channels"]) == ("diffusers", 4)
    assert facts["sha256"] == sha256_of(vaes / "diffusers.safetensors")
    assert webui.call("/vae-kit/v1/inspect?name=cut.safetensors").status == 422
    for name in ("/etc/passwd", "../" * 8 + "etc/passwd", "nowhere"):
        assert webui.call(f"/vae-kit/v1/inspect?name={name}").status == 404


def test_api_encodes_and_decodes(webui):
    encoded = webui.call("/vae-kit/v1/encode", {"image": picture(60), "vae": "plain.safetensors", "family": "sd1"})
    assert encoded.status == 200, encoded.body
    assert encoded.body["shape"] == [1, 4, 8, 8]
    decoded = webui.call("/vae-kit/v1/decode", {"latent": encoded.body["latent"], "vae": "plain.safetensors"})
    assert decoded.status == 200, decoded.body
    assert (decoded.body["height"], decoded.body["width"]) == (60, 60)
    bad = webui.call("/vae-kit/v1/encode", {"image": base64.b64encode(b"no picture").decode(), "vae": "plain"})
    assert bad.status == 422


def test_a_client_library_drives_it(webui):
    """webuiapi, as scripts use it."""
    import webuiapi as client_library

    host, port = webui.url.removeprefix("http://").split(":")
    client = client_library.WebUIApi(host=host, port=int(port))
    request = {**SMALL, "sampler_name": "Euler"}
    client.set_options({"sd_vae": "plain.safetensors"})
    assert client.get_options()["sd_vae"] == "plain.safetensors"
    made = client.txt2img(**request)
    assert "VAE: plain.safetensors" in made.info["infotexts"][0]
    once = client.txt2img(**request, override_settings={"sd_vae": "other.safetensors"})
    assert "VAE: other.safetensors" in once.info["infotexts"][0]
    ours = client.txt2img(**request, alwayson_scripts=job("one/same.safetensors"))
    assert "VAE: one/same.safetensors" in ours.info["infotexts"][0]
    again = client.img2img(images=[made.image], denoising_strength=0.2, **request)
    assert "VAE: plain.safetensors" in again.info["infotexts"][0]
    assert "two/same.safetensors" in {item["model_name"] for item in client.get_sd_vae()}


# --- Reload UI -------------------------------------------------------------------------------------------------------


def test_reload_ui_twice(webui):
    own = webui.txt2img()
    webui.set(sd_vae="plain.safetensors")
    expected = webui.txt2img()
    for _ in range(2):
        reload_ui(webui)
        assert webui.txt2img() == expected
        assert webui.status()["vae"] == "plain.safetensors"
        assert webui.set(sd_vae="cut.safetensors").status == 422
        webui.set(sd_vae="None")
        assert webui.txt2img() == own
        webui.set(sd_vae="plain.safetensors")
    assert webui.txt2img(alwayson_scripts=job("other.safetensors")).parameter("VAE") == "other.safetensors"
    assert len(grid(webui, "[VAE Kit] VAE for this job", ["plain", "other"])) == 2


def reload_ui(webui):
    """What the button does, over gradio's own HTTP interface."""
    config = webui.call("/config").body
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "settings_restart_gradio")
    of_button = ([button, "click"], button)  # gradio 4 and 3
    number = next(i for i, d in enumerate(config["dependencies"]) if any(t in of_button for t in d["targets"]))
    started = webui.log.count("Startup time")
    webui.call("/run/predict", {"fn_index": number, "data": [], "session_hash": "test"})
    wait_until(lambda: webui.log.count("Startup time") > started, 180, webui)
