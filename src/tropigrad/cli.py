"""The ``tropigrad`` command line. Exit codes: 0 done, 1 the thing checked failed, 2 bad use or bad data, 130 interrupted.

A command imports what it runs inside its function, so that ``--help`` and ``--version`` need not load torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import __version__

app = typer.Typer(name="tropigrad", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"tropigrad {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Kernels, layers and optimizers for networks that dense backprop serves badly."""


def fail(message: object, code: int = 2) -> NoReturn:
    """End the command with one line on stderr."""
    print(f"tropigrad: {message}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """Progress bars on stderr, one a stage: the callable takes (stage, done, total, what is being done)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.fields[stage]:<9}"), BarColumn(), TimeElapsedColumn(), TextColumn("[dim]{task.description}")
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict = {}

        def update(stage: str, done: int, total: int, what: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(what, total=total, stage=stage)
            progress.update(tasks[stage], completed=done, total=total, description=what)

        yield update


@app.command()
def report(
    quick: Annotated[bool, typer.Option("--quick", help="The smallest setting, under a minute.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="A study, op or workload by name; repeatable.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of MNIST-format files [default: TROPIGRAD_DATA, else scikit-learn's digits].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page, the plots and results.jsonl go.")] = Path("perf_reports/out"),
    seed: Annotated[int, typer.Option(help="Seed of the inputs and of the training.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train beside dense backprop, measure the kernels and this machine, and write a page."""
    from .perf_reports import report as reports
    from .perf_reports.data import DataError

    try:
        with bars() as progress:
            outcome = reports.run(out, quick=quick, only=only or (), data_dir=data_dir, seed=seed, progress=progress)
    except (DataError, reports.UnknownName) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    if verbose:
        for record in outcome.records:
            if record["kind"] == "left_out":
                print(f"left out  {record['what']}: {record['reason']}", file=sys.stderr)
    lines = reports.summary(outcome)
    print(json.dumps(reports.as_json(outcome), ensure_ascii=False, indent=2) if as_json else "\n".join(lines))
    raise typer.Exit(outcome.exit_code)


@app.command()
def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Versions, devices, backends and why one is off, compiler, cache."""
    from .perf_reports import doctor as examination

    found = examination.examine()
    print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else "\n".join(examination.lines(found, verbose)))
    raise typer.Exit(1 if found["problems"] else 0)
