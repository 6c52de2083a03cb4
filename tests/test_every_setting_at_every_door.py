"""Every setting at every door: what it changes there is proven by running, or a sentence says why it cannot apply.

A door is a way by which a VAE is used.  A pair of setting and door that is neither in `CASES` nor in `WHY_NOT` fails,
and so does one that is in both.
"""

import base64
import contextlib
import io
import json
import threading
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cli_files import CommandLine, kl_module, write_picture
from conftest import ROOT
from fake_a1111 import FakeA1111
from fake_previews import Network, add_previews
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn
from vae_files import amplify_stream, needs_half, picture, randomised, scale, tiny_state, write

from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.core.preview_worker import Previews
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings.sections import SPECS, spec_of

API, COMMAND_LINE, TAESD = "HTTP API", "command line", "TAESD in web UIs"
APP, WEB_UI = "jobs of the stand-alone app", "jobs of web UIs"
DOORS = (API, COMMAND_LINE, TAESD, APP, WEB_UI)

OVERRIDES, CACHE = "sd_vae_overrides_per_model_preferences", "sd_vae_checkpoint_cache"
ENCODE, DECODE = "sd_vae_encode_method", "sd_vae_decode_method"
TAESD_MODE = 1  # place among the choices of those two
STREAM = 1  # of vae_kit_tiling_mode
FP32 = 1  # of vae_kit_precision_mode
REFUSE, OFF = 1, 2  # of vae_kit_guard_wrong_family; OFF also of vae_kit_preview_method
WAYS = ("vae_kit_guard_by_hash", "vae_kit_guard_by_fingerprint", "vae_kit_guard_by_behaviour")


def choice(key, place):
    """A choice by its place in the list, whatever it is called."""
    return spec_of(key).choices[place].identifier


def hosts_word(key, place):
    """What a web UI calls a choice of an option that is its own."""
    return spec_of(key).choices[place].label


@dataclass(frozen=True)
class Change:
    """One setting in another value than usual.

    Attributes:
        value: The value.
        beside: Values of others in both runs, where the setting shows only beside them.
    """

    value: object
    beside: dict = field(default_factory=dict)


ALWAYS = {"vae_kit_tiling_mode": choice("vae_kit_tiling_mode", STREAM)}
RUNNING = {
    "vae_kit_tiling_enabled": Change(False, ALWAYS),
    "vae_kit_tiling_mode": Change(ALWAYS["vae_kit_tiling_mode"]),
    "vae_kit_tiling_memory_mb": Change(1),
    "vae_kit_tiling_encoder": Change(False, ALWAYS),
    "vae_kit_tiling_decoder": Change(False, ALWAYS),
    "vae_kit_precision_mode": Change(choice("vae_kit_precision_mode", FP32)),
    "vae_kit_precision_prefer_bf16": Change(True),
}
FETCHING = {
    "vae_kit_download_offline": Change(True),
    "vae_kit_download_proxy": Change("direct"),
    "vae_kit_download_http": Change("loopback"),
    "vae_kit_download_connect_seconds": Change(3.0),
    "vae_kit_download_stall_seconds": Change(3.0),
    "vae_kit_download_min_kb_per_second": Change(3.0),
    "vae_kit_download_attempts": Change(7),
    "vae_kit_download_max_redirects": Change(7),
}
TELLING = {way: Change(False) for way in WAYS}
OFTEN = {"vae_kit_preview_share": 100}  # as often as there is something to show

CASES = {
    API: {**RUNNING, **TELLING},
    COMMAND_LINE: {
        **{key: change for key, change in RUNNING.items() if key.split("_")[-1] not in ("encoder", "decoder")},
        **FETCHING,
    },
    TAESD: {
        **RUNNING,
        **TELLING,
        ENCODE: Change(hosts_word(ENCODE, TAESD_MODE)),
        DECODE: Change(hosts_word(DECODE, TAESD_MODE)),
        "vae_kit_download_offline": Change(True),
        "vae_kit_preview_max_side": Change(128, OFTEN),
        "vae_kit_preview_share": Change(77),
    },
    APP: {
        **{key: change for key, change in RUNNING.items() if "precision" not in key},
        **TELLING,
        "sd_vae": Change("demo_vivid.safetensors"),
        CACHE: Change(0),
        ENCODE: Change(choice(ENCODE, TAESD_MODE)),
        DECODE: Change(choice(DECODE, TAESD_MODE)),
        "vae_kit_preview_method": Change(choice("vae_kit_preview_method", OFF), OFTEN),
        "vae_kit_preview_every_steps": Change(3, OFTEN),
        "vae_kit_preview_max_side": Change(128, OFTEN),
        "vae_kit_preview_share": Change(77),
        "vae_kit_saving_save_images": Change(False),
        "vae_kit_saving_write_infotext": Change(False),
        "vae_kit_saving_folder": Change("elsewhere"),
        "vae_kit_guard_wrong_family": Change(choice("vae_kit_guard_wrong_family", REFUSE)),
    },
    WEB_UI: {
        **RUNNING,
        **TELLING,
        "sd_vae": Change("plain.safetensors"),
        OVERRIDES: Change(False, {"sd_vae": "plain.safetensors"}),
        CACHE: Change(0),
        "vae_kit_guard_wrong_family": Change(
            choice("vae_kit_guard_wrong_family", REFUSE), {"sd_vae": "wrong.safetensors"}
        ),
    },
}  # fmt: skip

