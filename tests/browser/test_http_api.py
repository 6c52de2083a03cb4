"""The HTTP API on the stand-alone app, asked as a client would."""

import base64
import io

import pytest
import requests
from browser_app import running_app
from PIL import Image

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("data")) as address:
        yield f"{address}vae-kit/v1"


def test_the_app_answers_under_the_same_address_as_its_pages(base):
    status = requests.get(f"{base}/status", timeout=60).json()
    assert status["host"] == "VAE Kit"
    assert "checkpoint" in status["reason"]
    names = [item["name"] for item in requests.get(f"{base}/list", timeout=60).json()["vaes"]]
    assert "demo_vivid.safetensors" in names

    file = io.BytesIO()
    Image.new("RGB", (40, 24), (200, 60, 20)).save(file, "PNG")
    body = {"image": base64.b64encode(file.getvalue()).decode(), "vae": "demo_natural.safetensors"}
    encoded = requests.post(f"{base}/encode", json=body, timeout=120).json()
    assert encoded["shape"] == [1, 4, 3, 5]
    body = {"latent": encoded["latent"], "vae": "demo_natural.safetensors"}
    decoded = requests.post(f"{base}/decode", json=body, timeout=120).json()
    with Image.open(io.BytesIO(base64.b64decode(decoded["image"]))) as picture:
        assert picture.size == (40, 24)
        red, green, blue = picture.resize((1, 1)).getpixel((0, 0))
    assert red > green > blue


@pytest.mark.parametrize("name", ["../settings.json", "/etc/passwd", "..\\..\\settings.json"])
def test_no_path_outside_the_folders_is_read(base, name):
    answer = requests.get(f"{base}/inspect", params={"name": name}, timeout=60)
    assert answer.status_code == 404
    assert "there is no VAE" in answer.json()["detail"]
