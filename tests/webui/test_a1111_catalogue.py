"""The tab "VAE Kit" inside A1111: list, install, verify, rules, a pasted picture's missing VAE."""

import pytest
from catalogue_rows import CatalogueTab
from pages import HOSTS_OWN
from programs import A1111
from safetensors.torch import save
from vae_variants import changed, smallest_checkpoint, write_variants

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def checkpoint():
    return smallest_checkpoint(A1111.folder())


@pytest.fixture(scope="module")
def content(checkpoint):
    return save(changed(dict(read_vae(checkpoint).state), 9))


@pytest.fixture(scope="module")
def vaes(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("vaes")
    write_variants(folder, checkpoint)
    return folder


class TestCatalogueTab(CatalogueTab):
    program = A1111
    shots = "a1111"
    own_error = HOSTS_OWN
