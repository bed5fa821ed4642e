"""The ``tropigrad`` command line. Exit codes: 0 done, 1 a check failed, 2 bad use or bad data, 130 interrupted.

A command imports what it runs inside its function, so that ``--help`` and ``--version`` need not load torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from .. import __version__
from ..perf_reports import output

if TYPE_CHECKING:
    from ..perf_reports.data import Dataset


def run() -> None:
    """The command, on an output of any encoding."""
    output.take_any_encoding()
    app()


app = typer.Typer(name="tropigrad", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]


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


def fail(message: object, code: int = 2) -> NoReturn:
    """End the command with one line on stderr."""
    print(f"tropigrad: {message}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """Progress bars on stderr, one a stage: the callable takes (stage, done, total, what is being done)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[stage]:<9}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict = {}

        def update(stage: str, done: int, total: int, what: str) -> None:
            if stage not in tasks:
                for earlier in progress.tasks:
                    progress.update(earlier.id, completed=earlier.total)  # else its clock would run on
                tasks[stage] = progress.add_task(what, total=total, stage=stage)
            progress.update(tasks[stage], completed=done, total=total, description=what)

        yield update


@app.command()
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
        from ..perf_reports.data import DataError
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe", "matplotlib"):
            raise
        fail(f"the report needs {error.name}: pip install 'tropigrad[reports]'")
    try:
        with bars() as progress:
            outcome = reports.run(out, quick=quick, only=only or (), data_dir=data_dir, seed=seed, progress=progress)
    except (DataError, reports.BadRequest) as error:
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


