"""The tests that must also pass on other programs' versions: `python launch.py test --matrix`.

Two kinds of row.  Every gradio that a web UI ships gets a small environment of its own without torch, in which the
tests of `sd_vae_kit/ui` run.  Every web UI that is named by `VAE_KIT_A1111_DIR` or `VAE_KIT_FORGE_DIR` lends its own
interpreter, torch and numpy to the tests of `sd_vae_kit/core`; pytest comes from a folder beside, nothing is
installed into the web UI.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST_TOOLS = ("pytest==8.4.2", "hypothesis==6.140.3")
# httpx and huggingface_hub without upper limits in old gradio's requirements have since dropped what it imports.
GRADIOS = {
    "gradio 3.41.2 (A1111, reForge, Forge Classic)": (
        "gradio==3.41.2", "pydantic==1.10.17", "fastapi==0.94.0", "starlette==0.26.1", "httpx==0.24.1", "anyio==3.7.1",
        "huggingface_hub==0.25.2", "python-multipart==0.0.9", "numpy==1.26.4", "pillow==9.5.0", "MarkupSafe==2.1.5",
    ),
    "gradio 4.40.0 (Forge, Neo)": (
        "gradio==4.40.0", "pydantic==2.8.2", "fastapi==0.104.1", "starlette==0.27.0", "httpx==0.24.1", "anyio==3.7.1",
        "huggingface_hub==0.25.2", "python-multipart==0.0.9", "numpy==1.26.4", "pillow==9.5.0", "MarkupSafe==2.1.5",
    ),
    "gradio 6.31.0 (stand-alone)": ("gradio==6.31.0", "pillow==12.3.0"),
}  # fmt: skip
HOSTS = {"A1111": "VAE_KIT_A1111_DIR", "Forge": "VAE_KIT_FORGE_DIR"}


@dataclass(frozen=True)
class Row:
    """One environment and the tests that run in it."""

    label: str
    python: Path
    tests: tuple[str, ...]
    environ: dict[str, str]


def run(*command: str | Path, environ: dict[str, str] | None = None) -> int:
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environ, check=False).returncode


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def once(folder: Path, requirements: tuple[str, ...], *commands: tuple[str | Path, ...]) -> bool:
    """Run the commands that fill `folder`, unless an earlier run did so for the same requirements."""
    stamp = folder / "vae-kit-matrix.txt"
    wanted = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return True
    if any(run(*command) for command in commands):
        return False
    stamp.write_text(wanted, "utf-8")
    return True


def gradio_rows() -> Iterator[Row]:
    for label, pins in GRADIOS.items():
        folder = ROOT / f".venv-{pins[0].replace('==', '-')}"
        requirements = (*pins, *TEST_TOOLS)
        pip = (python_of(folder), "-I", "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)
        if not once(folder, requirements, (sys.executable, "-m", "venv", "--clear", folder), pip):
            raise SystemExit(f"The environment for {label} could not be made; the reason is above.")
        yield Row(label, python_of(folder), ("tests/ui", "tests/standalone/pages"), dict(os.environ))


def host_rows() -> Iterator[Row]:
    for label, variable in HOSTS.items():
        if not os.environ.get(variable):
            print(f"{label}: not named by {variable}, skipped", flush=True)
            continue
        python = python_of(Path(os.environ[variable]) / "venv")
        folder = ROOT / f".venv-tools-{label.lower()}"
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--target", folder, *TEST_TOOLS)
        if not once(folder, (str(python), *TEST_TOOLS), pip):
            raise SystemExit(f"pytest for {label} could not be fetched; the reason is above.")
        environ = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
        yield Row(f"{label}'s own environment", python, ("tests/core",), environ)


def main(arguments: list[str]) -> int:
    failed = []
    for row in (*gradio_rows(), *host_rows()):
        print(f"\n{row.label}: {' '.join(row.tests)}", flush=True)
        # old libraries warn about each other; our own warnings are errors in the ordinary run
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings")
        if run(row.python, *pytest, *row.tests, *arguments, environ=row.environ):
            failed.append(row.label)
    print(f"\nFailed on: {', '.join(failed)}" if failed else "\nAll rows passed.", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
