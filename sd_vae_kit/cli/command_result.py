"""What a command gives back, before it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """A finished command.

    Attributes:
        data: The `--json` object; its keys are an interface.
        lines: The same for people.
        warnings: Sentences for stderr where there is no `--json`; `data` holds them too.
    """

    data: dict[str, object]
    lines: Sequence[str]
    warnings: Sequence[str] = ()
