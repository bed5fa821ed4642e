"""The terminal side of every command: the common options, the one line of an error, the progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]


def fail(message: object, code: int = 2) -> NoReturn:
    """End the command with one line on stderr."""
    print(f"tropigrad: {message}", file=sys.stderr)
    raise typer.Exit(code)


def say(line: str) -> None:
    """A line on stderr, above the progress bars where there are some."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """Progress bars on stderr, one a stage: the callable takes (stage, done, total, what is being done).

    Where stderr is no terminal, a line for each stage as it begins.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[stage]:<9}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict = {}

        def update(stage: str, done: int, total: int, what: str) -> None:
            if stage not in tasks:
                for earlier in progress.tasks:
                    progress.update(earlier.id, completed=earlier.total)  # else its clock would run on
                if not console.is_terminal:
                    say(f"{stage}: {total} steps")
                tasks[stage] = progress.add_task(what, total=total, stage=stage)
            progress.update(tasks[stage], completed=done, total=total, description=what)

        yield update


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> None:
    """A table on a terminal. A row has the style that its first cell names; digits stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for column, name in enumerate(head):
        numeric = all(row[column][-1:] in "0123456789%–" for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(Text, row), style=styles.get(row[0]))
    Console().print(table)
