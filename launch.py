"""Start VAE Kit: makes `.venv` beside this file, installs the locked requirements once, then hands over.

    python launch.py [options]           the app (options: python launch.py --help)
    python launch.py cli COMMAND ...     the command line: inspect, encode, decode, convert, compare, plan
    python launch.py test                ruff check, ruff format --check, mypy, pytest
    python launch.py test ARGS           only pytest, with these arguments
    python launch.py test --ci [ARGS]    all four, and pytest's slowest tests
    python launch.py test --matrix       the pages on every gradio that web UIs ship, core on a named web UI's torch
    python launch.py test --hosts        what has changed in the web UIs that are installed here and named
    python launch.py bench ...           side-by-side measurements

Standard library only.  It must still parse on Pythons too old to run it, so that they get a line, not a traceback.
What it says goes to stderr, pip's output too, so that `cli ... --json` prints its one object even on the first start.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

OLDEST, NEWEST = (3, 10), (3, 14)  # newest: the pinned torch and numpy have builds up to here
USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

# Exact versions, as pip reads them; pyproject.toml has the ranges that the package itself asks for.
APP_LOCK = "requirements.lock"
LOCKS = {"test": "requirements-test.lock"}  # by extra, installed beside the app's

# `python -I -m sd_vae_kit` would not find the package, and without -I a stray torch.py in the user's folder would be
# imported instead of torch.
RUN_MODULE = """
import runpy, sys
folder, module, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, folder)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class LaunchError(Exception):
    """The message is one line for the user."""


@dataclass(frozen=True)
class Environment:
    """The virtual environment beside launch.py.

    Attributes:
        root: Folder of launch.py and the lock files.
    """

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """Written after an install that succeeded: which requirements, on which interpreter."""
        return self.folder / "vae-kit-installed.json"

    @property
    def unfinished(self) -> Path:
        """Exists while pip runs; if it is found at a start, pip was killed and may have left half a package."""
        return self.folder / "vae-kit-installing"

    def locks(self, extras: Iterable[str]) -> list[Path]:
        """The lock files that `extras` need, the app's own first."""
        return [self.root / name for name in (APP_LOCK, *(LOCKS[extra] for extra in extras))]


# --- what is wrong before anything is tried -------------------------------------------------------------------------


def unsupported() -> str:
    """Why this Python cannot run VAE Kit, in one line; empty if it can."""
    version = tuple(sys.version_info[:2])
    bits = struct.calcsize("P") * 8
    if not OLDEST <= version <= NEWEST or sys.implementation.name != "cpython" or bits != 64:
        return (
            f"VAE Kit needs 64-bit CPython {_dotted(OLDEST)} to {_dotted(NEWEST)}; this is {bits}-bit "
            f"{platform.python_implementation()} {platform.python_version()} ({sys.executable}). "
            f"Install a supported one and start launch.py with it."
        )
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "VAE Kit needs PyTorch 2.13, which has no builds for Intel Macs; use it inside a web UI there."
    return ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# --- environment ----------------------------------------------------------------------------------------------------


def requirements(locks: Iterable[Path]) -> list[str]:
    """The lines of lock files that name a requirement, without comments.

    The launcher counts them and makes the stamp from them; pip reads the files itself.

    Raises:
        LaunchError: A lock file cannot be read.
    """
    found: list[str] = []
    for lock in locks:
        try:
            lines = lock.read_text("utf-8").splitlines()
        except OSError as error:
            raise LaunchError(f"Cannot read {lock} ({error.strerror}); is this a complete copy?") from error
        found += [text for text in (line.split("#")[0].strip() for line in lines) if text]
    return found


def interpreter(environment: Environment) -> str:
    """What the environment runs on; changes when the Python below it is replaced by another."""
    try:
        config = (environment.folder / "pyvenv.cfg").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{environment.python.resolve()}\n{config}"


def fingerprint(environment: Environment) -> str:
    lines = [*requirements(environment.locks(LOCKS)), interpreter(environment)]
    text = "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()


