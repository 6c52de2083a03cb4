"""The precision guard in Forge, which does not look for NaN itself: NaN is named, fp32 and bf16 runs.

Needs VAE_KIT_FORGE_DIR; see installation.py.
"""

import pytest
from precision_rows import PrecisionRows
from programs import FORGE

pytestmark = pytest.mark.webui


class TestPrecisionInForge(PrecisionRows):
    program = FORGE
    left_alone = (200,)  # black, without a word
