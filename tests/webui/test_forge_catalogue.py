"""The tab "VAE Kit" inside Forge: the same rows as in A1111."""

import pytest
from catalogue_rows import CatalogueTab
from programs import FORGE
from safetensors.torch import save
from vae_variants import changed, forge_vaes, smallest_checkpoint

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def content():
    state = changed(dict(read_vae(smallest_checkpoint(FORGE.folder())).state), 9)
    return save({name: tensor.half() for name, tensor in state.items()})


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    return forge_vaes(tmp_path_factory.mktemp("vaes"), FORGE.folder())


class TestCatalogueTab(CatalogueTab):
    program = FORGE
    plain = "a.safetensors"
    shots = "forge"

    @classmethod
    def flags(cls):
        # with a data folder elsewhere Forge serves its own script.js only from a folder that is allowed by name
        return (f"--gradio-allowed-path={FORGE.folder()}",)
