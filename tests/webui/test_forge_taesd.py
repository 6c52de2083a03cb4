"""TAESD and live previews in Forge, with real weights.  Needs VAE_KIT_FORGE_DIR and VAE_KIT_TEST_WEIGHTS."""

import pytest
from programs import FORGE
from taesd_rows import TaesdRows

pytestmark = pytest.mark.webui


class TestTaesdInForge(TaesdRows):
    program = FORGE
    steps = 20
    hires = {"hr_additional_modules": ["Use same choices"]}