def installed_extras(environment: Environment) -> list[str] | None:
    """Extras of the last complete install; None where there is none for these requirements and this interpreter."""
    try:
        stamp = json.loads(environment.stamp.read_text("utf-8"))
        complete = stamp["fingerprint"] == fingerprint(environment) and environment.python.exists()
        return list(stamp["extras"]) if complete else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(environment: Environment, extras: list[str]) -> None:
    """Make the environment usable; returns at once if the last install was complete and fits.

    Raises:
        LaunchError: No environment could be made, or pip failed.
    """
    present = installed_extras(environment)
    if present is not None and set(extras) <= set(present):
        return
    if environment.unfinished.exists() or not has_pip(environment):
        make_environment(environment)
    wanted = sorted({*extras, *(present or [])})
    install(environment, wanted)
    record(environment, wanted)


def has_pip(environment: Environment) -> bool:
    """Whether the environment's interpreter starts and has pip; false for one left half-made."""
    if not interpreter(environment) or not environment.python.exists():
        return False
    try:
        probe = [str(environment.python), "-I", "-c", "import pip"]
        return subprocess.run(probe, env=clean_environ(), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_environment(environment: Environment) -> None:
    if Path(sys.prefix).resolve() == environment.folder.resolve():
        raise LaunchError(f"{environment.folder} is damaged and in use by this very Python; start with another Python.")
    say(f"Making {environment.folder} with Python {platform.python_version()} ...")
    command = [sys.executable, "-I", "-m", "venv", "--clear", str(environment.folder)]
    made = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, errors="replace", check=False)
    if made.returncode:
        raise LaunchError(f"Could not make {environment.folder}: {_why(made.stderr + made.stdout)}")


def _why(output: str) -> str:
    """One line from what `python -m venv` said, which Debian makes seven lines where a package is missing."""
    if "ensurepip" in output or "No module named venv" in output:
        package = f"python{_dotted(tuple(sys.version_info[:2]))}-venv"
        return f"this Python cannot make environments with pip; on Debian and Ubuntu: apt install {package}."
    lines = output.strip().splitlines() or ["no reason was given"]
    return f"{lines[-1].rstrip('.')}."