NAMED = "A request names its VAE: nothing is chosen, and nothing is kept for a next one."
OF_PREVIEWS = "There are no steps and so no previews."
OWN_OPTION = "The web UI has an option of its own for it."
NO_DOWNLOAD = "No file is fetched here; the VAE tab and the command `download` do that."

# (beginning of a key, door): why settings whose keys begin so change nothing there
WHY_NOT = {
    ("sd_vae", API): NAMED,
    ("sd_vae", COMMAND_LINE): "--vae names the VAE, a TAESD too, and a command uses it once.",
    ("sd_vae", TAESD): "The family of the loaded model chooses the TAESD, whatever VAE is live beside it.",
    (OVERRIDES, APP): "The demo checkpoint has no card and no VAE beside it: there are no preferences to beat.",
    (ENCODE, WEB_UI): "It leads to the door of TAESD, where it is proven.",
    (DECODE, WEB_UI): "It leads to the door of TAESD, where it is proven.",
    ("vae_kit_preview_", API): OF_PREVIEWS,
    ("vae_kit_preview_", COMMAND_LINE): OF_PREVIEWS,
    ("vae_kit_preview_method", TAESD): OWN_OPTION,
    ("vae_kit_preview_every_steps", TAESD): OWN_OPTION,
    ("vae_kit_preview_method", WEB_UI): OWN_OPTION,
    ("vae_kit_preview_every_steps", WEB_UI): OWN_OPTION,
    ("vae_kit_preview_max_side", WEB_UI): "It is proven at the door of TAESD, which makes the previews.",
    ("vae_kit_preview_share", WEB_UI): "It is proven at the door of TAESD, which makes the previews.",
    ("vae_kit_saving_", API): "The picture travels in the answer; nothing is written.",
    ("vae_kit_saving_", COMMAND_LINE): "-o names the file; its size and VAE are written into every picture.",
    ("vae_kit_saving_", TAESD): OWN_OPTION,
    ("vae_kit_saving_", WEB_UI): OWN_OPTION,
    ("vae_kit_download_", API): NO_DOWNLOAD,
    ("vae_kit_download_", APP): NO_DOWNLOAD,
    ("vae_kit_download_", WEB_UI): NO_DOWNLOAD,
    ("vae_kit_download_", TAESD): "What the web UI fetches, it fetches in its own way; it can only be forbidden.",
    ("vae_kit_guard_wrong_family", API): "A request says which VAE it wants, and no model is loaded that it could fit.",
    ("vae_kit_guard_", COMMAND_LINE): "A command may always look as closely as it can: it has the time.",
    ("vae_kit_guard_wrong_family", TAESD): "A TAESD is used only if its family is certain, or named by its makers.",
    ("vae_kit_tiling_encoder", COMMAND_LINE): "A command runs one half, and --tiling is about that one.",
    ("vae_kit_tiling_decoder", COMMAND_LINE): "A command runs one half, and --tiling is about that one.",
    ("vae_kit_precision_", APP): "The app computes in fp32, which does not overflow; there is nothing to repair.",
}  # fmt: skip


def reason(key, door):
    """Why a setting changes nothing at a door; of the longest beginning that fits."""
    fitting = [start for start, where in WHY_NOT if where == door and key.startswith(start)]
    return WHY_NOT[max(fitting, key=len), door] if fitting else ""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_each_pair_is_proven_or_explained(spec, door):
    assert (spec.key in CASES[door]) or reason(spec.key, door), f"{spec.key} at {door}: run it, or say why not"


