"""`download` against a local server, and the list."""

import hashlib
import json
import random

import fault_server as faults
import pytest
from fault_server import FaultServer

from sd_vae_kit.cli import main
from sd_vae_kit.vaes.catalogue import DATA

CONTENT = random.Random(3).randbytes(50_000)


@pytest.fixture
def data(tmp_path):
    """An app folder whose own catalogue has entries on a local server."""
    with FaultServer(CONTENT) as server:
        entry = {
            **json.loads(DATA.read_text("utf-8"))["entries"][0],
            "mirrors": [],
            "aliases": [],
            "size": len(CONTENT),
        }
        good = {**entry, "name": "Good", "file": "good.safetensors", "url": server.address("good", faults.serve)}
        good["sha256"] = hashlib.sha256(CONTENT).hexdigest()
        bad = {**entry, "name": "Bad", "file": "bad.safetensors", "url": server.address("bad", faults.body(CONTENT))}
        blind = {**good, "name": "Blind", "file": "blind.safetensors", "sha256": None, "verified": 0}
        own = {"schema": 1, "standard": {}, "entries": [good, bad, blind]}
        (tmp_path / "catalogue.json").write_text(json.dumps(own), "utf-8")
        settings = {"vae_kit_download_http": "loopback", "vae_kit_download_proxy": "direct"}
        (tmp_path / "settings.json").write_text(json.dumps(settings), "utf-8")
        yield tmp_path


def call(capsys, *words):
    code = main(["download", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_known_vae_is_fetched_and_described(data, capsys):
    code, out, _ = call(capsys, "Good", "--data-dir", data, "--json")
    assert code == 0
    described = json.loads(out)
    assert (data / "models" / "VAE" / "good.safetensors").read_bytes() == CONTENT
    assert described["path"] == str(data / "models" / "VAE" / "good.safetensors")
    assert (described["verified"], described["size"], described["warnings"]) == (True, len(CONTENT), [])
    code, out, _ = call(capsys, "good.safetensors", "--data-dir", data)
    assert (code, "sha256" in out) == (0, True)


def test_a_folder_can_be_named(data, capsys, tmp_path):
    (tmp_path / "x").mkdir()
    assert call(capsys, hashlib.sha256(CONTENT).hexdigest()[:10], "--data-dir", data, "--dir", tmp_path / "x")[0] == 0
    assert (tmp_path / "x" / "good.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Bad"], "sent another bad.safetensors"),
        (["Blind"], "not installed without your consent: No hash is known"),
        (["Nothing at all"], "The catalogue has no 'Nothing at all'"),
        ([], "Name what to download, or add --list"),
        (["Good", "--list"], "--list takes no NAME"),
        (["Good", "--family", "sd1"], "--family belongs to --list"),
        (["Good", "--dir", "/nowhere/at/all"], "does not exist"),
        (["--list", "--family", "sd15"], "no family 'sd15'"),
        (["Wan 2.1 VAE"], "only recognised, not run"),
        (["ClearVAE 1.0"], "No address is known for ClearVAE 1.0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(data, capsys, words, message):
    code, out, err = call(capsys, *words, "--data-dir", data, "--json")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(data.glob("models/**/*.safetensors"))


def test_with_consent_an_unverified_file_is_fetched_with_a_warning(data, capsys):
    code, out, _ = call(capsys, "Blind", "--accept", "--data-dir", data, "--json")
    described = json.loads(out)
    assert (code, described["verified"]) == (0, False)
    assert described["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert "No hash is known" in described["warnings"][0]


def test_the_list_shows_every_entry_and_can_be_narrowed(tmp_path, capsys):
    code, out, _ = call(capsys, "--list", "--data-dir", tmp_path, "--json")
    entries = json.loads(out)["entries"]
    assert (code, len(entries)) == (0, 94)
    code, out, _ = call(capsys, "--list", "--family", "sdxl", "--data-dir", tmp_path)
    assert code == 0
    assert all(line[2:6] == "sdxl" for line in out.splitlines())
    assert "overflows fp16" in out