def install(environment: Environment, extras: list[str]) -> None:
    locks = environment.locks(extras)
    names = {re.split(r"[^\w.-]", line)[0] for line in requirements(locks)}
    if not names:
        return
    say(f"Installing {len(names)} requirements, once; PyTorch is large, this can take minutes ...")
    environment.stamp.unlink(missing_ok=True)
    environment.unfinished.touch()
    pip = [str(environment.python), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    files = [word for lock in locks for word in ("-r", str(lock))]
    code = wait_for([*pip, *files], clean_environ(), stdout=sys.stderr)
    environment.unfinished.unlink(missing_ok=True)  # pip ended by itself: it has undone what it could not finish
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise LaunchError(
            f"pip failed with exit code {code}, its reason is above. The first start needs the package index once; "
            "when it can be reached, run the same command again."
        )


def record(environment: Environment, extras: list[str]) -> None:
    stamp = json.dumps({"fingerprint": fingerprint(environment), "extras": extras})
    part = environment.stamp.with_suffix(".part")
    part.write_text(stamp, "utf-8")
    part.replace(environment.stamp)


def clean_environ() -> dict[str, str]:
    """This process's variables without those that make a Python look for packages or install elsewhere."""
    elsewhere = {"PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX"}
    return {**{name: value for name, value in os.environ.items() if name not in elsewhere}, "PIP_USER": "0"}


# --- handing over ---------------------------------------------------------------------------------------------------


def module_command(environment: Environment, module: str, arguments: list[str]) -> list[str]:
    """Command that runs a module of this folder, wherever the user is and whatever lies there."""
    return [str(environment.python), "-I", "-c", RUN_MODULE, str(environment.root), module, *arguments]


def hand_over(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Become `command`: its exit code and the signals sent to this process are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, environ)
    sys.exit(wait_for(command, environ))  # exec on Windows returns to the console at once


def wait_for(
    command: list[str], environ: dict[str, str], folder: Path | None = None, stdout: TextIO | None = None
) -> int:
    """Run `command` and return its exit code, or 130 if Ctrl-C ended it.

    The terminal sends Ctrl-C to both processes; it is left to the other to end in its own time.
    """
    interrupted = False
    with subprocess.Popen(command, env=environ, cwd=folder, stdout=stdout) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
    if interrupted and code:
        return INTERRUPTED
    return 128 - code if code < 0 else code  # killed by a signal: as a shell reports it


def reproducible_environ() -> dict[str, str]:
    """For tests and measurements: oneDNN's AMX kernels round fp32 to bf16, and only some machines have them."""
    return {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", **clean_environ()}


# --- commands -------------------------------------------------------------------------------------------------------


def run_app(environment: Environment, arguments: list[str]) -> NoReturn:
    prepare(environment, [])
    hand_over(module_command(environment, "sd_vae_kit", arguments), clean_environ())


def run_cli(environment: Environment, arguments: list[str]) -> NoReturn:
    prepare(environment, [])
    hand_over(module_command(environment, "sd_vae_kit.cli", arguments), clean_environ())


def run_bench(environment: Environment, arguments: list[str]) -> NoReturn:
    if not (environment.root / "bench" / "__main__.py").is_file():
        raise LaunchError(f"There is no bench/__main__.py in {environment.root}; this copy has no measurements to run.")
    prepare(environment, ["test"])
    hand_over(module_command(environment, "bench", arguments), reproducible_environ())


def run_tests(environment: Environment, arguments: list[str]) -> int:
    """Run the checks, all of them even after a failure, and return the first failure's exit code."""
    if "--matrix" in arguments:
        return run_matrix(environment, [argument for argument in arguments if argument != "--matrix"])
    if "--hosts" in arguments:
        return compare_hosts(environment, [argument for argument in arguments if argument != "--hosts"])
    ci = "--ci" in arguments
    arguments = [argument for argument in arguments if argument != "--ci"]
    prepare(environment, ["test"])
    checks = [] if arguments and not ci else [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]]
    checks.append(["pytest", *(["--durations=10"] if ci else []), *arguments])
    failed: dict[str, int] = {}
    for check in checks:
        say(f"$ {' '.join(check)}")
        code = wait_for([str(environment.python), "-I", "-m", *check], reproducible_environ(), environment.root)
        if code == INTERRUPTED:
            return code
        if code:
            failed[" ".join(check[:2])] = code
    if failed:
        say(f"Failed: {', '.join(failed)}")
    return next(iter(failed.values()), 0)


def run_matrix(environment: Environment, arguments: list[str]) -> int:
    prepare(environment, ["test"])
    matrix = environment.root / "tools" / "matrix.py"
    return wait_for([str(environment.python), "-I", str(matrix), *arguments], reproducible_environ(), environment.root)


def compare_hosts(environment: Environment, arguments: list[str]) -> int:
    """Only reads files, so that it needs no packages and runs on this Python."""
    command = [sys.executable, "-I", "-c", RUN_MODULE, str(environment.root), "tools.host_names", *arguments]
    return wait_for(command, clean_environ(), environment.root)


COMMANDS = {"cli": run_cli, "test": run_tests, "bench": run_bench}


def main(arguments: list[str], root: Path) -> int:
    """Run what `arguments` ask for and return the exit code."""
    environment = Environment(root)
    problem = unsupported()
    if problem:
        say(problem)
        return USER_ERROR
    try:
        if arguments[:1] in (["-h"], ["--help"]):
            print(__doc__)
            if installed_extras(environment) is None:  # nothing is installed for a question
                return 0
        command = COMMANDS.get(arguments[0]) if arguments else None
        if command is None:
            run_app(environment, arguments)
        return command(environment, arguments[1:])
    except LaunchError as error:
        say(str(error))
        return FAILURE
    except OSError as error:
        say(f"Cannot use {error.filename or environment.folder}: {error.strerror}.")
        return FAILURE
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        return INTERRUPTED


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