def test_the_tables_name_only_what_exists():
    keys = {spec.key for spec in SPECS}
    for door, changes in CASES.items():
        assert changes.keys() <= keys
        assert all(change.value != spec_of(key).default or change.beside for key, change in changes.items()), door
    for start, door in WHY_NOT:
        unproven = [key for key in keys if key.startswith(start) and key not in CASES[door]]
        assert unproven, f"{start} at {door} is proven: there is nothing to explain"


def pairs(door):
    return pytest.mark.parametrize(
        "key", [pytest.param(key, marks=needs_half if "precision" in key else ()) for key in CASES[door]]
    )


def assert_changes(observe, door, key):
    """What is observed differs with the setting, and does not differ without it."""
    change = CASES[door][key]
    usual = observe(key, change.beside)
    assert observe(key, change.beside) == usual, "what is observed must not change by itself"
    assert observe(key, {**change.beside, key: change.value}) != usual


LONGEST_PREVIEW = 5.0  # seconds


# --- what the doors are tried with -----------------------------------------------------------------------------------

LATENT = torch.randn(1, 4, 24, 20, generator=torch.Generator().manual_seed(0))
SMALL_LATENT = LATENT[:, :, :4, :5].clone()
JOB_LATENT = torch.randn(1, 4, 96, 64, generator=torch.Generator().manual_seed(0))


def overflowing_file(path):
    """A VAE in fp16 whose decoder leaves fp16's range."""
    vae = kl_module()
    amplify_stream(vae, "decoder", 15)
    return write(path, vae.half().state_dict(), {"family": "sd1"})


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PIXELS = np.random.default_rng(0).integers(0, 255, (192, 160, 3), dtype=np.uint8)


@pytest.fixture
def seen_ways(monkeypatch):
    """Which ways of telling a family were allowed since the last look."""
    from sd_vae_kit.vaes.family_finder import FamilyFinder

    seen, real = [], FamilyFinder.find

    def find(finder, entry, ways=None, weights=None):
        seen.append(tuple(getattr(ways, way.removeprefix("vae_kit_guard_")) for way in WAYS))
        return real(finder, entry, ways, weights)

    def taken():
        taken, seen[:] = set(seen), []
        assert taken, "nobody asked for a family"
        return taken

    monkeypatch.setattr(FamilyFinder, "find", find)
    return taken


@pytest.fixture
def seen_shares(monkeypatch):
    """Which parts of the time previews were allowed to take since the last look."""
    from sd_vae_kit.core.preview_worker import Budget

    seen, real = set(), Budget.wait

    def wait(budget, elapsed, expected=None):
        seen.add(budget.share)
        return real(budget, elapsed, expected)

    def taken():
        taken = set(seen)
        seen.clear()
        assert taken, "there was no preview"
        return taken

    monkeypatch.setattr(Budget, "wait", wait)
    return taken


def facts(report):
    """What a report says of how it was run, but not how long that took and what memory was free."""
    return None if report is None else (report["plan"], report["dtype"], report["steps_shifted"], report["steps_fp32"])


# --- web UIs: jobs, TAESD, and their HTTP API ------------------------------------------------------------------------


@pytest.fixture
def program_class(tmp_path):
    """With previews, and a TAESD of SD 1 whose decoder leaves fp16's range."""
    for half in ("encoder", "decoder"):
        config = TinyConfig(4, 8, encoder=half == "encoder", decoder=half == "decoder")
        module = randomised(TinyAutoencoder(config))
        if half == "decoder":
            layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
            scale(layers[0], 15)
            scale(layers[-1], -15)
        write(tmp_path / "VAE-taesd" / f"taesd_{half}.safetensors", module.state_dict(), {"family": "sd1"})
    return lambda folder: add_previews(FakeA1111(folder))


@pytest.fixture
def options(webui):
    """Run something with options in other values."""

    @contextlib.contextmanager
    def changed(values):
        before = dict(webui.shared.opts.data)
        webui.shared.opts.data.update(values)
        try:
            yield
        finally:
            webui.shared.opts.data.clear()
            webui.shared.opts.data.update(before)

    return changed


@pytest.fixture
def model(webui):
    return webui.shared.sd_model.first_stage_model


