"""What every web UI must do, in Forge Classic.  Needs VAE_KIT_CLASSIC_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import CLASSIC

pytestmark = pytest.mark.webui


class TestEveryRowInClassic(EveryProgramRows):
    program = CLASSIC
