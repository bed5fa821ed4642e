"""`tropigrad report` and `tropigrad doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..perf_reports import output
from .terminal import Json, Verbose, bars, fail


def report(
    quick: Annotated[bool, typer.Option("--quick", help="The smallest setting, under a minute.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A study, op or workload by name; repeatable.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="A folder of MNIST-format files (default: TROPIGRAD_DATA, else scikit-learn's digits)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page, the plots and results.jsonl go.")] = Path(
        "perf_reports/out"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the inputs and of the training.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train beside dense backprop, measure the kernels and this machine, and write a page."""
    try:
        from ..perf_reports import report as reports
        from ..perf_reports.commands import BadRequest
        from ..perf_reports.data import DataError
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe", "matplotlib"):
            raise
        fail(f"the report needs {error.name}: pip install 'tropigrad[reports]'")
    try:
        with bars() as progress:
            outcome = reports.run(out, quick=quick, only=only or (), data_dir=data_dir, seed=seed, progress=progress)
    except (DataError, BadRequest) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted before anything was measured", 130)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    if verbose:
        for record in outcome.records:
            if record["kind"] == "left_out":
                print(f"left out  {record['what']}: {record['reason']}", file=sys.stderr)
    lines = reports.summary(outcome)
    print(output.as_json(reports.as_json(outcome)) if as_json else "\n".join(lines))
    raise typer.Exit(outcome.exit_code)


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Versions, devices, backends and why one is off, compiler, form of the kernels, cache."""
    from ..perf_reports import doctor as examination

    facts = examination.examine()
    print(output.as_json(facts) if as_json else "\n".join(examination.lines(facts, verbose)))
    raise typer.Exit(1 if facts["problems"] else 0)
