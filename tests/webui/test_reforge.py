"""What every web UI must do, in reForge.  Needs VAE_KIT_REFORGE_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import REFORGE

pytestmark = pytest.mark.webui


class TestEveryRowInReforge(EveryProgramRows):
    program = REFORGE
