"""What every web UI must do, in SD.Next.  Needs VAE_KIT_SDNEXT_DIR; see programs.py."""

import pytest
from every_program_rows import EveryProgramRows
from programs import SDNEXT

pytestmark = pytest.mark.webui


class TestEveryRowInSdNext(EveryProgramRows):
    program = SDNEXT
