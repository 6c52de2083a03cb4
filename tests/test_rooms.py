"""The picture of the rooms in docs/architecture.md: what it shows is what the package's imports are."""

import re
from itertools import pairwise

import pytest
from test_layers import MAY_IMPORT

from tools.rooms import FOUNDATION, PICTURE, Place, arrows, draw, pack, place, reachable, read_rooms

DRAWN_AGAIN = "run `python -m tools.rooms` to draw docs/images/rooms.svg again"


@pytest.fixture(scope="module")
def rooms():
    return read_rooms()


@pytest.fixture(scope="module")
def picture():
    return PICTURE.read_text("utf-8")


def test_the_picture_shows_every_room(rooms, picture):
    assert sorted(re.findall(r'data-room="([^"]+)"', picture)) == sorted(rooms), DRAWN_AGAIN


def test_the_picture_shows_the_imports(rooms, picture):
    drawn = set(re.findall(r'data-from="([^"]+)" data-to="([^"]+)"', picture))
    assert len(drawn) > 15
    assert drawn == arrows(rooms), DRAWN_AGAIN


def test_the_sizes_in_the_picture_are_about_right(rooms, picture):
    files = {name: int(count) for name, count in re.findall(r'data-room="([^"]+)" data-files="(\d+)"', picture)}
    far_off = [name for name, room in rooms.items() if abs(files[name] - room.files) > 3 + room.files / 5]
    assert far_off == [], DRAWN_AGAIN


def test_drawing_is_the_same_every_time(rooms):
    assert draw(rooms) == draw(read_rooms())


def test_left_out_arrows_follow_from_the_drawn_ones(rooms):
    drawn = {name: {used for user, used in arrows(rooms) if user == name} for name in rooms}
    for name, room in rooms.items():
        if name not in FOUNDATION:
            assert room.uses - set(FOUNDATION) <= reachable(name, drawn)


def test_no_arrow_crosses_a_box(rooms):
    """Arrows run between rows, or through a row at a point of their own: points and boxes of a row keep apart."""
    names = [name for name in rooms if name not in FOUNDATION]
    lines = place(names, arrows(rooms))
    assert sum(item.is_box for line in lines for item in line) == len(names)
    assert any(not item.is_box for line in lines for item in line)
    for line in lines:
        for left, right in pairwise(line):
            assert right.x - left.x >= (left.width + right.width) / 2


def test_places_in_a_row_are_pushed_apart():
    line = [Place("a", 0, 100), Place("b", 0, 100), Place("c", 0, 10)]
    pack(line, [50, 50, 50])
    assert line[0].x + 100 < line[1].x
    assert line[1].x + 55 < line[2].x


def test_the_foundation_is_what_the_table_lets_nearly_every_room_use(rooms):
    for name in set(FOUNDATION) & rooms.keys():
        assert not rooms[name].uses - set(FOUNDATION), f"{name} uses rooms above it"
    assert set(rooms) <= set(MAY_IMPORT)
