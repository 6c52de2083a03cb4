"""`python -m sd_vae_kit`: the command line if the first word is a command, else the app."""

from __future__ import annotations

import sys


def main(argv: list[str]) -> int:
    """Run a command or the app.

    The first word decides: options belong to the app, any other word is a command; `app` says it outright.
    """
    first = argv[0] if argv else "app"
    if first in ("-h", "--help"):
        return show_help()
    if first == "app" or (first.startswith("-") and first != "--version"):
        from sd_vae_kit.standalone import app

        return app.main(argv[1:] if first == "app" else argv)
    from sd_vae_kit.cli.program import run

    return run(argv)


def console() -> int:
    """Run the installed command `vae-kit`, which without a word says what there is instead of opening the app."""
    return main(sys.argv[1:]) if len(sys.argv) > 1 else show_help()


def show_help() -> int:
    """The commands, then the app's options."""
    from sd_vae_kit.cli.program import run
    from sd_vae_kit.standalone import app

    run(["--help"])
    print("\nThe app:\n", flush=True)
    return app.main(["--help"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