@app.command()
def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Versions, devices, backends and why one is off, compiler, form of the kernels, cache."""
    from ..perf_reports import doctor as examination

    found = examination.examine()
    print(output.as_json(found) if as_json else "\n".join(examination.lines(found, verbose)))
    raise typer.Exit(1 if found["problems"] else 0)


@app.command()
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
    from ..perf_reports import tune
    from ..perf_reports.qualify import seconds

    try:
        plan = tune.plan(ops or (), shapes or (), dtype)
        with bars() as bar:
            found = tune.run(
                plan,
                budget_s=seconds(budget),
                again=again,
                progress=lambda done, total, what: bar("tuning", done, total, what),
            )
        table = tune.export() if export else None
    except ValueError as error:
        fail(error)
    except autotune.WrongDefault as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("interrupted; what was measured is kept, and the same command goes on from there", 130)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}; expected a folder that can be written")
    if as_json:
        print(output.as_json(tune.as_json(found, table)))
    else:
        print("\n".join(tune.lines(found, table, verbose)))


@app.command()
def explain(
    op: Annotated[str, typer.Argument(help="An op by name.")],
    sizes: Annotated[list[str], typer.Argument(help="M=256 K=512 N=512")],
    dtype: Annotated[str, typer.Option(help="Of the inputs.")] = "float32",
    as_json: Json = False,
) -> None:
    """Which config a call runs with, and why: text for people, and for a bug report."""
    from ..perf_reports import tune

    try:
        explanation = tune.explain(*tune.plan([op], [",".join(sizes)], dtype)[0])
    except ValueError as error:
        fail(error)
    print(output.as_json(explanation.as_json(), default=str) if as_json else explanation)


cache = typer.Typer(no_args_is_help=True, help="The tuned configs on this machine.")
app.add_typer(cache, name="cache")


@cache.command("list")
def cache_list(as_json: Json = False) -> None:
    """Every tuned config, by environment."""
    from ..perf_reports import tune

    found = tune.cached()
    print(output.as_json(found) if as_json else "\n".join(tune.cached_lines(found)))


@cache.command("verify")
def cache_verify(as_json: Json = False) -> None:
    """Read every entry; exit 1 where one is damaged or a writer left a piece behind."""
    from ..perf_reports import tune

    problems = tune.damaged()
    whole = f"{len(tune.cached()['entries'])} entries, all whole"
    print(output.as_json({"problems": problems}) if as_json else "\n".join(problems or [whole]))
    raise typer.Exit(1 if problems else 0)


@cache.command("clear")
def cache_clear(as_json: Json = False) -> None:
    """Remove every tuned config and journal of every environment."""
    from .. import autotune

    try:
        removed = autotune.store().clear()
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}; expected a folder that can be written")
    print(
        output.as_json({"removed": removed}) if as_json else f"{removed} entries removed from {autotune.store().root}"
    )


@app.command()
def qualify(
    budget: Annotated[str, typer.Option(help="Time for everything: 90s, 8m, 1h.")] = "8m",
    only: Annotated[list[str] | None, typer.Option("--only", help="An op by name; repeatable (default: all).")] = None,
    out: Annotated[Path, typer.Option(help="Where the files go, eight at the most.")] = Path("qualification"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Json = False,
) -> None:
    """All that a new device must show: conformance, ceilings, tuning, speed. Exit 1 where a result is wrong."""
    from ..perf_reports import qualify as qualification

    try:
        with bars() as bar:
            outcome = qualification.run(
                out, budget_s=qualification.seconds(budget), resume=resume, ops=only or (), progress=bar
            )
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    words = outcome.as_json() if as_json else qualification.lines(outcome)
    print(output.as_json(words) if as_json else "\n".join(words))
    raise typer.Exit(outcome.exit_code)


train = typer.Typer(no_args_is_help=True, help="Train one network, and leave it in a folder.")
app.add_typer(train, name="train")

Data = Annotated[
    str | None,
    typer.Option(help="digits, iris, mnist, mnist:DIR or cifar10:DIR (default: mnist with --data-dir, else digits)."),
]
DataDir = Annotated[Path | None, typer.Option(help="A folder of MNIST-format files (default: TROPIGRAD_DATA).")]
Seed = Annotated[int, typer.Option(help="Of all that is drawn: the split, the start, the order of the samples.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]
Out = Annotated[Path, typer.Option(help="Where metrics.jsonl, model.pt and the plot go.")]


def dataset_of(data: str | None, data_dir: Path | None, seed: int) -> Dataset:
    """What --data and --data-dir name."""
    from ..perf_reports.data import find_data_dir, load

    return load(data or ("mnist" if data_dir else "digits"), find_data_dir(data_dir), seed)


def finish(
    run: Callable[[Callable[[int, int, str], None]], dict[str, Any]],
    lines: Callable[[dict[str, Any]], list[str]],
    out: Path,
    as_json: bool,
) -> NoReturn:
    """Train, print the summary and end the command; what is wrong is one line on stderr.

    run: takes what shows progress, and gives the summary. lines: the summary, for people.
    """
    try:
        with bars() as bar:
            summary = run(lambda done, total, what: bar("training", done, total, what))
    except ValueError as error:  # bad settings, bad data, nothing to resume: each says so in one line
        fail(error)
    except KeyboardInterrupt:
        fail(f"interrupted; --resume goes on from the checkpoint in {out}, where there is one", 130)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    print(output.as_json(summary) if as_json else "\n".join(lines(summary)))
    raise typer.Exit(130 if summary["interrupted"] else 0)


@train.command("maxplus")
def train_maxplus(
    data: Data = None,
    data_dir: DataDir = None,
    features: Annotated[
        str,
        typer.Option(help="pixels, components (20 principal ones) or directions (these along 100 random directions)."),
    ] = "pixels",
    hidden: Annotated[
        int | None, typer.Option(help="Hidden units (default: 300, or a quarter of the samples where that is less).")
    ] = None,
    iterations: Annotated[int, typer.Option(help="Iterations in all; it ends sooner where the loss is 0.")] = 300,
    seed: Seed = 0,
    margin: Annotated[float, typer.Option(help="Of the hinge, in the units of the scores.")] = 4.0,
    scale: Annotated[float, typer.Option(help="λ of A = λ[I; −I]; a power of two.")] = 64.0,
    step: Annotated[Literal["polyak", "sqrt", "power"], typer.Option(help="The step rule.")] = "polyak",
    loss: Annotated[Literal["hinge", "cross_entropy"], typer.Option(help="Of each sample.")] = "hinge",
    memory: Annotated[Literal["auto", "trees", "winners"], typer.Option(help="What an iteration keeps.")] = "auto",
    train_a: Annotated[bool, typer.Option("--train-a", help="Let A move as well.")] = False,
    validation: Annotated[
        float, typer.Option(help="Share of the training samples that is held out to choose an iterate by.")
    ] = 0.1,
    keep: Annotated[
        Literal["validation", "loss"],
        typer.Option(help="The iterate that is left: the best on the validation samples, or of the least worst loss."),
    ] = "validation",
    resume: Resume = False,
    out: Out = Path("runs/maxplus"),
    as_json: Json = False,
) -> None:
    """A linear-min-max network, by sparse subgradients of the worst-sample loss. Ctrl-C keeps a checkpoint."""
    from ..perf_reports.studies import maxplus

    settings: dict[str, Any] = {"features": features, "hidden": hidden, "iterations": iterations, "seed": seed}
    settings |= {"scale": scale, "margin": margin, "step": step, "loss": loss, "memory": memory, "train_a": train_a}
    settings |= {"validation": validation, "keep": keep}

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        return maxplus.train(dataset_of(data, data_dir, seed), out, **settings, resume=resume, progress=progress)

    finish(run, maxplus.summary_lines, out, as_json)


@train.command("gsgd")
def train_gsgd(
    data: Data = None,
    data_dir: DataDir = None,
    network: Annotated[str, typer.Option(help="mlp (four hidden layers of 64) or cnn (six convolutions).")] = "mlp",
    optimizer: Annotated[str, typer.Option(help="gsgd, sgd or path_sgd.")] = "gsgd",
    lr: Annotated[float, typer.Option(help="Learning rate; it falls by 1 % an epoch.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of path values, in gsgd.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="On path values, in gsgd.")] = 0.0,
    unit: Annotated[bool, typer.Option(help="Start with a skeleton of ones, else with torch's weights.")] = True,
    spread: Annotated[float, typer.Option(help="Rescale the start by random c, of this spread of log c.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Samples in a mini-batch.")] = 64,
    epochs: Annotated[int, typer.Option(help="Epochs in all.")] = 20,
    seed: Seed = 0,
    resume: Resume = False,
    out: Out = Path("runs/gsgd"),
    as_json: Json = False,
) -> None:
    """A ReLU network, by SGD on its path values or by a rival. Ctrl-C keeps a checkpoint."""
    from ..perf_reports.studies import gsgd

    recipe = gsgd.Recipe(network, optimizer, lr, momentum, weight_decay, unit, spread, batch, seed)

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        return gsgd.train(dataset, out, recipe, epochs=epochs, resume=resume, progress=progress)

    finish(run, gsgd.summary_lines, out, as_json)
