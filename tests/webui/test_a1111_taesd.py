"""TAESD and live previews in A1111, with real weights.  Needs VAE_KIT_A1111_DIR and VAE_KIT_TEST_WEIGHTS."""

import pytest
from programs import A1111
from taesd_rows import TaesdRows

pytestmark = pytest.mark.webui


class TestTaesdInA1111(TaesdRows):
    program = A1111
    steps = 150
