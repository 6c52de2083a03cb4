"""Draw the package's rooms and who imports whom: `python -m tools.rooms` writes docs/images/rooms.svg.

The rooms are the rows of the table in tests/test_layers.py, the arrows the imports in the package's files.  Left out
are arrows that others imply (a -> c where a -> b -> c) and arrows to the rooms that any room may use.  The layout is
Sugiyama's: each room in the row below its lowest user, places in a row by the mean of their neighbours, long arrows
through points of their own between the boxes, so that no arrow crosses a box.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_layers import HOST, MAY_IMPORT, MODULES, PACKAGE, imported_names, layer_of, module_name, room_of  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "rooms.svg"
# Rooms that any room may use, in the bottom row; arrows to them would say nothing.
FOUNDATION = ("errors", "wording", "units", "version", "state", "settings", "core.dtypes", "core.halves")
TELLING = ("torch", "gradio", "requests")
BOX_WIDTH, BOX_HEIGHT, LANE_WIDTH, GAP, ROW = 154, 56, 10, 26, 104
MARGIN, TOP = 24, 56
COLOURS = {
    "core": ("#dbe9fb", "#3b6fb5"),
    "hosts": ("#dff1df", "#3d8b46"),
    "webui": ("#dff1df", "#3d8b46"),
    "standalone": ("#fdebd3", "#b9772a"),
    "ui": ("#efe3f7", "#7d4fa3"),
    "web": ("#efe3f7", "#7d4fa3"),
    "cli": ("#fdebd3", "#b9772a"),
    "__main__": ("#fdebd3", "#b9772a"),
}
PLAIN = ("#f2f2f2", "#6b6b6b")
LEGEND = (
    ("core: numbers and tensors", "core"),
    ("web UIs and their pages", "hosts"),
    ("pages and HTTP", "ui"),
    ("the app and the command line", "cli"),
)


@dataclass
class Room:
    """One row of the layer table, as the package's files fill it."""

    name: str
    files: int = 0
    lines: int = 0
    uses: set[str] = field(default_factory=set)

    @property
    def size(self) -> str:
        """Lines rounded to hundreds, so that a small edit leaves the picture as it is."""
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return f"{files}, {round(self.lines, -2):,} lines" if self.lines >= 100 else files

    @property
    def third_party(self) -> str:
        """What tells rooms apart among the packages that the table allows."""
        allowed = MAY_IMPORT[self.name][1]
        return ", ".join([name for name in TELLING if name in allowed] + (["the web UI"] if allowed & HOST else []))


@dataclass
class Place:
    """A box, or a point that a long arrow goes through; x is the middle."""

    name: str
    row: int
    width: int
    x: float = 0.0
    above: list[Place] = field(default_factory=list)
    below: list[Place] = field(default_factory=list)

    @property
    def is_box(self) -> bool:
        return self.width == BOX_WIDTH


# --- what the package says ------------------------------------------------------------------------------------------


def read_rooms() -> dict[str, Room]:
    """Every room that has files, with the rooms its files import."""
    rooms = {name: Room(name) for name in MAY_IMPORT}
    modules = {module_name(path) for path in MODULES}
    for path in MODULES:
        source = path.read_text("utf-8")
        room = rooms[layer_of(path)]
        room.files += 1
        room.lines += len(source.splitlines())
        for name, _ in imported_names(ast.parse(source)):
            if name.split(".")[0] == PACKAGE:
                module = name if name in modules else name.rpartition(".")[0]
                room.uses.add(room_of(module.partition(".")[2] or "__init__"))
        room.uses.discard(room.name)
    return {name: room for name, room in rooms.items() if room.files}


def arrows(rooms: dict[str, Room]) -> set[tuple[str, str]]:
    """Imports between rooms, without those that follow from others and those of the foundation."""
    drawn = {name: room.uses - set(FOUNDATION) for name, room in rooms.items() if name not in FOUNDATION}
    below = {name: reachable(name, drawn) for name in drawn}
    return {
        (name, used)
        for name, uses in drawn.items()
        for used in uses
        if not any(used in below[other] for other in uses - {used})
    }


