"""The package, its fakes and its tables beside the names that were recorded of the real web UIs."""

import pytest
from fake_a1111 import FakeA1111
from fake_forge import FakeForge
from fake_previews import add_previews
from fake_sdnext import FakeSdNext
from recorded_names import differences
from test_reforge_host import FakeReforge

from tools.host_names import PROGRAMS, Recording

BY_KEY = {program.key: program for program in PROGRAMS}
FAKES = [
    (FakeA1111, "a1111", True),
    (FakeForge, "forge", True),
    (FakeSdNext, "sdnext", False),
    (FakeReforge, "reforge", True),
]


def recording_of(key):
    return Recording.load(BY_KEY[key].file)


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
