"""The demo's files: VAEs trained by this project, and the photographs its model knows."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PHOTOGRAPHS = FOLDER / "photographs"
