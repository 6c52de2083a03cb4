"""A name that a web UI lacks switches off one feature, with one line, and never the extension."""

import contextlib

import pytest
from fake_a1111 import FakeA1111, Job, Runner, installed
from fake_forge import FakeForge
from fake_neo import FakeNeo
from fake_previews import add_previews
from fake_sdnext import FakeSdNext
from test_reforge_host import FakeReforge

from sd_vae_kit.hosts.a1111.names import A1111_NAMES, REFORGE_NAMES
from sd_vae_kit.hosts.forge.names import FORGE_NAMES, NEO_NAMES
from sd_vae_kit.hosts.host_names import FEATURES, HostFeatures, HostName
from sd_vae_kit.hosts.sdnext.names import SDNEXT_NAMES
from tools.host_names import PROGRAMS, Recording

TABLES = {
    "a1111": A1111_NAMES,
    "reforge": REFORGE_NAMES,
    "classic": REFORGE_NAMES,
    "forge": FORGE_NAMES,
    "neo": NEO_NAMES,
    "sdnext": SDNEXT_NAMES,
}
FAKES = {
    "a1111": lambda folder: add_previews(FakeA1111(folder)),
    "reforge": lambda folder: add_previews(FakeReforge(folder)),
    "forge": lambda folder: add_previews(FakeForge(folder)),
    "neo": lambda folder: add_previews(FakeNeo(folder)),
    "sdnext": FakeSdNext,
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.key)
def test_a_table_holds_only_names_that_the_real_program_has(program):
    recording = Recording.load(program.file)
    table = TABLES[program.key]
    assert [str(name) for name in table if not recording.has(name.module, name.attribute)] == []
    assert len(table) > 5
    assert {name.feature for name in table} <= FEATURES.keys()


def built(said):
    """The host of this process; its lines go to `said`."""
    from sd_vae_kit.hosts import detect_host
    from sd_vae_kit.hosts.messages import Outlet

    host = detect_host(Outlet(lambda message, level: said.append(message), said.append, RuntimeError))
    host.install()
    return host


@contextlib.contextmanager
def without(fake, name):
    """The fake while it lacks one name, wherever in a module or a class that lies."""
    owner = fake.modules[name.module]
    *path, last = name.attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    places = [owner, *type(owner).__mro__] if not isinstance(owner, type) else owner.__mro__
    holders = [place for place in places if last in vars(place)]
    assert holders, name
    values = [vars(holder)[last] for holder in holders]
    for holder in holders:
        delattr(holder, last)
    try:
        yield
    finally:
        for holder, value in zip(holders, values, strict=True):
            setattr(holder, last, value)


def used(host, fake):
    """Everything that a job and a page ask for."""
    p = Job(scripts=Runner([], []))
    host.page.install()
    host.page.declare_sd_vae(dict)
    host.model_loaded(fake.shared.sd_model)
    host.refresh()
    host.jobs.use("plain.safetensors")
    host.infotext.write(p)
    if host.taesd is not None:
        host.taesd.begin_job(p)
        host.taesd.correct_infotext(p)
    host.jobs.end()
    host.report.status()
    host.api.api_status()
    host.base.options.save_defaults_of(["sd_vae"])
    assert host.names.choices()


@pytest.mark.parametrize("key", FAKES)
def test_each_name_that_is_missing_switches_off_its_own_feature_with_one_line(key, tmp_path, monkeypatch):
    table, lacking = TABLES[key], []
    with installed(FAKES[key](tmp_path), monkeypatch) as fake:
        from sd_vae_kit.hosts import NEEDED

        said = []
        host = built(said)
        assert said == []
        assert all(host.base.options.features.has(name.feature) for name in table)
        fake.start() if key != "sdnext" else fake.sd_vae.refresh_vae_list()
        fake.forge_model_reload() if hasattr(fake, "forge_model_reload") else fake.load_model()
        used(host, fake)
        host.remove()
        needed = {str(name) for name in NEEDED}
        for name in dict.fromkeys(row for row in table if str(row) not in needed):
            with without(fake, name):
                said = []
                host = built(said)
                off = {row.feature for row in table if str(row) == str(name)}
                features = host.base.options.features
                assert {row.feature for row in table if not features.has(row.feature)} == off, name
                assert len([line for line in said if str(name) in line]) == len(off), name
                assert len(said) == len(off), (name, said)
                used(host, fake)
                host.remove()
                lacking.append(name)
        assert len(lacking) >= 8


def test_without_what_everything_needs_one_line_says_that_the_extension_is_off(tmp_path, monkeypatch):
    with installed(FAKES["a1111"](tmp_path), monkeypatch) as fake:
        from sd_vae_kit.hosts import NEEDED
        from sd_vae_kit.webui import callbacks, messages
        from sd_vae_kit.webui.running import running

        said = []
        monkeypatch.setattr(messages, "show_on_page", said.append)
        with without(fake, HostName("modules.paths", "data_path", "")):
            assert "modules.paths.data_path" in {str(name) for name in NEEDED}
            callbacks.register()
            assert running() is None
        assert said == ["This web UI has no modules.paths.data_path, so VAE Kit is switched off."]
        assert not any(fake.registered.values())


def test_a_feature_that_the_table_does_not_know_is_no_feature_of_that_web_ui(monkeypatch):
    here = HostName("os", "path.join", "loading")
    gone = HostName("os", "path.joined", "hashes")
    nowhere = HostName("no_such_module", "name", "hashes")
    features = HostFeatures([here, gone, nowhere])
    assert features.has("loading")
    assert not features.has("hashes")
    assert not features.has("names")
    assert list(features.lines()) == [
        "This web UI has no os.path.joined (and 1 more names), so VAE Kit leaves the VAE hash in pictures to it."
    ]
