"""What every web UI must do, in Forge Neo.  Needs VAE_KIT_NEO_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import NEO

pytestmark = pytest.mark.webui


class TestEveryRowInNeo(EveryProgramRows):
    program = NEO
