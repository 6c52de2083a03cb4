"""The package, its fakes and its tables beside the names that were recorded of the real web UIs."""

from importlib import import_module

import pytest
from fake_a1111 import FakeA1111
from fake_forge import FakeForge
from fake_neo import FakeNeo
from fake_previews import add_previews
from fake_sdnext import FakeSdNext
from recorded_names import differences
from test_reforge_host import FakeReforge

from tools.host_names import PROGRAMS, Recording, missing, program
from tools.host_uses import Use, own_files, uses_in

FAKES = [
    (FakeA1111, "a1111", True),
    (FakeForge, "forge", True),
    (FakeNeo, "neo", True),
    (FakeSdNext, "sdnext", False),
    (FakeReforge, "reforge", True),
]

TABLES = {
    "a1111": ("a1111", "A1111_NAMES"),
    "forge": ("forge", "FORGE_NAMES"),
    "neo": ("forge", "NEO_NAMES"),
    "sdnext": ("sdnext", "SDNEXT_NAMES"),
    "reforge": ("a1111", "REFORGE_NAMES"),
    "classic": ("a1111", "REFORGE_NAMES"),
}
# What a program lacks of the names that are used in files behind its host, and what comes of it.  Names of features
# that it does not have at all (`sd_vae_kit/hosts/*/names.py`) do not stand here.
A1111_ALONE = "of A1111's own loading, which Forge's takes the place of"
OTHERS_PREVIEWS = "of TAESD and previews, which are left to SD.Next: its table names neither"
LACKING = {
    "neo": {
        "modules.sd_vae.VaeResolution": A1111_ALONE,
        "modules.sd_vae.clear_loaded_vae": A1111_ALONE,
        "modules.sd_vae.load_vae": A1111_ALONE,
        "modules.sd_vae.load_vae_dict": A1111_ALONE,
        "modules.sd_vae.resolve_vae": A1111_ALONE,
        "modules.sd_vae.find_vae_near_checkpoint": A1111_ALONE,
        "modules.sd_vae.unspecified": A1111_ALONE,
        "modules.shared.cmd_opts.vae_dir": "there are no further folders of VAEs but those of --vae-dirs",
        "modules.shared.cmd_opts.vae_path": "no VAE is forced",
        "modules.shared.opts.add_vae_hash_to_info": "the hash is always written",
        "modules.shared.opts.add_vae_name_to_info": "the name is always written",
    },
    "sdnext": {
        "modules.processing.StableDiffusionProcessing.sample": "a job is stopped at its beginning only, by `init`",
        "modules.processing.StableDiffusionProcessing.sd_vae_hash": "the hash does not stand in pictures",
        "modules.processing.StableDiffusionProcessing.sd_vae_name": "it names the VAE by sd_vae.loaded_vae_file",
        "modules.scripts.Script.after_component": "a hook that scripts may have without a base",
        "modules.scripts.Script.process_before_every_sampling": "passes of a job are not told apart",
        "modules.sd_samplers_common.images_tensor_to_samples": OTHERS_PREVIEWS,
        "modules.sd_vae_approx": OTHERS_PREVIEWS,
        "modules.sd_vae_approx.model": OTHERS_PREVIEWS,
        "modules.sd_vae_taesd": OTHERS_PREVIEWS,
        "modules.shared.cmd_opts.freeze_settings": "its flag is --freeze: rules can be changed all the same",
        "modules.shared.cmd_opts.nowebui": "the API is there with --api, as it is by itself",
        "modules.shared.opts.live_previews_enable": OTHERS_PREVIEWS,
        "modules.shared.opts.sd_vae_decode_method": OTHERS_PREVIEWS,
        "modules.shared.opts.sd_vae_encode_method": OTHERS_PREVIEWS,
        "modules.shared.opts.show_progress_grid": OTHERS_PREVIEWS,
    },
    "classic": {
        "modules.lowvram": "asked for before: the API computes where the program does",
        "modules.lowvram.is_enabled": "asked for before: the API computes where the program does",
    },
}