@pairs(WEB_UI)
def test_jobs_of_web_uis(key, webui, host, script, options, model, seen_ways):
    write(webui.folder / "VAE" / "wrong.safetensors", torch_state_of(model), {"family": "sdxl"})
    webui.sd_vae.refresh_vae_list()
    host.refresh()
    if "precision" in key:
        amplify_stream(model, "decoder", 14)
        model.half()
    webui.latent = JOB_LATENT.to(next(model.parameters()).dtype)
    observe = {
        "sd_vae": lambda: host.report.status().name,
        OVERRIDES: lambda: host.report.status().name,
        "vae_kit_guard_wrong_family": lambda: (host.report.status().name, host.report.status().warnings),
        CACHE: lambda: files_read(webui, host),
        **dict.fromkeys(WAYS, seen_ways),
    }.get(key, lambda: made_by_job(webui, host, script))

    def observed(key, values):
        with options(values):
            if "sd_vae" in key or "guard" in key:
                webui.load_model("model2")
            return observe()

    assert_changes(observed, WEB_UI, key)


def torch_state_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def made_by_job(webui, host, script):
    """How a job with an encode and a decode ran."""
    image = picture(64, 48).to(webui.latent.dtype)
    made = webui.generate(script, init=lambda: webui.shared.sd_model.encode_first_stage(image))
    status = host.api.api_status()
    return facts(status["last_encode"]), facts(status["last_decode"]), made.extra_generation_params


def files_read(webui, host):
    """How many files are read when two VAEs that were in use before are chosen in turns."""

    def choose_both():
        for name in ("plain", "other"):
            webui.shared.opts.data["sd_vae"] = f"{name}.safetensors"
            webui.sd_vae.reload_vae_weights()

    choose_both()
    with patch.object(host.library, "load", side_effect=host.library.load) as load:
        choose_both()
    return load.call_count


@pairs(TAESD)
def test_taesd_in_web_uis(key, webui, host, options, seen_ways, seen_shares):
    write(webui.folder / "VAE-taesd" / "undecided.safetensors", tiny_state(TinyConfig(4, 8, encoder=False)))
    host.taesd.library.refresh()
    webui.shared.state.begin()
    coders = webui.sd_vae_taesd

    def run():
        image, done = picture(96, 64), []
        dtype = torch.float16 if "precision" in key else torch.float32
        for coder, x in ((coders.encoder_model(), image * 0.5 + 0.5), (coders.decoder_model(), JOB_LATENT)):
            coder(x.to(dtype))
            done.append((coder.report.plan, coder.report.dtype, coder.report.steps_shifted))
        return done

    def ways():
        host.taesd.vaes.find("sdxl", "decoder")
        return seen_ways()

    observe = {
        **dict.fromkeys(WAYS, ways),
        DECODE: lambda: float(webui.sd_samplers_common.decode_first_stage(webui.shared.sd_model, SMALL_LATENT).sum()),
        ENCODE: lambda: float(webui.sd_samplers_common.images_tensor_to_samples(picture(16, 16) * 0.5 + 0.5).sum()),
        "vae_kit_download_offline": lambda: downloads(webui),
        "vae_kit_preview_max_side": lambda: previewed(webui).size,
        "vae_kit_preview_share": lambda: (previewed(webui), seen_shares())[1],
    }.get(key, run)

    def observed(key, values):
        with options(values):
            return observe()

    assert_changes(observed, TAESD, key)


def previewed(webui):
    """The preview of one step, as a poll of the page finds it."""
    state = webui.shared.state
    state.begin()
    webui.shared.opts.data.update(show_progress_type="TAESD")
    state.sampling_step = 1
    webui.sd_samplers_common.store_latent(JOB_LATENT)
    state.set_current_image()
    image = state.current_image
    state.end()
    return image


def downloads(webui):
    """What the web UI tries to fetch when somebody calls its own function."""
    with contextlib.suppress(Network):
        webui.sd_vae_taesd.download_model(str(webui.folder / "taesd.pth"), "https://example.invalid/taesd.pth")
    return len(webui.downloads), webui.downloads.clear()


@pairs(API)
def test_the_http_api(key, webui, host, options, seen_ways):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from sd_vae_kit.web.api import PREFIX, make_router

    overflowing_file(webui.folder / "VAE" / "half.safetensors")
    host.refresh()
    app = FastAPI()
    app.include_router(make_router(host.api))
    client = TestClient(app)
    wanted = {"vae": "half.safetensors", "dtype": "fp16" if "precision" in key else "fp32"}
    latent = base64.b64encode(save({"latent": LATENT * 0.18215}, {"family": "sd1"})).decode()

    def run():
        encoded = client.post(f"{PREFIX}/encode", json={"image": png(PIXELS), **wanted}).json()
        decoded = client.post(f"{PREFIX}/decode", json={"latent": latent, **wanted}).json()
        said = [text for text in (*encoded["warnings"], *decoded["warnings"]) if "MiB" not in text]
        return encoded["plan"], decoded["plan"], said

    def ways():
        assert client.get(f"{PREFIX}/inspect", params={"name": "plain.safetensors"}).status_code == 200
        return seen_ways()

    def observed(key, values):
        with options(values):
            return ways() if key in WAYS else run()

    assert_changes(observed, API, key)


