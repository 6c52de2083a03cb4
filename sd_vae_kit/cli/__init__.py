"""The command line: `inspect`, `encode`, `decode`, `convert`, `compare`, `download`, `plan`.

Every command prints its result on stdout, with `--json` as one object; exit code 0.  A user's error is one line on
stderr; exit code 2.  Ctrl-C: 130.  What a command computes with is imported when it runs, so that `--help` and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.options import UsageError, make_parser
from sd_vae_kit.errors import Interrupted, VaeKitError

USER_ERROR, INTERRUPTED = 2, 130


def _inspect(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.inspect_vae import run

    return run(options)


def _encode(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.encode_decode import run_encode

    return run_encode(options)


def _decode(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.encode_decode import run_decode

    return run_decode(options)


def _convert(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.convert_vae import run

    return run(options)


def _compare(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.compare_vaes import run

    return run(options)


def _download(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.download_vae import run

    return run(options)


def _plan(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.plan_memory import run

    return run(options)


def _forget(options: argparse.Namespace) -> CommandResult:
    from sd_vae_kit.cli.forget import run

    return run(options)


COMMANDS: dict[str, Callable[[argparse.Namespace], CommandResult]] = {
    "inspect": _inspect,
    "encode": _encode,
    "decode": _decode,
    "convert": _convert,
    "compare": _compare,
    "download": _download,
    "plan": _plan,
    "forget": _forget,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, default `sys.argv[1:]`."""
    try:
        options = make_parser().parse_args(argv)
        outcome = COMMANDS[options.command](options)
    except SystemExit as stop:  # --help and --version have printed what they had to
        return int(stop.code or 0)
    except (KeyboardInterrupt, Interrupted):
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, VaeKitError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}; name another.")
    except MemoryError:
        return _failed("There is not enough memory for this; use a smaller picture or a smaller VAE.")
    _show(outcome, as_json=options.json)
    return 0


def _failed(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return USER_ERROR


def _show(outcome: CommandResult, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.data))  # ASCII: a console's encoding cannot spoil it
        return
    for warning in outcome.warnings:
        print("warning:", warning, file=sys.stderr)
    print(
        "\n".join(outcome.lines)
        .encode(sys.stdout.encoding or "utf-8", "replace")
        .decode(sys.stdout.encoding or "utf-8")
    )