def recording_of(key):
    return Recording.load(program(key).file)


# --- the fakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fake", "key", "previews"), FAKES, ids=lambda item: getattr(item, "__name__", str(item)))
def test_a_fake_has_nothing_that_the_program_lacks(fake, key, previews, tmp_path):
    built = fake(tmp_path)
    found = list(differences(built, recording_of(key)))
    if previews:
        found += differences(add_previews(built), recording_of(key))
    assert not found, "\n".join(found)
    assert len(built.modules) > 10


def test_a_fake_with_a_name_too_many_is_found(tmp_path):
    fake = FakeA1111(tmp_path)
    fake.sd_vae.restore_vae_weights = lambda: None
    fake.sd_vae.load_vae = lambda model, file=None: None
    fake.shared.opts.data_labels["sd_vae_of_another"] = fake.shared.OptionInfo(0)
    fake.shared.cmd_opts.vae_dirs = []
    fake._module("modules.modeldata")
    type(fake.shared.state).finished = lambda self: None
    assert sorted(differences(fake, recording_of("a1111"))) == [
        "A1111 has no flag vae_dirs",
        "A1111 has no module modules.modeldata",
        "A1111 has no modules.sd_vae.restore_vae_weights",
        "A1111 has no modules.shared.state.finished",
        "A1111 has no option sd_vae_of_another",
        "modules.sd_vae.load_vae takes (model, file=) in the fake and (model, vae_file=, vae_source=) in A1111",
    ]


# --- what the package uses ------------------------------------------------------------------------------------------


def table_of(key):
    """The names that a host is checked for at its start."""
    room, name = TABLES[key]
    return getattr(import_module(f"sd_vae_kit.hosts.{room}.names"), name)


def switched_off(key):
    """Names that are used for features which a host does not have, and those that it is asked for at its start."""
    features = {name.feature for name in table_of(key)}
    others = {name for other in TABLES for name in table_of(other) if name.feature not in features}
    return {str(name) for name in {*others, *table_of(key)}}


@pytest.mark.parametrize("item", PROGRAMS, ids=lambda item: item.key)
def test_every_name_that_is_used_is_there_or_its_feature_is_off(item):
    uses = [use for use in item.uses() if not use.is_question]
    off = switched_off(item.key) | set(LACKING.get(item.key, ()))
    wrong = [use for use in missing(recording_of(item.key), uses) if use.name not in off]
    lines = [f"{use.file}:{use.line}: {item.name} has no {use.name}" for use in wrong]
    assert not lines, "\n".join(lines)
    assert len(uses) > 100


@pytest.mark.parametrize("item", PROGRAMS, ids=lambda item: item.key)
def test_what_is_listed_as_lacking_is_used_and_lacks(item):
    found = {use.name for use in missing(recording_of(item.key), item.uses())}
    assert set(LACKING.get(item.key, ())) <= found


@pytest.mark.parametrize("item", PROGRAMS, ids=lambda item: item.key)
def test_a_hosts_table_names_what_the_program_has(item):
    recording = recording_of(item.key)
    table = table_of(item.key)
    lacking = [f"{name} ({name.feature})" for name in table if not recording.has(name.module, name.attribute)]
    assert not lacking, f"{item.name} has none of these, so the feature is never on: {', '.join(lacking)}"
    assert table


def test_what_is_asked_for_exists_somewhere():
    recordings = [Recording.load(item.file) for item in PROGRAMS]
    questions = {use for path in own_files() for use in uses_in(path) if use.is_question}
    assert questions
    for use in questions:
        assert any(recording.has(use.module, use.attribute) for recording in recordings), use


def test_a_name_that_no_program_has_is_found():
    use = Use("modules.sd_vae", "loaded_vae_fil", "ours.py", 1)
    assert all(missing(Recording.load(item.file), [use]) == [use] for item in PROGRAMS)