@needs_half
def test_what_a_vae_needed_is_remembered_between_calls_of_the_api_and_of_taesd(webui, host):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from sd_vae_kit.web.api import PREFIX, make_router

    overflowing_file(webui.folder / "VAE" / "half.safetensors")
    host.refresh()
    app = FastAPI()
    app.include_router(make_router(host.api))
    latent = base64.b64encode(save({"latent": LATENT * 0.18215}, {"family": "sd1"})).decode()
    wanted = {"latent": latent, "vae": "half.safetensors", "dtype": "fp16"}
    assert TestClient(app).post(f"{PREFIX}/decode", json=wanted).status_code == 200
    assert host.api.precision_fixes.count == 1
    recomputed = []
    for _ in range(2):
        coder = webui.sd_vae_taesd.decoder_model()
        assert bool(torch.isfinite(coder(SMALL_LATENT.half())).all())
        recomputed.append(coder.report.steps_recomputed)
    assert recomputed[0] > 0
    assert recomputed[1] == 0, "another object, the same memory"
    assert host.api.precision_fixes.count == 2
    assert host.api.forget_precision() == 2


# --- the command line ------------------------------------------------------------------------------------------------

SPELLED = {
    "vae_kit_tiling_enabled": lambda value: [] if value else ["--tiling", "off"],
    "vae_kit_tiling_mode": lambda value: ["--tiling", "exact"],
    "vae_kit_tiling_memory_mb": lambda value: ["--memory-mb", value],
    "vae_kit_precision_mode": lambda value: ["--precision", "fp32"],
    "vae_kit_precision_prefer_bf16": lambda value: ["--prefer-bf16"],
}


@pairs(COMMAND_LINE)
def test_the_command_line(key, tmp_path, capsys, monkeypatch):
    cli = CommandLine(tmp_path, capsys)
    if "download" in key:
        assert_changes(lambda key, values: fetched_with(tmp_path, cli, monkeypatch, values), COMMAND_LINE, key)
        return
    overflowing_file(tmp_path / "vae.safetensors")
    save_file({"latent": LATENT * 0.18215}, tmp_path / "z.safetensors", {"family": "sd1"})
    write_picture(tmp_path / "a.png", 192, 160)
    dtype = "fp16" if "precision" in key else "fp32"

    def observed(key, values):
        # --tiling off replaces --tiling exact: one option stands for two settings
        values = {key: values[key]} if values.get(key) is False else values
        spelled = [word for name, value in values.items() for word in SPELLED[name](value)]
        words = ["--vae", tmp_path / "vae.safetensors", "--dtype", dtype, "--json", *spelled]
        encoded = cli("encode", tmp_path / "a.png", "-o", tmp_path / "b.safetensors", *words).data
        decoded = cli("decode", tmp_path / "z.safetensors", "-o", tmp_path / "b.png", *words).data
        return facts(encoded), facts(decoded)

    assert_changes(observed, COMMAND_LINE, key)


def fetched_with(folder, cli, monkeypatch, values):
    """The settings that `download` fetches a file with; they are those of the app's folder."""
    from sd_vae_kit.cli import download_vae
    from sd_vae_kit.errors import DownloadError
    from sd_vae_kit.vaes.catalogue import catalogue

    seen = []

    def install(known, folder, settings, **more):
        seen.append(settings)
        raise DownloadError("not today")

    monkeypatch.setattr(download_vae, "install", install)
    (folder / "settings.json").write_text(json.dumps(values), "utf-8")
    assert cli("download", catalogue().entries[0].name, "--data-dir", folder).error == "not today"
    return seen[0]


