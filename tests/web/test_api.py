"""The HTTP API, on an app of its own."""

import base64
import contextlib
import hashlib
import io
import re

import numpy as np
import pytest
import torch
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load
from vae_files import kl_config, kl_state, write

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.inspection import Inspector, inspect
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.web.api import PREFIX, make_router


class Backend:
    def __init__(self, library):
        self.library = library
        self.inspector = Inspector(FamilyFinder(library, None))
        self.computed = 0
        self.request = RunRequest()
        self.precision_fixes = PrecisionFixesFile(None)

    def run_request(self):
        return self.request

    def forget_precision(self):
        return 2

    def api_status(self):
        return {"host": "test", "vae": "a.safetensors", "reason": "because", "warnings": ["careful"]}

    @contextlib.contextmanager
    def computing(self):
        self.computed += 1
        yield torch.device("cpu")


@pytest.fixture
def backend(tmp_path):
    write(tmp_path / "VAE" / "a.safetensors", kl_state(), {"family": "sd1"})
    write(tmp_path / "VAE" / "sub" / "b.safetensors", kl_state(kl_config(16, quant_conv=False), seed=1))
    (tmp_path / "VAE" / "cut.safetensors").write_bytes((tmp_path / "VAE" / "a.safetensors").read_bytes()[:-5])
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / "VAE" / "a.safetensors").read_bytes())
    library = Library([Folder(tmp_path / "VAE")], tmp_path / "cache.json")
    library.refresh()
    return Backend(library)


@pytest.fixture
def client(backend):
    app = FastAPI()
    app.include_router(make_router(backend))
    return TestClient(app)


def png(height=30, width=20):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def post(client, path, **request):
    answer = client.post(PREFIX + path, json=request)
    return answer.status_code, answer.json()


def test_list(client):
    listed = {item["name"]: item for item in client.get(f"{PREFIX}/list").json()["vaes"]}
    assert set(listed) == {"a.safetensors", "sub/b.safetensors", "cut.safetensors"}
    assert listed["a.safetensors"]["problem"] == ""
    assert listed["cut.safetensors"]["problem"]
    assert not any("/VAE/" in str(item) for item in listed.values()), "no path leaves the computer"


def test_status(client):
    status = client.get(f"{PREFIX}/status").json()
    assert (status["vae"], status["reason"], status["warnings"]) == ("a.safetensors", "because", ["careful"])
    assert status["version"]


def test_what_vaes_needed_is_forgotten_on_request(client):
    assert post(client, "/forget-precision") == (200, {"forgotten": 2})


def test_inspect(client, tmp_path):
    facts = client.get(f"{PREFIX}/inspect", params={"name": "sub/b.safetensors"}).json()
    assert (facts["kind"], facts["layout"], facts["z_channels"], facts["dtype"]) == ("kl", "ldm", 16, "fp32")
    assert facts["sha256"] == hashlib.sha256((tmp_path / "VAE" / "sub" / "b.safetensors").read_bytes()).hexdigest()
    assert facts["parameters"]["total"] == facts["parameters"]["encoder"] + facts["parameters"]["decoder"]
    assert (facts["family"], facts["family_known_by"], facts["known_as"]) == ("sd3|flux", "undecided", "")
    assert facts["fingerprint"] == inspect(tmp_path / "VAE" / "sub" / "b.safetensors").fingerprint


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "nowhere", "..", "", "sub", "\0"])
def test_nothing_outside_the_folders_has_a_name(client, tmp_path, name):
    for asked in (name, str(tmp_path / name.lstrip("./"))):
        answer = client.get(f"{PREFIX}/inspect", params={"name": asked})
        assert answer.status_code == 404
        assert "\n" not in answer.json()["detail"]


def test_a_broken_file_is_one_line(client):
    answer = client.get(f"{PREFIX}/inspect", params={"name": "cut"})
    assert answer.status_code == 422
    assert "cut.safetensors" in answer.json()["detail"]


def test_encode_and_decode(client, backend):
    code, encoded = post(client, "/encode", image=png(), vae="a")
    assert code == 200
    # the tiny test VAE halves once: 30 x 20 pixels are 15 x 10 cells
    assert encoded["shape"] == [1, 4, 15, 10]
    code, decoded = post(client, "/decode", latent=encoded["latent"], vae="a.safetensors")
    assert code == 200
    assert (decoded["height"], decoded["width"]) == (30, 20)
    picture = Image.open(io.BytesIO(base64.b64decode(decoded["image"])))
    assert (picture.format, picture.size) == ("PNG", (20, 30))
    assert backend.computed == 2


def test_a_budget_of_memory_changes_how_it_is_run_and_not_what_comes_out(client, backend):
    _, encoded = post(client, "/encode", image=png(160, 96), vae="a")
    _, decoded = post(client, "/decode", latent=encoded["latent"], vae="a")
    assert (encoded["plan"], encoded["bands"], decoded["plan"], decoded["bands"]) == ("whole", 1, "whole", 1)
    backend.request = RunRequest(TilingSettings(memory_mb=1))
    _, tight = post(client, "/decode", latent=encoded["latent"], vae="a")
    assert tight["plan"] == "stream-lean"
    assert tight["bands"] > 1
    one, other = (np.asarray(Image.open(io.BytesIO(base64.b64decode(d["image"]))), int) for d in (decoded, tight))
    assert abs(one - other).max() <= 1
    assert post(client, "/encode", image=png(160, 96), vae="a")[1]["bands"] > 1


