"""The ``tropigrad`` command line. Exit codes: 0 done, 1 a check failed, 2 bad use or bad data, 130 interrupted.

A command imports what it runs inside its function, so that ``--help`` and ``--version`` need not load torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..perf_reports import output
from . import performance, reports, training, tuning


def run() -> None:
    """Run the command, on an output of any encoding."""
    output.take_any_encoding()
    app()


app = typer.Typer(name="tropigrad", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (reports.report, reports.doctor, tuning.tune, tuning.explain, tuning.qualify):
    app.command()(command)
app.add_typer(tuning.cache, name="cache")
app.add_typer(training.train, name="train")
app.add_typer(performance.perf, name="perf")


def _version(asked: bool) -> None:
    if asked:
        print(f"tropigrad {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Kernels, layers and optimizers for networks that dense backprop serves badly."""
