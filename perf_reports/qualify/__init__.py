"""`tropigrad qualify`: everything that a device nobody has used yet must show, in one command that can be resumed.

    conformance       every promise of every op, as far as it is on by default
    ceilings          what the device can do at the most
    tropical_matmul   its tuned configs; and its Gluon kernels, again and again, against the portable ones
    tuning            every other kernel at its standard shapes
    speed             every op at its standard shapes against the materialised definition, beside the roofs
    the rest          the promises again, by what is off by default; what is slow; opcheck

A process of its own carries out one item after the other (worker.py): a case, the tuning of an op, a workload at one
shape. An item that hangs, kills that process, or spoils the device's context costs itself and not the rest: it is
named, and another process goes on. To start one takes seconds, so it serves until it is lost. What is done is on the
disk at once, and `--resume` goes on after a kill or Ctrl-C; what is cut off is listed. The folder then holds, most
important first, at most eight files:

    1-summary.md         what passed, what failed, what was lost, what was cut off
    2-qualified.json     the record that turns the Gluon kernels on, where they passed: copy it to
                         kernels/contract/qualified/
    3-<gpu>.json         the tuned configs: copy it to autotune/tables/
    4-results.jsonl      every measurement (records.py)
    5-items.jsonl        every item, as it began and as it ended
    roofline.png, .svg   where matplotlib is installed

It needs torch and a source tree: `PYTHONPATH=src python -m tropigrad.perf_reports.qualify --budget 8m --out DIR` where
typer is not installed. `--rehearse` shows on a CPU that a bad day is survived (rehearsal.py).
"""

from __future__ import annotations

from .outcome import ITEMS, RECORD, RESULTS, SUMMARY, QualificationOutcome, lines
from .rehearsal import Rehearsal, rehearse
from .stages import run

__all__ = ["ITEMS", "RECORD", "RESULTS", "SUMMARY", "QualificationOutcome", "Rehearsal", "lines", "rehearse", "run"]
