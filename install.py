"""Run by the host before it starts.  The host ships everything that is needed, so nothing is installed or re-pinned.

This only says in one line what is missing, if anything is.
"""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = ("torch", "numpy", "PIL", "safetensors", "gradio", "fastapi", "pydantic")


def missing() -> list[str]:
    """Packages the extension needs and this Python does not have."""
    return [name for name in NEEDED if find_spec(name) is None]


if lacking := missing():
    print(f"VAE Kit needs {', '.join(lacking)}, which this web UI should ship; repair its installation (--reinstall).")
