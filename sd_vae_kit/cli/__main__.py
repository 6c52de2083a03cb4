"""`python -m sd_vae_kit.cli`: the command line alone; without a command it says which there are."""

import sys

from sd_vae_kit.cli.program import run

if __name__ == "__main__":
    sys.exit(run())
