"""`tropigrad perf`: the gate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .terminal import bars, fail

perf = typer.Typer(no_args_is_help=True, help="Gate the performance of kernels: no GPU needed.")


@perf.callback()
def performance() -> None:
    """Gate the performance of kernels: no GPU needed."""


@perf.command("gate")
def gate(
    declaration: Annotated[Path, typer.Argument(help="A Python file with a list GATE of Kernel and Call.")] = Path(
        "perf_gate.py"
    ),
    baseline: Annotated[Path | None, typer.Option(help="Default: perf_baseline.json beside the declaration.")] = None,
    tier: Annotated[
        list[int] | None,
        typer.Option(help="0: machine code; 1: interpreted counts; 2: the host's work; repeatable (default: all)."),
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Write the baseline anew, and show what differs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write JSON Lines there.")] = None,
) -> None:
    """Compare kernels with a committed baseline. Exit codes: 0 none worse, 1 a regression, 2 could not measure.

    Inside GitHub Actions it also writes annotations and the step summary.
    """
    from ..perf_reports import gate as gates
    from ..perf_reports.gate import outputs

    tiers = tuple(sorted({*tier})) if tier else gates.TIERS
    if unknown := [str(t) for t in tiers if t not in gates.TIERS]:
        fail(f"--tier is {', '.join(unknown)}; expected 0, 1 or 2")
    beside = baseline or declaration.parent / "perf_baseline.json"
    try:
        with bars() as progress:
            outcome = gates.check(declaration, beside, tiers=tiers, update=update, progress=progress)
        if junit:
            outputs.write_junit(outcome, junit)
        if jsonl:
            outputs.write_records(outcome, jsonl)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(summary, "a", encoding="utf-8") as file:
                file.write(outputs.markdown(outcome))
    except OSError as error:
        fail(f"{error.filename or beside}: {error.strerror or error}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(outputs.annotations(outcome, declaration)))
    print("\n".join(outputs.lines(outcome, is_update=update)))
    raise typer.Exit(outcome.exit_code)
