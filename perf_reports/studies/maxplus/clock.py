"""The seconds of training: the wall's, or the processor's on a machine that others use too."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

_clock: Callable[[], float] = time.perf_counter


def now() -> float:
    """Seconds since some moment of the past."""
    return _clock()


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option --processor-time."""
    parser.add_argument("--processor-time", action="store_true", help="of the CPU: for a machine that others use too")


def choose(asked: argparse.Namespace) -> str:
    """Go by the clock that the option asks for, and return its name for the records."""
    global _clock
    _clock = time.process_time if asked.processor_time else time.perf_counter
    return "processor time" if asked.processor_time else "wall time"
