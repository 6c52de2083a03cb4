"""How much memory there is: the CPU's, a container's limit, each kind of device."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Free:
    """Memory that activations may take.

    Attributes:
        free_bytes: None where the device does not tell.
        source: What was asked, for messages.
    """

    free_bytes: int | None
    source: str


def free_memory(device: torch.device) -> Free:
    """Memory free on a device now, what torch's allocator has cached and could reuse included."""
    kind = device.type
    if kind == "cpu":
        return free_ram()
    if kind == "cuda":  # ROCm too
        # before torch 2.5 a device without an index, which is what A1111 has, is refused
        index = torch.cuda.current_device() if device.index is None else device.index
        free, _ = torch.cuda.mem_get_info(index)
        stats = torch.cuda.memory_stats(index)
        cached = stats.get("reserved_bytes.all.current", 0) - stats.get("active_bytes.all.current", 0)
        return Free(free + max(0, cached), "driver and torch's cache")
    if kind == "mps":
        mps: Any = torch.mps
        ram = free_ram().free_bytes
        if hasattr(mps, "recommended_max_memory") and ram is not None:
            return Free(min(ram, max(0, mps.recommended_max_memory() - mps.driver_allocated_memory())), "Metal")
        return Free(ram, "RAM shared with Metal")
    if kind == "xpu" and hasattr(getattr(torch, "xpu", None), "mem_get_info"):
        xpu: Any = torch.xpu
        try:
            return Free(int(xpu.mem_get_info(device)[0]), "driver")
        except RuntimeError:  # some Arc drivers do not tell
            return Free(None, "this XPU driver does not tell")
    return Free(None, f"{kind} does not tell")


def free_ram(root: Path = Path("/")) -> Free:
    """RAM that can be taken without swapping: what the system has, or what this container's limit leaves.

    Args:
        root: Where /proc and /sys are, for tests.
    """
    system = _system_ram(root)
    limit = _cgroup_room(root)
    if limit is not None and (system is None or limit < system):
        return Free(limit, "container limit")
    return Free(system, "RAM" if system is not None else "this system does not tell")


def _system_ram(root: Path) -> int | None:
    info = root / "proc/meminfo"
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_ram()
    try:
        psutil: Any = importlib.import_module("psutil")  # hosts ship it
    except ImportError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    return int(psutil.virtual_memory().available)


def _windows_ram() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "pages", "free_pages", "space", "room", "rest")
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - exists on Windows only
    return int(status.available) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _cgroup_room(root: Path) -> int | None:
    """Bytes that the control groups around this process leave it, page cache that can go included."""
    own = root / "proc/self/cgroup"
    if not own.is_file():
        return None
    rooms = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            rooms += _rooms_upwards(root / "sys/fs/cgroup", path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms_upwards(root / "sys/fs/cgroup/memory", path, names)
    return min(rooms, default=None)


def _rooms_upwards(mount: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    """Room in the group and in each group above it; a limit may be set on any of them."""
    rooms = []
    folder = mount / path.lstrip("/")
    # inside a container the path may be that of the host: then the mount itself is the group
    folders = [folder, *folder.parents] if folder.is_dir() else [mount]
    for group in folders:
        if mount != group and mount not in group.parents:
            break
        limit, used = _number(group / names[0]), _number(group / names[1])
        if limit is None or used is None or limit >= 1 << 60:
            continue
        cache = 0
        stat = group / "memory.stat"
        if stat.is_file():
            fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines() if " " in line)
            cache = int(fields.get(names[2], 0))
        rooms.append(max(0, limit - used + cache))
    return rooms


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
