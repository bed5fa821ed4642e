"""Durations: those of options are read, and measured ones written."""

import pytest

from tropigrad.perf_reports.durations import format_duration, parse_duration


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("30", 30)])
def test_a_duration_is_read(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "nan", "inf", "m"])
def test_what_is_no_duration_is_named(text):
    with pytest.raises(ValueError, match="expected a positive time such as 90s, 8m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (2.0, "2.00 s"), (0.01234, "12.3 ms"), (1.5e-6, "1.50 µs"), (2.5e-8, "25.0 ns"), (123.4, "123 s")],
    ids=str,
)
def test_a_duration_is_written(value, words):
    assert format_duration(value) == words
