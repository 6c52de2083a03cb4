"""What the measurements do with their time; what they measure is not run here."""

import argparse
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import bench.__main__ as program
from bench import records
from bench.pictures import PictureError
from bench.plot import plot
from bench.records import Case, Records, Row
from bench.report import BEFORE_AFTER, write_report
from bench.variants import DEFAULT_VARIANTS, FLOOR, ORDINARY


class Clock:
    """A monotonic clock that only moves when something is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def measured(monkeypatch):
    """The labels of what was measured; each measurement takes ten seconds."""
    log: list[str] = []
    clock = Clock()
    monkeypatch.setattr(program.time, "monotonic", clock)

    def times(case, variants, found):
        clock.now += 10
        log.append(f"{case} times")
        for number, name in enumerate(variants):
            row = found.row(case, name)
            row.times.append(2.0 + number)
            row.cpu.append(2.0 + number)

    def peak(case, name, threads, found):
        clock.now += 10
        log.append(f"{case} {name}")
        found.row(case, name).peak_mb = 100.0 if name == ORDINARY else 40.0

    def pictures():
        clock.now += 10
        log.append("photographs")
        return [PictureError("demo", "stream", 640, 0.01, 0.001, math.inf, 50)]

    monkeypatch.setattr(program, "measure_times", times)
    monkeypatch.setattr(program, "child_peak", peak)
    monkeypatch.setattr(program, "picture_errors", pictures)
    return log


def bench(monkeypatch, out: Path, *arguments: str) -> str:
    monkeypatch.setattr(program.sys, "argv", ["bench", "--threads", "1", "--out", str(out), *arguments])
    program.main()
    return out.read_text("utf-8")


def options(*arguments: str) -> argparse.Namespace:
    return program.parse(list(arguments))


def test_the_default_is_three_sizes_two_types_both_ways_and_three_repeats():
    labels = [unit.label for unit in program.units(options(), Records({}))]
    assert labels[:3] == ["photographs", "encode 768 px fp32, times 1", f"encode 768 px fp32, peak of {ORDINARY}"]
    assert sum("times" in label for label in labels) == 3 * 2 * 2 * 3
    assert sum("peak" in label for label in labels) == 3 * 2 * 2 * (len(DEFAULT_VARIANTS) - 2)
    assert not any("1536" in label for label in labels)
    full = [unit.label for unit in program.units(options("--full"), Records({}))]
    assert "decode 1536 px fp32, peak of whole" in full


def test_the_size_of_the_goals_comes_first_and_repeats_come_last():
    cases = [
        label.split(",")[0] for label in (u.label for u in program.units(options(), Records({}))) if "s 1" in label
    ]
    assert cases[:2] == ["encode 768 px fp32", "decode 768 px fp32"]
    assert {case.split()[1] for case in cases[2:6]} == {"512"}
    assert cases[-1] == "decode 1024 px bf16"


def test_nothing_is_started_that_would_end_too_late_and_what_was_left_out_is_said(
    measured, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(program, "RATES", {"fp32": 1e12, "bf16": 1e12})
    few = ("--sizes", "512", "--parts", "encode", "--dtypes", "fp32", "--minutes", "0.5")
    text = bench(monkeypatch, tmp_path / "R.md", *few)
    assert measured == ["photographs", "encode 512 px fp32 times", f"encode 512 px fp32 {ORDINARY}"]
    assert "Not measured for want of time: encode 512 px fp32, peak of stream;" in text
    assert "Run the same again to go on." in capsys.readouterr().err


def test_a_second_run_only_does_what_is_missing(measured, monkeypatch, tmp_path):
    case = ("--sizes", "512", "--parts", "decode", "--dtypes", "fp32")
    few = (*case, "--repeats", "2", "--variants", ORDINARY, "stream", FLOOR)
    bench(monkeypatch, tmp_path / "R.md", *few)
    assert measured == [
        "photographs", "decode 512 px fp32 times", f"decode 512 px fp32 {ORDINARY}", "decode 512 px fp32 stream",
        "decode 512 px fp32 times",
    ]  # fmt: skip
    del measured[:]
    text = bench(monkeypatch, tmp_path / "R.md", *few)
    assert measured == []
    assert "| 512 | stream | 1.50 (1.50 .. 1.50) | 1.50 (1.50 .. 1.50) | 0.75 (0.75 .. 0.75) | 0.40 | 40 |" in text
    assert "| demo | stream | 0.0100 | 0.00100 | equal | 50 |" in text
    assert (tmp_path / "R.svg").read_text("utf-8").startswith("<svg")
    monkeypatch.setattr(records, "engine_hash", lambda: "another engine")
    bench(monkeypatch, tmp_path / "R.md", *few)
    assert len(measured) == 5, "measurements of another engine are not mixed in"


def test_a_stopped_run_is_kept(tmp_path):
    found = Records({"torch": "x"}, [Row("decode", 512, "fp32", "stream", [1.0], [2.0], 1e-6, 1e-7, 40.0, 41.0)])
    found.save(tmp_path / "R.json")
    assert json.loads((tmp_path / "R.json").read_text("utf-8"))["rows"][0]["peak_mb"] == 40.0
    assert found.row(Case("fp32", "decode", 512), "stream").times == [1.0]
    assert found.row(Case("fp32", "decode", 768), "stream").times == []


def test_the_plot_shows_the_ratios_of_the_table_with_their_spread_in_order():
    rows = [
        Row("encode", 512, "fp32", ORDINARY, [1.0], [1.0], peak_mb=50.0),
        Row("encode", 512, "fp32", "stream", [0.25], [0.5]),
        Row("decode", 768, "fp32", "stream", [1.0, 1.0, 1.5], [9.0, 9.0, 9.0], peak_mb=41.0),
        Row("decode", 768, "fp32", ORDINARY, [2.0, 4.0, 2.0], [1.0, 1.0, 1.0], peak_mb=100.0),
        Row("decode", 512, "bf16", "stream", peak_mb=None),
    ]
    picture = ElementTree.fromstring(plot(rows))
    tag = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in picture.iter(f"{tag}text")]
    assert words[3:] == [
        "decode, fp32", "768 px, stream", "0.50", "0.41", "encode, fp32", "512 px, stream", "0.25",
    ]  # fmt: skip
    widths = [int(bar.get("width")) for bar in picture.iter(f"{tag}rect") if bar.get("width") != "100%"]
    assert widths == [130, 107, 65]
    spreads = [int(line.get("x2")) - int(line.get("x1")) for line in picture.iter(f"{tag}line")]
    assert spreads == [0, 130, 0], "the line at 1.0, from 0.25 to 0.75, one repeat"


def test_the_report_says_how_often_and_how_far_predictions_are_off(tmp_path):
    rows = [
        Row("decode", 768, "fp32", ORDINARY, [1.0, 1.0], [1.0, 1.0]),
        Row("decode", 768, "fp32", "stream", [1.0], [1.0], peak_mb=100.0, predicted_mb=95.0),
        Row("encode", 512, "bf16", "stream-lean", peak_mb=100.0, predicted_mb=129.0),
        Row("encode", 512, "bf16", "stream", peak_mb=100.0, predicted_mb=101.0),
    ]
    where = {"machine": "m", "torch": "2", "threads": "2", "waiting": "default"}
    write_report(Records(where, rows), tmp_path / "R.md", [])
    text = (tmp_path / "R.md").read_text("utf-8")
    assert "Repeats: 1 to 2." in text
    assert ": -5% (decode 768 px fp32, stream) to +29% (encode 512 px bf16, stream-lean)." in text


@pytest.mark.parametrize("size", ["100", "8"])
def test_sizes_that_no_vae_takes_are_refused(size, capsys):
    with pytest.raises(SystemExit):
        options("--sizes", size)
    assert "multiples of 8, from 64 up" in capsys.readouterr().err


def test_the_report_ends_with_what_was_measured_once(tmp_path):
    where = {"machine": "m", "torch": "2", "threads": "2", "waiting": "default"}
    write_report(Records(where, []), tmp_path / "RESULTS.md", [])
    once = BEFORE_AFTER.read_text("utf-8")
    assert (tmp_path / "RESULTS.md").read_text("utf-8").endswith(once)
    assert (BEFORE_AFTER.parent / "RESULTS.md").read_text("utf-8").endswith(once)
