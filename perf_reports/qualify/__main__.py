"""The command where typer is not installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from .. import output
from ..durations import parse_duration
from . import lines, rehearse, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tropigrad.perf_reports.qualify", description=run.__doc__)
    parser.add_argument("--budget", default="8m", help="90s, 8m, 1h")
    parser.add_argument("--out", type=Path, help="a folder; by default qualification, or rehearsal")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with planted failures, in a minute or two")
    asked = parser.parse_args()
    try:
        if asked.rehearse:
            rehearsal = rehearse(asked.out or Path("rehearsal"), progress=_told())
            print("\n".join(rehearsal.lines()))
            return rehearsal.exit_code
        outcome = run(
            asked.out or Path("qualification"),
            budget_s=parse_duration(asked.budget),
            resume=asked.resume,
            progress=_told(),
        )
    except (ValueError, OSError) as error:
        print(f"tropigrad: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(outcome)))
    return outcome.exit_code


def _told() -> Callable[[str, int, int, str], None]:
    """Progress as lines on stderr, one a second at the most."""
    last = 0.0

    def tell(stage: str, done: int, total: int, what: str) -> None:
        nonlocal last
        if perf_counter() - last > 1.0:
            last = perf_counter()
            print(f"{stage} {done}/{total} {what}", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
