"""Holds a fake web UI to the names and signatures that were recorded of the real one."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from tools.host_entries import VALUE
from tools.host_names import Recording

OWN = "vae_kit"  # flags of preload.py, what the extension leaves on a host's objects


def differences(fake: Any, recording: Recording) -> Iterator[str]:
    """What a fake has that the program lacks, or has otherwise: one sentence each.

    Args:
        fake: A `FakeA1111` or one made from it, with its modules built.
        recording: Of the program that it stands for.
    """
    for name, module in fake.modules.items():
        if _is_package(name, recording):
            continue
        if name not in recording.modules:
            yield f"{recording.program} has no module {name}"
            continue
        for attribute, value in vars(module).items():
            if not attribute.startswith("__") and f"{name}.{attribute}" not in fake.modules and OWN not in attribute:
                yield from _differing(recording, f"{name}.{attribute}", value, recording.find(name, attribute))
    shared = fake.modules["modules.shared"]
    for key in shared.opts.data_labels:
        if key not in recording.options and OWN not in key:
            yield f"{recording.program} has no option {key}"
    for name in vars(shared.cmd_opts):
        if name not in recording.flags and OWN not in name:
            yield f"{recording.program} has no flag {name}"


def keep_recorded(fake: Any, recording: Recording) -> None:
    """Take out of a fake whatever the program lacks: modules, their names, options and flags."""
    for name, module in list(fake.modules.items()):
        if name not in recording.modules and not _is_package(name, recording):
            parent, _, last = name.rpartition(".")
            del fake.modules[name]
            vars(fake.modules[parent]).pop(last, None)
            continue
        for attribute in list(vars(module)):
            is_ours = attribute.startswith("__") or f"{name}.{attribute}" in fake.modules
            if not is_ours and not recording.has(name, attribute):
                delattr(module, attribute)
    shared = fake.modules["modules.shared"]
    for key in [key for key in shared.opts.data_labels if key not in recording.options]:
        del shared.opts.data_labels[key]
    for flag in [name for name in vars(shared.cmd_opts) if name not in recording.flags and OWN not in name]:
        delattr(shared.cmd_opts, flag)


def _is_package(name: str, recording: Recording) -> bool:
    return any(other.startswith(f"{name}.") for other in recording.modules)


def _differing(recording: Recording, name: str, value: Any, entry: Any) -> Iterator[str]:
    if entry is None:
        yield f"{recording.program} has no {name}"
    elif isinstance(entry, str) and entry.startswith("("):
        given = signature_of(value)
        if given != entry:
            yield f"{name} takes {given} in the fake and {entry} in {recording.program}"
    elif entry != VALUE:
        yield from _differing_members(recording, name, value, recording.class_of(entry))


def _differing_members(recording: Recording, name: str, value: Any, real: dict[str, Any] | None) -> Iterator[str]:
    """Of a class, or of an object of one; None, which a host holds until it has started, has none."""
    kind = value if isinstance(value, type) else type(value)
    assert real is not None, name
    members = dict(vars(kind)) if kind.__module__.startswith(("fake_", "test_")) else {}
    if not isinstance(value, type):
        members |= getattr(value, "__dict__", {})
    for member, item in members.items():
        if member.startswith("__"):
            continue
        entry = real["members"].get(member)
        if entry is None and not real["bases"]:
            yield f"{recording.program} has no {name}.{member}"
        elif isinstance(item, types.FunctionType) and entry is not None:
            yield from _differing(recording, f"{name}.{member}", item, entry)


def signature_of(function: Any) -> str:
    """Parameters in the words of `tools.host_entries`."""
    if not callable(function):
        return "nothing"
    parts: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else "="
        parts.append(f"{stars}{parameter.name}{default}")
    return f"({', '.join(parts)})"