def reachable(name: str, uses: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = uses[waiting.pop()] - found
        found |= new
        waiting += new
    return found


# --- where everything goes ------------------------------------------------------------------------------------------


def rows_of(names: list[str], edges: set[tuple[str, str]]) -> dict[str, int]:
    """Each room one row below its lowest user."""
    users = defaultdict(set)
    for user, used in edges:
        users[used].add(user)
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        if name not in rows:
            rows[name] = max((row(user) + 1 for user in users[name]), default=0)
        return rows[name]

    for name in names:
        row(name)
    return rows


def place(names: list[str], edges: set[tuple[str, str]]) -> list[list[Place]]:
    """Rows of boxes and of the points that long arrows go through, in order and with x set."""
    rows = rows_of(names, edges)
    boxes = {name: Place(name, rows[name], BOX_WIDTH) for name in names}
    lines: list[list[Place]] = [[] for _ in range(max(rows.values()) + 1)]
    for box in boxes.values():
        lines[box.row].append(box)
    for user, used in sorted(edges):
        upper = boxes[user]
        for row in range(rows[user] + 1, rows[used]):
            point = Place(f"{user}>{used}", row, LANE_WIDTH)
            lines[row].append(point)
            connect(upper, point)
            upper = point
        connect(upper, boxes[used])
    order(lines)
    spread(lines)
    return lines


def connect(upper: Place, lower: Place) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def order(lines: list[list[Place]]) -> None:
    """Sort every row so that few arrows cross: sweeps by the mean of the neighbours, then swaps of neighbours."""
    number(lines)
    best = [list(line) for line in lines]
    fewest = crossings(lines)
    for sweep in range(60):
        down = sweep % 2 == 0
        for line in lines if down else reversed(lines):
            line.sort(key=lambda p: mean([q.x for q in (p.above if down else p.below)], p.x))
            number([line])
        swap_neighbours(lines)
        count = crossings(lines)
        if count < fewest:
            fewest, best = count, [list(line) for line in lines]
    for line, kept in zip(lines, best, strict=True):
        line[:] = kept
    number(lines)


def number(lines: list[list[Place]]) -> None:
    for line in lines:
        for index, item in enumerate(line):
            item.x = float(index)


def swap_neighbours(lines: list[list[Place]]) -> None:
    for line in lines:
        for index in range(len(line) - 1):
            before = crossings(lines)
            exchange(line, index)
            if crossings(lines) >= before:
                exchange(line, index)


def exchange(line: list[Place], index: int) -> None:
    left, right = line[index], line[index + 1]
    line[index], line[index + 1] = right, left
    left.x, right.x = right.x, left.x


def crossings(lines: list[list[Place]]) -> int:
    count = 0
    for line in lines:
        pairs = [(upper.x, lower.x) for upper in line for lower in upper.below]
        count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(pairs) for c, d in pairs[:i])
    return count


def mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def spread(lines: list[list[Place]]) -> None:
    """Set x in pixels: near the mean of the neighbours, in the row's order, without overlaps."""
    for line in lines:
        pack(line, [index * 90.0 for index in range(len(line))])
    for sweep in range(200):
        for line in lines if sweep % 2 else reversed(lines):
            pack(line, [mean([q.x for q in (*p.above, *p.below)], p.x) for p in line])
    left = min(p.x - p.width / 2 for line in lines for p in line)
    for line in lines:
        for item in line:
            item.x += MARGIN - left


def pack(line: list[Place], wanted: list[float]) -> None:
    """Place a row as near to what is wanted as its order and widths allow: the mean of packing from either side."""
    steps = [(a.width + b.width) / 2 + GAP for a, b in pairwise(line)]
    from_left, from_right = list(wanted), list(wanted)
    for index, step in enumerate(steps):
        from_left[index + 1] = max(from_left[index + 1], from_left[index] + step)
    for index in range(len(steps) - 1, -1, -1):
        from_right[index] = min(from_right[index], from_right[index + 1] - steps[index])
    for item, left, right in zip(line, from_left, from_right, strict=True):
        item.x = (left + right) / 2


# --- drawing --------------------------------------------------------------------------------------------------------


def draw(rooms: dict[str, Room]) -> str:
    edges = arrows(rooms)
    lines = place([name for name in rooms if name not in FOUNDATION], edges)
    parts = [box(rooms[p.name], p.x, top_of(p.row)) for line in lines for p in line if p.is_box]
    parts += [arrow(p, end) for line in lines for p in line if p.is_box for end in p.below]
    found_legend, right = legend()
    width = round(max(right, *(p.x + p.width / 2 for line in lines for p in line)) + MARGIN)
    bottom = top_of(len(lines)) + 10
    parts.append(f'<text x="{width / 2:.0f}" y="{bottom - 12}" class="note">used by every room above</text>')
    found, height = foundation([rooms[name] for name in FOUNDATION if name in rooms], width, bottom)
    parts += found
    parts += found_legend
    return "\n".join((HEAD.format(width=width, height=height), *parts, "</svg>", ""))


