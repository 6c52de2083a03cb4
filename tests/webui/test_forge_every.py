"""What every web UI must do, in Forge.  Needs VAE_KIT_FORGE_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import FORGE

pytestmark = pytest.mark.webui


class TestEveryRowInForge(EveryProgramRows):
    program = FORGE