# --- the stand-alone app ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app_jobs(tmp_path_factory):
    from sd_vae_kit.standalone.backend import build_backend
    from sd_vae_kit.standalone.folders import Folders

    demo, folder = ROOT / "sd_vae_kit" / "standalone" / "demo", tmp_path_factory.mktemp("app")
    folders = Folders(folder, demo=demo)
    folders.make()
    save_file(load_file(demo / "demo_vivid.safetensors"), folders.own_vaes / "wrong.safetensors", {"family": "sdxl"})
    for half in ("encoder", "decoder"):
        config = TinyConfig(4, 8, encoder=half == "encoder", decoder=half == "decoder")
        write(folders.own_tiny_vaes / f"taesd_{half}.safetensors", tiny_state(config), {"family": "sd1"})
    Image.fromarray(PIXELS).save(folder / "a.png")
    backend = build_backend(folders, folder / "shown")
    yield AppJobs(backend, folder)
    backend.close()


class AppJobs:
    """The app, and what can be seen of what it does."""

    def __init__(self, backend, folder):
        self.backend, self.folder = backend, folder

    def job(self, **more):
        from sd_vae_kit.standalone.job import Img2Img

        fields = {"prompt": "cat", "steps": 1, "seed": 5, "width": 256, "height": 256, "denoising_strength": 0}
        return Img2Img(**{**fields, "picture": self.folder / "a.png", **more})

    def made(self):
        """How a picture went through the VAE, and what its parameters say about that."""
        from sd_vae_kit.pictures import infotext

        (made,) = self.backend.maker.img2img(self.job()).pictures
        status = self.backend.api.api_status()
        fields = infotext.parse(made.infotext).fields
        told = {name: text for name, text in fields.items() if "VAE" in name}
        return facts(status["last_encode"]), facts(status["last_decode"]), told

    def chosen(self):
        """What becomes of choosing a VAE of another family."""
        self.backend.take_messages()  # what was said before this choice
        for name in ("None", "wrong.safetensors"):
            with contextlib.suppress(VaeKitError):
                self.backend.settings.change({"sd_vae": name})
        live, said = self.backend.api.api_status()["vae"], [message.text for message in self.backend.take_messages()]
        self.backend.settings.change({"sd_vae": "Automatic"})
        return live, said

    def files_read(self):
        """How many files are read when two VAEs that were in use before are chosen in turns."""
        names = ("demo_vivid.safetensors", "wrong.safetensors")
        for name in names:
            self.backend.settings.change({"sd_vae": name})
        library = self.backend.vaes.library
        with patch.object(library, "load", side_effect=library.load) as load:
            for name in names:
                self.backend.settings.change({"sd_vae": name})
        self.backend.settings.change({"sd_vae": "Automatic"})
        return load.call_count

    def previewed(self):
        """How many latents are offered, and how large the previews are."""
        seen, is_shown, real = set(), threading.Event(), Previews.offer

        def on_progress(progress):
            if progress.preview is not None:
                seen.add(progress.preview.shape)
                is_shown.set()
            elif progress.phase == "sampling" and progress.step == progress.steps:
                is_shown.wait(LONGEST_PREVIEW)  # which is made in another thread

        with patch.object(Previews, "offer", autospec=True, side_effect=real) as offer:
            self.backend.maker.img2img(self.job(steps=6, denoising_strength=1), on_progress)
        return offer.call_count, seen

    def saved(self):
        """Folder and text of the file that a finished job leaves."""
        from sd_vae_kit.pictures.picture_file import read_infotext

        before = set(self.folder.rglob("*.png"))
        self.backend.jobs.start("img2img", self.job())
        for snapshot in self.backend.jobs.watch("img2img"):
            last = snapshot
        assert last.state == "done", last.message
        new = sorted(path for path in set(self.folder.rglob("*.png")) - before)
        return [(path.relative_to(self.folder).parts[0], bool(read_infotext(path))) for path in new]


@pairs(APP)
def test_jobs_of_the_stand_alone_app(key, app_jobs, seen_ways, seen_shares):
    backend = app_jobs.backend
    observe = {
        **dict.fromkeys(WAYS, lambda: (app_jobs.chosen(), seen_ways())[1]),
        "vae_kit_guard_wrong_family": app_jobs.chosen,
        CACHE: app_jobs.files_read,
        "vae_kit_preview_share": lambda: (app_jobs.previewed(), seen_shares())[1],
        **{f"vae_kit_preview_{name}": app_jobs.previewed for name in ("method", "every_steps", "max_side")},
        **{f"vae_kit_saving_{name}": app_jobs.saved for name in ("save_images", "write_infotext", "folder")},
    }.get(key, app_jobs.made)

    def observed(key, values):
        before = backend.settings.values()
        try:
            backend.settings.change(values)
            return observe()
        finally:
            backend.settings.change({name: before[name] for name in values})

    assert_changes(observed, APP, key)
