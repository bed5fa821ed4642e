"""`tropigrad report` and `tropigrad doctor`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..perf_reports import output
from .terminal import Json, Verbose, bars, fail, say


def report(
    quick: Annotated[bool, typer.Option("--quick", help="The smallest setting, within two minutes.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A study, op or workload by name; repeatable. See --list.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A Python file, or a module by name, that registers ops; repeatable."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to measure with (default: torch's).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda where there is one); cpu hides the GPU.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the kernels' inputs: float64, bfloat16, int32, ... (default: float32 for most)."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="Shapes of the kernels: S1, or M=64,K=784,N=1024; repeatable (default: each op's own)."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time to measure for, such as 90s, 8m (default: 260s; with --quick 95s).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last run in --out: what it has not measured yet.")
    ] = False,
    redraw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing: draw the last run of a results.jsonl again.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="With --redraw: another run of the file.")] = None,
    names: Annotated[bool, typer.Option("--list", help="Print what --only may name.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="A folder of MNIST-format files (default: TROPIGRAD_DATA, else scikit-learn's digits)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the page, the plots and results.jsonl go (default: perf_reports/out; with --redraw the folder "
            "of FILE)."
        ),
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the timings there, as Parquet.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the comparisons there, as a table in Markdown.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML there: whether results agree.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs and of the training.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train beside dense backprop, measure the kernels and this machine, and write a page.

    Examples: `tropigrad report --quick`; `tropigrad report --only tropical_matmul --budget 60s`;
    `tropigrad report --resume --budget 10m`; `tropigrad report --redraw results.jsonl --out page`.
    """
    if device not in (None, "cpu", "cuda"):
        fail(f"--device is {device!r}; expected cpu or cuda")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: everything that follows is to be there
    try:
        from ..perf_reports import modules
        from ..perf_reports import report as reports
        from ..perf_reports.commands import BadRequest
        from ..perf_reports.data import DataError
        from ..perf_reports.durations import parse_duration
        from ..perf_reports.records import last_run, read_what_can_be
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe", "matplotlib"):
            raise
        fail(f"the report needs {error.name}: pip install 'tropigrad[reports]'")
    try:
        modules.load(module or ())
    except BadRequest as error:
        fail(error)
    if names:
        catalogue = reports.catalogue()
        print(output.as_json(catalogue) if as_json else "\n".join(_listed(catalogue)))
        return
    if parquet is not None and any(importlib.util.find_spec(name) is None for name in ("pandas", "pyarrow")):
        fail("--parquet needs pandas and pyarrow: pip install 'tropigrad[reports]' pyarrow; results.csv needs neither")
    if run is not None and redraw is None:
        fail("--run names a run of a file to draw again; expected --redraw FILE beside it")
    out = out or (Path("perf_reports/out") if redraw is None else redraw.parent)
    try:
        budget_s = None if budget is None else parse_duration(budget)
    except ValueError as error:
        fail(error)
    try:
        if redraw is not None:
            page, complaints = reports.redraw(redraw, out, run)
            for line in complaints:
                say(f"left out  {line}")
            if parquet or markdown or junit:
                _export(last_run(read_what_can_be(redraw).records, run), parquet, markdown, junit)
            print(output.as_json({"page": str(page), "left_out": complaints}) if as_json else f"page      {page}")
            return
        with bars() as progress:
            outcome = reports.run(
                out,
                quick=quick,
                only=only or (),
                module=module or (),
                threads=threads,
                device=device,
                dtype=dtype,
                shapes=shapes or (),
                data_dir=data_dir,
                seed=seed,
                budget_s=budget_s,
                resume=resume,
                progress=progress,
                tell=say,
            )
    except (DataError, BadRequest) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted before anything was measured", 130)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    _export(outcome.records, parquet, markdown, junit)
    if verbose:
        for record in outcome.records:
            if record["kind"] == "left_out":
                print(f"left out  {record['what']}: {record['reason']}", file=sys.stderr)
    lines = reports.summary(outcome)
    print(output.as_json(reports.as_json(outcome)) if as_json else "\n".join(lines))
    raise typer.Exit(outcome.exit_code)


def _export(run: Sequence[Mapping[str, Any]], parquet: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from ..perf_reports.page import exports

    writers = (exports.write_timings, parquet), (exports.write_markdown, markdown), (exports.write_junit, junit)
    for write, path in writers:
        try:
            if path is not None:
                write(run, path)
        except OSError as error:
            fail(f"{path}: {error.strerror or error}; expected a file that can be written")
        except ValueError as error:
            fail(error)


def _listed(catalogue: dict[str, list[str]]) -> list[str]:
    lines = []
    for kind, listed in catalogue.items():
        lines += [f"{kind}:", *(f"  {name}" for name in listed)]
    return lines


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Versions, devices, backends and why one is off, compiler, form of the kernels, cache."""
    from ..perf_reports import doctor as examination

    facts = examination.examine()
    if verbose:
        facts["product"] = examination.product()
    print(output.as_json(facts) if as_json else "\n".join(examination.lines(facts, verbose)))
    raise typer.Exit(1 if facts["problems"] else 0)
