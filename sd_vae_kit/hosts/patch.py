"""Replacing attributes of foreign objects so that it can be undone, found again and survived.

Three things go wrong with patches in web UIs, and each is answered here.  A request that raises skips the hook that
would have undone them: `replace` finds a leftover and starts from the original, so nothing nests.  Another extension
wraps our replacement: undoing then must not throw its wrapper away, so ours stays in the chain and only passes calls
through.  A host makes a new model object: `replace` is cheap and idempotent, so callers simply apply it again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

MARK = "__vae_kit_patch__"

Function = Callable[..., Any]


class Patch:
    """One replaced attribute."""

    def __init__(self, owner: object, name: str, original: Function, on_instance: bool) -> None:
        self.owner = owner
        self.name = name
        self.original = original
        self.active = True
        self.replacement: Function | None = None
        self._on_instance = on_instance  # the attribute lay on the owner itself, not on its class

    def undo(self) -> None:
        """Put the original back, or only pass calls through where somebody wrapped the replacement meanwhile."""
        self.active = False
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self._on_instance:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)


class Patches:
    """All patches of one host."""

    def __init__(self) -> None:
        self._patches: list[Patch] = []
        self._lock = threading.RLock()

    def replace(self, owner: object, name: str, make: Callable[[Function], Function]) -> None:
        """Replace a function or method; a replacement that is there already is replaced, not wrapped.

        Args:
            owner: Module, class or instance.
            name: Attribute; it must exist.
            make: Called with the original, returns what is called instead.

        Raises:
            AttributeError: The host has no such attribute; nothing changed.
        """
        with self._lock:
            self._take_back(owner, name)
            original = getattr(owner, name)
            patch = Patch(owner, name, original, on_instance=name in vars(owner))
            patch.replacement = _replacement(patch, make(original))
            setattr(owner, name, patch.replacement)
            self._patches.append(patch)

    def wrap(self, owner: object, name: str, method: Function) -> None:
        """Replace a function by `method`, which takes the original first; one that is replaced by us stays.

        Raises:
            AttributeError: The host has no such attribute; nothing changed.
        """
        if not self.is_applied(owner, name):
            self.replace(owner, name, lambda original: functools.partial(method, original))

    def _take_back(self, owner: object, name: str) -> None:
        """Undo what is left of an earlier patch: our own, also below a foreign wrapper, or a lost object's on top."""
        found = [patch for patch in self._patches if patch.owner is owner and patch.name == name]
        on_top: Patch | None = getattr(vars(owner).get(name), MARK, None)
        for patch in [*found, *([on_top] if on_top else [])]:
            patch.undo()
        self._patches = [patch for patch in self._patches if patch not in found]

    def is_applied(self, owner: object, name: str) -> bool:
        """Whether the attribute is replaced by this object now, also below somebody else's wrapper."""
        with self._lock:
            return any(patch.owner is owner and patch.name == name and patch.active for patch in self._patches)

    def undo(self, owner: object | None = None) -> None:
        """Undo all patches, or those of one owner, last first."""
        with self._lock:
            for patch in reversed(self._patches):
                if owner is None or patch.owner is owner:
                    patch.undo()
            self._patches = [patch for patch in self._patches if patch.active]


def _replacement(patch: Patch, function: Function) -> Function:
    @functools.wraps(patch.original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return (function if patch.active else patch.original)(*args, **kwargs)

    setattr(replaced, MARK, patch)
    return replaced
