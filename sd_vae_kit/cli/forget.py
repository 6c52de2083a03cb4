"""`forget`: what VAEs needed to stay finite in half precision is found out anew."""

from __future__ import annotations

import argparse

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.vae_choice import open_fixes
from sd_vae_kit.core.run.precision_fixes_file import forgotten_line


def run(options: argparse.Namespace) -> CommandResult:
    """Empty the file that the command line and the app keep; a web UI has one of its own, with a button for it."""
    count = open_fixes(options).forget()
    return CommandResult({"forgotten": count}, [forgotten_line(count)])
