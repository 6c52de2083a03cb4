"""What version 0.1 wrote is still read: the files in written_by_0_1 are its own, byte for byte."""

import shutil
from pathlib import Path

import pytest

from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.state.json_store import JsonStore
from sd_vae_kit.vaes.finding import FINDINGS, Finding
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.library_cache import Cache, Facts, Identity, Stamp
from sd_vae_kit.vaes.rules import Rule, RulesFile

OLD = Path(__file__).with_name("written_by_0_1")


@pytest.fixture
def old(tmp_path, caplog):
    """A copy of an old file; reading it must give no warning."""

    def copied(name):
        return Path(shutil.copy(OLD / name, tmp_path))

    yield copied
    assert not caplog.records


def test_what_vaes_needed(old):
    kept = PrecisionFixesFile(old("vae_precision.json"))
    assert kept.count == 2
    assert kept.get("ab" * 16, "decoder") == PrecisionFixes({"decoder.conv_in": 4}, {"decoder.mid.attn_1"}, "")
    assert kept.get("cd" * 16, "encoder") == PrecisionFixes({}, set(), "fp32")


def test_the_history(old):
    assert History(old("history.json")).checkpoints_of(Path("/vaes/a.safetensors"), None) == ("modèle one",)


def test_the_librarys_cache(old):
    record = Cache(old("library.json")).find(Path("/vaes/ä.safetensors"), Stamp(1234, 1700000000123456789))
    assert record is not None
    assert record.facts == Facts("ok", "", "kl", "both", "ldm", "sd1|sdxl", 4, "fp16")
    assert record.sha256 == "ab" * 32
    assert record.identity == Identity("cd" * 32, (0.5, -2.0, 0.25))


def test_the_guards_findings(old):
    found = JsonStore(old("families.json"), FINDINGS).value
    assert found["/|9|8|111"] == Finding("sdxl", "behaviour")


def test_the_rules(old):
    assert RulesFile(old("vae_rules.json")).rules == (Rule("a.safetensors", family="sdxl", runs=("hires",)),)


def test_the_settings(old):
    store = SettingsStore(old("settings.json"))
    assert store.warnings == []
    assert store.settings.saving.folder == "Bilder"
    assert store.settings.vae.decode_method == "TAESD"
    assert store.settings.download.http == "loopback"