def test_a_browsers_data_address_is_understood(client):
    assert post(client, "/encode", image=f"data:image/png;base64,{png()}", vae="a")[0] == 200


def test_odd_sides_are_cropped_back(client):
    _, encoded = post(client, "/encode", image=png(31, 1), vae="a")
    _, decoded = post(client, "/decode", latent=encoded["latent"], vae="a")
    assert (decoded["height"], decoded["width"]) == (31, 1)


def test_sampling_depends_on_the_seed_only(client):
    def latent(**request):
        encoded = post(client, "/encode", image=png(), vae="a", **request)[1]["latent"]
        return load(base64.b64decode(encoded))["latent"]

    first, again, other = (latent(sample=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, latent())


@pytest.mark.parametrize(
    ("path", "request_", "part"),
    [
        ("/encode", {"image": "%%%", "vae": "a"}, "base64"),
        ("/encode", {"image": base64.b64encode(b"text").decode(), "vae": "a"}, "picture"),
        ("/encode", {"image": "", "vae": "a"}, "picture"),
        ("/encode", {"image": png(), "vae": "a", "family": "sd9"}, "sd9"),
        ("/encode", {"image": png(), "vae": "a", "family": "flux"}, "16"),
        ("/decode", {"latent": "AAAA", "vae": "a"}, "latent"),
        ("/decode", {"latent": png(), "vae": "a"}, "latent"),
    ],
)
def test_bad_requests_are_one_line(client, path, request_, part):
    code, answer = post(client, path, **request_)
    assert code == 422
    assert part in answer["detail"]
    assert "\n" not in answer["detail"]


def test_a_latent_of_another_family_is_refused(client):
    _, encoded = post(client, "/encode", image=png(), vae="a")
    code, answer = post(client, "/decode", latent=encoded["latent"], vae="b")
    assert code == 422
    assert "4" in answer["detail"]
    assert "16" in answer["detail"]


def test_missing_and_unknown_values_are_refused_by_type(client):
    assert post(client, "/encode", vae="a")[0] == 422
    assert post(client, "/encode", image=png(), vae="a", dtype="fp64")[0] == 422


def test_dependencies_guard_every_route(backend):
    def refuse():
        raise HTTPException(401)

    app = FastAPI()
    app.include_router(make_router(backend, [Depends(refuse)]))
    client = TestClient(app)
    for path in ("/list", "/status", "/inspect?name=a"):
        assert client.get(PREFIX + path).status_code == 401
    for path in ("/encode", "/decode"):
        assert client.post(PREFIX + path, json={}).status_code == 401


# --- what users read under /docs -------------------------------------------------------------------------------------


def is_sentences(text):
    """Whether a text is made of complete sentences: a capital letter or a quotation first, a full stop last."""
    return bool(re.match(r'["A-Z]', text)) and text.endswith(".") and "  " not in text and "\n" not in text


@pytest.fixture
def schema(backend):
    app = FastAPI()
    app.include_router(make_router(backend))
    return app.openapi()


def test_every_route_is_explained_in_sentences(schema):
    routes = [route for path in schema["paths"].values() for route in path.values()]
    assert len(routes) == 6
    for route in routes:
        assert re.fullmatch(r"[A-Z][\w ]+", route["summary"])
        assert all(is_sentences(" ".join(part.split())) for part in route["description"].split("\n\n"))
        assert all(is_sentences(parameter["description"]) for parameter in route.get("parameters", []))
        refusals = {code: answer for code, answer in route["responses"].items() if code != "200"}
        assert all(is_sentences(answer["description"]) for answer in refusals.values())
    assert {"404", "422"} <= schema["paths"][f"{PREFIX}/encode"]["post"]["responses"].keys()


def test_every_model_and_field_is_explained_in_sentences(schema):
    models = schema["components"]["schemas"]
    assert {"VaeList", "ActiveVae", "InspectedVae", "EncodeRequest", "Encoded", "Decoded", "Forgotten"} <= models.keys()
    for name, model in models.items():
        if name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own
            continue
        assert is_sentences(model["description"]), name
        for field, facts in model["properties"].items():
            assert is_sentences(facts.get("description", "")), f"{name}.{field}"


def test_lengths_say_their_unit(schema):
    models = schema["components"]["schemas"]
    told = {name: models[name]["properties"] for name in ("VaeItem", "Decoded", "ActiveVae")}
    assert "bytes" in told["VaeItem"]["size"]["description"]
    assert all("pixels" in told["Decoded"][side]["description"] for side in ("height", "width"))
    assert all("MiB" in told["ActiveVae"][f"last_{what}"]["description"] for what in ("encode", "decode"))


def test_a_text_that_is_no_sentence_is_found():
    assert not is_sentences("bytes")
    assert not is_sentences("The size in bytes")
    assert is_sentences("The size in bytes.")
