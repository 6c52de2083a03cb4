"""What every web UI must do, in A1111.  Needs VAE_KIT_A1111_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import A1111

pytestmark = pytest.mark.webui


class TestEveryRowInA1111(EveryProgramRows):
    program = A1111
