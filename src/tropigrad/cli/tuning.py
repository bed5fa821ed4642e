"""`tropigrad tune`, `explain`, `cache` and `qualify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..perf_reports import output
from .terminal import Json, Verbose, bars, fail

cache = typer.Typer(no_args_is_help=True, help="The tuned configs on this machine.")


def tune(
    ops: Annotated[list[str] | None, typer.Argument(help="Ops by name (default: all).")] = None,
    shapes: Annotated[
        list[str] | None, typer.Option(help="M=256,K=512,N=512; repeatable (default: the op's standard shapes).")
    ] = None,
    budget: Annotated[str, typer.Option(help="Time for everything: 90s, 5m, 1h.")] = "5m",
    dtype: Annotated[str, typer.Option(help="Of the inputs.")] = "float32",
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is stored.")] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Also write this device's table, to be shipped in autotune/tables.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find the configs of kernels on this device. Ctrl-C keeps what was measured, and the same command goes on."""
    from .. import autotune
    from ..perf_reports import tune as tuner
    from ..perf_reports.durations import parse_duration

    try:
        plan = tuner.plan(ops or (), shapes or (), dtype)
        with bars() as bar:
            findings = tuner.run(
                plan,
                budget_s=parse_duration(budget),
                again=again,
                progress=lambda done, total, what: bar("tuning", done, total, what),
            )
        table = tuner.export() if export else None
    except ValueError as error:
        fail(error)
    except (autotune.DeviceLost, autotune.WrongDefault) as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("interrupted; what was measured is kept, and the same command goes on from there", 130)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}; expected a folder that can be written")
    if as_json:
        print(output.as_json(tuner.as_json(findings, table)))
    else:
        print("\n".join(tuner.lines(findings, table, verbose)))


def explain(
    op: Annotated[str, typer.Argument(help="An op by name.")],
    sizes: Annotated[list[str], typer.Argument(help="M=256 K=512 N=512")],
    dtype: Annotated[str, typer.Option(help="Of the inputs.")] = "float32",
    as_json: Json = False,
) -> None:
    """Which config a call runs with, and why: text for people, and for a bug report."""
    from ..perf_reports import tune as tuner

    try:
        explanation = tuner.explain(*tuner.plan([op], [",".join(sizes)], dtype)[0])
    except ValueError as error:
        fail(error)
    print(output.as_json(explanation.as_json(), default=str) if as_json else explanation)


@cache.command("list")
def cache_list(as_json: Json = False) -> None:
    """Every tuned config, by environment."""
    from ..perf_reports import tune as tuner

    configs = tuner.cached()
    print(output.as_json(configs) if as_json else "\n".join(tuner.cached_lines(configs)))


@cache.command("verify")
def cache_verify(as_json: Json = False) -> None:
    """Read every entry; exit 1 where one is damaged or a writer left a piece behind."""
    from ..perf_reports import tune as tuner

    problems = tuner.damaged()
    whole = f"{len(tuner.cached()['entries'])} entries, all whole"
    print(output.as_json({"problems": problems}) if as_json else "\n".join(problems or [whole]))
    raise typer.Exit(1 if problems else 0)


@cache.command("clear")
def cache_clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False, as_json: Json = False
) -> None:
    """Remove every tuned config and journal of every environment. On a terminal it asks first."""
    from .. import autotune

    if not yes and sys.stdin.isatty():
        count = sum(1 for _ in autotune.store().entries())
        if not typer.confirm(f"Remove {count} entries from {autotune.store().root}?", err=True):
            fail("nothing was removed", 1)
    try:
        removed = autotune.store().clear()
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}; expected a folder that can be written")
    print(
        output.as_json({"removed": removed}) if as_json else f"{removed} entries removed from {autotune.store().root}"
    )


def qualify(
    budget: Annotated[str, typer.Option(help="Time for everything: 90s, 8m, 1h.")] = "8m",
    only: Annotated[list[str] | None, typer.Option("--only", help="An op by name; repeatable (default: all).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the files go, eight at the most (default: qualification; with --rehearse rehearsal)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="A bad day on purpose: on the CPU, with planted failures, in a minute or two."),
    ] = False,
    as_json: Json = False,
) -> None:
    """All that a new device must show: conformance, ceilings, tuning, speed. Exit 1 where a result is wrong.

    What hangs, dies or spoils the device's context costs itself alone, and is named.
    """
    from ..perf_reports import qualify as qualification
    from ..perf_reports.durations import parse_duration

    out = out or Path("rehearsal" if rehearse else "qualification")
    try:
        with bars() as bar:
            if rehearse:
                rehearsal = qualification.rehearse(out, progress=bar)
            else:
                outcome = qualification.run(
                    out, budget_s=parse_duration(budget), resume=resume, ops=only or (), progress=bar
                )
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    if rehearse:
        print(output.as_json(rehearsal.as_json()) if as_json else "\n".join(rehearsal.lines()))
        raise typer.Exit(rehearsal.exit_code)
    words = outcome.as_json() if as_json else qualification.lines(outcome)
    print(output.as_json(words) if as_json else "\n".join(words))
    raise typer.Exit(outcome.exit_code)
