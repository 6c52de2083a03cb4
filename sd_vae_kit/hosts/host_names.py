"""Names that a web UI must have for each feature; one that is missing switches off that feature, with one line.

Each web UI has one table (`hosts/*/names.py`).  It is checked against the real modules before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

FEATURES = {
    "loading": "choosing a VAE",
    "listing": "the list of VAEs",
    "hashes": "the VAE hash in pictures",
    "names": "VAE files of the same name",
    "exact_stem": "the VAE beside a checkpoint",
    "merger": "the checkpoint merger's VAE",
    "taesd": "TAESD",
    "previews": "live previews",
    "approximation": "the network for Approx NN",
    "override_leak": "override_settings that were never saved",
    "nan_check": "the check for NaN",
    "sticky_fp32": "the switch to 32 bits after a black picture",
    "refusals": "options whose VAE cannot be used",
    "jobs": "the end of a job",
    "progress": "progress and Interrupt of a decode",
    "room": "making room for the VAE",
    "sketch": "the picture of an interrupted decode",
    "page": "SD VAE on the settings page",
    "errors": "errors of jobs that the page began",
    "infotext": "the VAE named in a pasted text",
    "requests": "the VAE of one request",
    "control": "the panel on the tab Control",
}


@dataclass(frozen=True)
class HostName:
    """One name of a web UI.

    Attributes:
        module: "modules.sd_vae".
        attribute: "load_vae"; with dots an attribute of an attribute, "Options.set".
        feature: Key of `FEATURES`; the feature is switched off where the name is missing.
    """

    module: str
    attribute: str
    feature: str

    @property
    def is_there(self) -> bool:
        """Whether this process has the name."""
        try:
            found: object = import_module(self.module)
        except ImportError:
            return False
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}"


def names_for(feature: str, module: str, *attributes: str) -> Iterator[HostName]:
    """Rows of a table: the attributes of one module that one feature needs."""
    return (HostName(module, attribute, feature) for attribute in attributes)


class HostFeatures:
    """Which features this process' web UI can have.

    Args:
        table: Every name that is used of the web UI; a feature without a name in it does not exist there.
    """

    def __init__(self, table: Sequence[HostName]) -> None:
        self._known = {name.feature for name in table}
        self._missing: dict[str, list[HostName]] = {}
        for name in table:
            if not name.is_there:
                self._missing.setdefault(name.feature, []).append(name)

    def has(self, feature: str) -> bool:
        """Whether the web UI has a feature and every name that it needs."""
        return feature in self._known and feature not in self._missing

    def lines(self) -> Iterable[str]:
        """One sentence for each feature that lacks a name."""
        for feature, names in self._missing.items():
            more = f" (and {len(names) - 1} more names)" if len(names) > 1 else ""
            yield f"This web UI has no {names[0]}{more}, so VAE Kit leaves {FEATURES[feature]} to it."
