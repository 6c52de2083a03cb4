"""Command-line flags.  The host loads this before its own modules and without our folder on the path: stdlib only."""

from __future__ import annotations

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Add the flags to the host's parser; they end up in `shared.cmd_opts`."""
    parser.add_argument(
        "--vae-kit-disable", action="store_true", help="VAE Kit: leave the host exactly as it is without the extension"
    )
    parser.add_argument("--vae-kit-offline", action="store_true", help="VAE Kit: never download anything")
    parser.add_argument(
        "--vae-kit-dir",
        metavar="FOLDER",
        default=None,
        help="VAE Kit: folder for what it remembers, such as hashes of VAE files (default: vae-kit beside models)",
    )