def foundation(rooms: list[Room], width: int, top: int) -> tuple[list[str], int]:
    """Rows of boxes in the middle of the picture, and where the picture ends."""
    step, parts = BOX_WIDTH + 12, []
    each = (width - 2 * MARGIN + 12) // step
    for start in range(0, len(rooms), each):
        row = rooms[start : start + each]
        left = (width - step * len(row) + 12 + BOX_WIDTH) / 2
        parts += [box(room, left + index * step, top) for index, room in enumerate(row)]
        top += BOX_HEIGHT + 12
    return parts, top + MARGIN


def top_of(row: int) -> int:
    return TOP + row * ROW


def colours(name: str) -> tuple[str, str]:
    return COLOURS.get(name.split(".")[0], PLAIN)


def box(room: Room, x: float, y: float) -> str:
    fill, line = colours(room.name)
    texts = [(room.name, "name"), (room.size, "size"), (room.third_party, "size")]
    left = x - BOX_WIDTH / 2
    rows = "".join(
        f'<text x="{x:.0f}" y="{y + 18 + 15 * index:.0f}" class="{kind}">{escape(text)}</text>'
        for index, (text, kind) in enumerate(texts)
        if text
    )
    return (
        f'<g data-room="{room.name}" data-files="{room.files}"><rect x="{left:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="7" fill="{fill}" stroke="{line}"/>{rows}</g>'
    )


def arrow(start: Place, end: Place) -> str:
    """From a box's lower edge through its points to the next box's upper edge."""
    last = end
    x, y = port(start, end, start.below), top_of(start.row) + BOX_HEIGHT
    path, previous = f"M{x:.0f},{y}", start
    while True:
        goal = port(last, previous, last.above) if last.is_box else last.x
        top = top_of(last.row) - (5 if last.is_box else 0)
        path += f" C{x:.0f},{y + 26} {goal:.0f},{top - 26} {goal:.0f},{top}"
        if last.is_box:
            break
        y = top_of(last.row) + BOX_HEIGHT
        path += f" L{goal:.0f},{y}"
        x, previous, last = goal, last, last.below[0]
    colour = colours(start.name)[1]
    return f'<path data-from="{start.name}" data-to="{last.name}" d="{path}" stroke="{colour}"/>'


def port(of: Place, towards: Place, neighbours: list[Place]) -> float:
    """Where on a box's edge an arrow begins or ends: side by side, in the order of the other ends."""
    ordered = sorted(neighbours, key=lambda p: p.x)
    return of.x + (ordered.index(towards) - (len(ordered) - 1) / 2) * min(22, (BOX_WIDTH - 20) / len(ordered))


def legend() -> tuple[list[str], int]:
    """What the colours mean, and where the line ends."""
    parts = []
    x = MARGIN
    for text, name in LEGEND:
        fill, line = colours(name)
        parts.append(f'<rect x="{x}" y="14" width="16" height="16" rx="3" fill="{fill}" stroke="{line}"/>')
        parts.append(f'<text x="{x + 22}" y="27" class="legend">{text}</text>')
        x += 46 + 7 * len(text)
    return parts, x - 24


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title>The rooms of sd_vae_kit and who imports whom</title>
<style>
text {{ font-family: "DejaVu Sans", Verdana, Arial, sans-serif; fill: #222; text-anchor: middle }}
.name {{ font-size: 13px; font-weight: bold }} .size {{ font-size: 11px; fill: #444 }}
.note {{ font-size: 12px; fill: #444; font-style: italic }} .legend {{ font-size: 12px; text-anchor: start }}
path {{ fill: none; stroke-width: 1.4; marker-end: url(#tip) }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" style="fill: #555; stroke: none; marker-end: none"/></marker></defs>
<rect width="100%" height="100%" fill="white"/>"""


if __name__ == "__main__":
    PICTURE.write_text(draw(read_rooms()), "utf-8")
    print(PICTURE)
