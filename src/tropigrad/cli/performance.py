"""`tropigrad perf`: the gate, two revisions or two results compared, history."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .terminal import bars, fail, print_table

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
        typer.Option(
            help="0: machine code; 1: interpreted counts; 2: the host's work; 3: that up to Triton's launcher; "
            "repeatable (default: all)."
        ),
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
        fail(f"--tier is {', '.join(unknown)}; expected 0, 1, 2 or 3")
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
        print("\n".join(outputs.github_annotations(outcome, declaration)))
    if sys.stdout.isatty() and outcome.differences:
        print_table(outputs.HEAD, outputs.cells(outcome), {"worse": "red", "gone": "yellow", "better": "green"})
        print("\n".join(outputs.closing_lines(outcome, is_update=update)))
    else:
        print("\n".join(outputs.lines(outcome, is_update=update)))
    raise typer.Exit(outcome.exit_code)


@perf.command("compare")
def compare(
    before: Annotated[str, typer.Argument(help="A revision that git knows; or results.jsonl of a report.")],
    after: Annotated[str, typer.Argument(help="Another of the same kind; HEAD, say.")] = "HEAD",
    declaration: Annotated[
        Path, typer.Option(help="A Python file with a list GATE; its calls of tier 2 are timed.")
    ] = Path("perf_gate.py"),
    seconds: Annotated[float, typer.Option(help="The most that the first measurement of revisions takes.")] = 600.0,
    fail_if: Annotated[str, typer.Option("--fail-if", help="How much slower is a regression: 5%, say.")] = "3%",
    jsonl: Annotated[Path | None, typer.Option(help="Write what the verdict rests on there, as JSON Lines.")] = None,
) -> None:
    """Time the calls of two revisions, in processes that take turns; or compare two files of results.

    Of revisions, a call is slower where the interval of the ratio excludes 1, the ratio is at least 1.03, and both hold
    twice. Of files, where that holds of its time, and of its time beside its rivals'. Exit codes: 0 none slower, 1
    slower, 2 not measured, or cut short.
    """
    from ..perf_reports.commands import BadRequest
    from ..perf_reports.gate import DeclarationError, results, timed

    try:
        effect = float(fail_if.removesuffix("%")) / 100
    except ValueError:
        effect = -1.0
    if not 0 < effect < 10:
        fail(f"--fail-if is {fail_if!r}; expected a share such as 5%")
    outcome: timed.Outcome | results.Outcome
    try:
        if before.endswith(".jsonl") or after.endswith(".jsonl"):
            outcome = results.compare(Path(before), Path(after), effect=effect)
            told = results.lines(outcome)
            if jsonl:
                results.write_records(outcome, (before, after), jsonl)
        else:
            with bars() as progress:
                outcome = timed.measure(
                    declaration.resolve().parent,
                    declaration,
                    (before, after),
                    effect=effect,
                    budget_s=seconds,
                    progress=progress,
                )
            told = timed.lines(outcome)
            if jsonl:
                timed.write_records(outcome, (before, after), jsonl)
    except (BadRequest, DeclarationError) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or jsonl}: {error.strerror or error}")
    print("\n".join(told))
    raise typer.Exit(outcome.exit_code)


@perf.command("history")
def history(
    files: Annotated[list[Path], typer.Argument(help="results.jsonl of reports, or --jsonl of gates.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("perf_history.png"),
    only: Annotated[list[str] | None, typer.Option(help="Series whose names hold this; repeatable.")] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(help="Also write .parquet, .csv, .asv.json or .pytest-benchmark.json; repeatable."),
    ] = None,
) -> None:
    """Draw figures over revisions, with the places where they changed for good."""
    from ..perf_reports.commands import BadRequest
    from ..perf_reports.gate import history as histories

    try:
        series = histories.read(files)
        if only:
            series = {name: points for name, points in series.items() if any(word in name for word in only)}
        if not series:
            fail(f"--only {', '.join(only or ())}: no series has such a name")
        for path in export or ():
            histories.export(series, path)
        histories.draw(series, out)
    except BadRequest as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail(f"history needs {error.name}: pip install 'tropigrad[reports]'")
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}")
    print("\n".join([*histories.lines(series), f"picture: {out}"]))
