"""The command line as a program of its own, where stderr belongs to us."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from sd_vae_kit.cli import main


def run(argv: Sequence[str] | None = None) -> int:
    """`main`, with other packages' warnings kept off stderr, where scripts expect one line or none."""
    warnings.simplefilter("ignore")
    logging.getLogger("sd_vae_kit").addHandler(logging.NullHandler())
    try:
        code = main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
