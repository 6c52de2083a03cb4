"""A1111's options and command-line flags, which its relatives have, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import shared


class A1111Options:
    """`modules.shared.opts` and `modules.shared.cmd_opts`, read at each question."""

    def value(self, key: str, default: object = None) -> object:
        if key == "vae_kit_download_offline" and getattr(shared.cmd_opts, "vae_kit_offline", False):
            return True
        return getattr(shared.opts, key, default)

    @property
    def saved(self) -> dict[str, object]:
        data: dict[str, object] = shared.opts.data
        return data

    @property
    def declared(self) -> Mapping[str, Any]:
        labels: Mapping[str, Any] = shared.opts.data_labels
        return labels

    @property
    def forced_vae(self) -> Path | None:
        named = getattr(shared.cmd_opts, "vae_path", None)
        return Path(named) if named else None

    @property
    def may_hash(self) -> bool:
        return not getattr(shared.cmd_opts, "no_hashing", False)
